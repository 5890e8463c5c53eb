"""FP4 weights in tiles: what is packed, and what the instructions for a GPU make of it, is the weight."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels.gpu import fp4, jit
from holdfast.kernels.gpu.weights import Fp4Weight
from holdfast.kernels.quant import from_e8m0, unpack_fp4

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")


def random_weight(experts: int, out: int, width: int) -> Fp4Weight:
    """All codes and all scales that may be."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(256, (experts, out, width // 2), generator=generator, dtype=torch.uint8)
    return Fp4Weight(data, torch.randint(129, (experts, out, width // 32), generator=generator, dtype=torch.uint8))


def test_instructions_for_a_gpu_unpack_what_was_packed() -> None:
    w = random_weight(2, 128, 256)
    packed = fp4.pack(w)
    words = packed.codes.view(torch.int32).long() & 0xFFFFFFFF  # [2, 2, 2, 64, 16]: row, then quad and group
    words = words.unflatten(-1, (4, 4))
    scale = packed.scale.long().unsqueeze(-1) >> 8 * torch.arange(4)  # [2, 2, 2, 64, 4]
    results = run(fp4._ASM, words, scale.unsqueeze(-2).expand(words.shape))
    halves = torch.stack([bf16_pair(r) for r in results], -1).unflatten(-1, (2, 2))  # pair, half, step
    # expert, tile, tile, half, warp, row, quad, group, pair, half, step -> rows, then columns in their order
    rows = halves.unflatten(3, (2, 4, 8)).permute(0, 1, 4, 3, 5, 2, 7, 10, 9, 6, 8)
    expected = unpack_fp4(w.data).unflatten(-1, (-1, 32)) * from_e8m0(w.scale).unsqueeze(-1)
    assert torch.equal(rows.reshape(2, 128, 256), expected.flatten(-2))


def test_a_scale_that_is_no_bf16_is_refused() -> None:
    w = random_weight(1, 64, 128)
    w.scale[0, 3, 1] = fp4.MAX_SCALE + 1
    with pytest.raises(ValueError, match="an FP4 scale is 2\\^2"):
        fp4.pack(w)


def run(asm: str, codes: Tensor, scale: Tensor) -> list[Tensor]:
    """The few PTX instructions that unpacking takes, on 32-bit words held in int64: the four results."""
    registers = {"$4": codes, "$5": scale & 0xFFFFFFFF}
    for line in asm.split(";"):
        operation, _, operands = line.strip(" {}\n").partition(" ")
        if not operands or operation == ".reg":
            continue
        to, *names = operands.split(", ")
        a, b = (registers[name] if name in registers else torch.tensor(int(name, 0)) for name in names)
        registers[to] = OPERATIONS[operation](a, b) & 0xFFFFFFFF
    return [registers[f"${i}"] for i in range(4)]


def multiply_halves(a: Tensor, b: Tensor) -> Tensor:
    product = (bf16_pair(a) * bf16_pair(b)).bfloat16()
    bits = product.view(torch.int16).long() & 0xFFFF
    return bits[..., 0] | bits[..., 1] << 16


def bf16_pair(word: Tensor) -> Tensor:
    """Words [...] -> float32 [..., 2], the low half first."""
    halves = torch.stack((word & 0xFFFF, word >> 16), -1)
    return halves.to(torch.uint16).view(torch.bfloat16).float()


OPERATIONS = {
    "and.b32": torch.bitwise_and,
    "or.b32": torch.bitwise_or,
    "shl.b32": torch.bitwise_left_shift,
    "shr.b32": torch.bitwise_right_shift,
    "mul.lo.u32": torch.mul,
    "mul.bf16x2": multiply_halves,
}
