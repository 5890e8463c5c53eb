"""Routing and experts against their torch twin in official numerics."""

import pytest
import torch
from torch import Tensor

from kernels.gpu import jit
from kernels.gpu.fp4 import pack
from kernels.gpu.moe import moe, pack_experts
from kernels.gpu.weights import Fp4Weight, Fp8Weight, fp8_weight
from kernels.moe import MoEWeights
from kernels.moe import moe as twin
from kernels.quant import dequant_fp4_weight, dequant_fp8_weight, pack_fp4_weight, pack_fp8_weight
from kernels.rounding import Rounding

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

OFFICIAL = Rounding(official=True)
# One bf16 ulp of the largest output: a sum in another order may round to the other side, of a hidden value or of a product.
TOLERANCE = 2**-7


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp4(experts: int, out: int, width: int, seed: int) -> tuple[Fp4Weight, Tensor]:
    """A random weight and its values [E, in, out], as the twin takes them."""
    packed = [pack_fp4_weight(w) for w in randn(experts, out, width, seed=seed) * width**-0.5]
    data, scale = torch.stack([p for p, _ in packed]), torch.stack([s for _, s in packed])
    values = torch.stack([dequant_fp4_weight(p, s).t() for p, s in packed])
    return Fp4Weight(data.view(torch.uint8), scale.view(torch.uint8)), values


def fp8(out: int, width: int, seed: int) -> tuple[Fp8Weight, Tensor]:
    data, scale = pack_fp8_weight(randn(out, width, seed=seed) * width**-0.5)
    return fp8_weight(data, scale), dequant_fp8_weight(data, scale).t()


def layer(
    width: int = 256, inner: int = 128, experts: int = 8, k: int = 3, hashed: bool = False, limit: float = 1.0
) -> tuple[MoEWeights, MoEWeights]:
    """Weights of our op and of its twin. A limit of 1 is often reached."""
    (w1, v1), (w3, v3), (w2, v2) = (
        fp4(experts, *s, i) for i, s in enumerate(((inner, width),) * 2 + ((width, inner),))
    )
    shared13, shared2 = fp8(2 * inner, width, 3), fp8(width, inner, 4)
    gate = (randn(experts, width, seed=5) * width**-0.5).bfloat16()
    bias = torch.zeros(0) if hashed else randn(experts, seed=6) * 0.1
    table = torch.stack([randn(experts, seed=7 + i).argsort()[:k] for i in range(64)]) if hashed else torch.zeros(0, k)
    rest = (k, 1.5, limit)
    packed = pack_experts(w1, w3, w2)
    ours = MoEWeights(gate, bias, table.int(), *packed, shared13[0], shared2[0], *rest)  # type: ignore[arg-type]
    v13 = torch.cat((v1, v3), 2)
    return ours, MoEWeights(gate.float().t(), bias, table.long(), v13, v2, shared13[1], shared2[1], *rest)


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_rows_get_what_the_twin_gives(rows: int, hashed: bool) -> None:
    ours, theirs = layer(hashed=hashed)
    x, ids = randn(rows, 256, seed=9).bfloat16(), torch.arange(rows) % 64
    close(moe(x, ids.int(), ours), twin(x.float(), ids.numpy(), theirs, num=OFFICIAL))
