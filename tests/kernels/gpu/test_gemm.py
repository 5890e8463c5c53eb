"""Linear layers against plain products of dequantised values, and their bits for few rows and many."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.gemm import grouped_fp8, linear_bf16, linear_fp8, linear_quantised, quantise
from holdfast.kernels.gpu.weights import Fp8Weight, fp8_weight
from holdfast.kernels.quant import dequant_fp8_weight, fake_fp8, pack_fp8_weight

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

CPU = torch.device("cpu")
# Products are exact; of sums, a GPU's tensor cores keep 13 bits below the largest product of a step when they add FP8.
TOLERANCE = 2**-12
Linear = Callable[[Tensor], Tensor]  # x bf16 [N, K] -> float32 [N, out]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp8(out: int, depth: int, seed: int, device: torch.device) -> tuple[Fp8Weight, Tensor]:
    """A random weight whose blocks have different scales, and its values [in, out]."""
    size = 1 + 3 * (torch.arange(out) // 128 % 2)[:, None] + 7 * (torch.arange(depth) // 128 % 3)
    data, scale = pack_fp8_weight(randn(out, depth, seed=seed) * size * depth**-0.5)
    weight = fp8_weight(data, scale)
    return Fp8Weight(weight.data.to(device), weight.scale.to(device)), dequant_fp8_weight(data, scale).t()


def fp8_rows(out: int, depth: int, device: torch.device) -> tuple[Linear, Linear]:
    weight, values = fp8(out, depth, 1, device)
    return lambda x: linear_fp8(x, weight, torch.float32), lambda x: fake_fp8(x, 128) @ values


def rounded_rows(out: int, depth: int, device: torch.device) -> tuple[Linear, Linear]:
    weight, values = fp8(out, depth, 1, device)
    return lambda x: linear_quantised(*quantise(x), weight, torch.float32), lambda x: fake_fp8(x, 128) @ values


def groups(out: int, depth: int, device: torch.device) -> tuple[Linear, Linear]:
    """Two of them."""
    weights, values = zip(*(fp8(out // 2, depth // 2, seed, device) for seed in (1, 2)))
    weight = Fp8Weight(torch.stack([w.data for w in weights]), torch.stack([w.scale for w in weights]))

    def expected(x: Tensor) -> Tensor:
        return torch.cat([part @ value for part, value in zip(x.chunk(2, 1), values)], 1)

    return lambda x: grouped_fp8(x.unflatten(1, (2, -1)), weight, torch.float32), expected


def bf16(out: int, depth: int, device: torch.device) -> tuple[Linear, Linear]:
    weight = (randn(out, depth, seed=1) * depth**-0.5).bfloat16()
    ours = weight.to(device)
    return lambda x: linear_bf16(x, ours, torch.float32), lambda x: x @ weight.float().t()


def faults(
    linear: Linear, expected: Linear, depth: int, counts: tuple[int, ...], device: torch.device = CPU
) -> list[str]:
    """What is wrong: values of the last of the counts, or bits that differ for fewer rows or in another order."""
    x = randn(counts[-1], depth, seed=9).bfloat16()
    values, x = expected(x.float()), x.to(device)
    together, found = linear(x), []
    assert together.dtype == torch.float32
    error = (together.cpu() - values).abs().max().item() / values.abs().max().item()
    if not error <= TOLERANCE:
        found.append(f"values are {error:.1e} off")
    found += [f"{n} rows" for n in counts[:-1] if not torch.equal(linear(x[:n]), together[:n])]
    order = randn(len(x), seed=10).argsort().to(device)
    return found + ([] if torch.equal(linear(x[order]), together[order]) else ["another order"])


# K in one part; in several, of which the last is shorter; in an odd number of columns, which only rows in bf16 may have
@pytest.mark.parametrize(
    ("kind", "depth"),
    [(fp8_rows, 128), (fp8_rows, 2176), (rounded_rows, 1152), (groups, 384), (groups, 2048), (bf16, 200), (bf16, 1096)],
)
def test_few_rows_and_many(kind: Callable[..., tuple[Linear, Linear]], depth: int) -> None:
    assert not faults(*kind(70, depth, CPU), depth, (0, 1, 17, 64, 66))


@pytest.mark.parametrize("rows", [1, 66])
def test_a_rank_s_outputs_have_the_bits_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where K of so small a weight would be cut into more parts."""
    monkeypatch.setattr("holdfast.kernels.gpu.gemm.num_splits", lambda num_tiles, num_steps: 4 // num_tiles)
    out, depth, f32 = 256, 1024, torch.float32
    x = randn(rows, depth, seed=9).bfloat16()
    weight, _ = fp8(out, depth, 1, CPU)
    table = (randn(out, depth, seed=1) * depth**-0.5).bfloat16()
    whole = torch.cat((linear_fp8(x, weight, f32), linear_bf16(x, table, f32)))
    for share in (slice(0, 64), slice(128, 256)):
        part = Fp8Weight(weight.data[share], weight.scale[share], out)
        got = torch.cat((linear_fp8(x, part, f32), linear_bf16(x, table[share], f32, out)))
        assert torch.equal(got, whole[:, share])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [fp8_rows, rounded_rows, groups, bf16])
@pytest.mark.parametrize(("out", "depth"), [(1536, 4096), (4096, 8192), (40_960, 1024), (7168, 16_384)])
def test_weights_of_the_real_models(kind: Callable[..., tuple[Linear, Linear]], out: int, depth: int) -> None:
    cuda = torch.device("cuda")
    assert not faults(*kind(out, depth, cuda), depth, (1, 2, 7, 16, 17, 33, 64, 65, 128, 300), cuda)
