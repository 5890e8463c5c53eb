"""Routing and experts against their torch twin in official numerics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.moe import moe, moe_columns, moe_hidden, pack_experts
from holdfast.kernels.gpu.weights import Fp4Weight, Fp8Weight, fp8_weight
from holdfast.kernels.moe import MoEWeights
from holdfast.kernels.moe import moe as twin
from holdfast.kernels.quant import dequant_fp4_weight, dequant_fp8_weight, pack_fp4_weight, pack_fp8_weight
from holdfast.kernels.rounding import Rounding
from tests.kernels.gpu.closeness import off

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

OFFICIAL = Rounding(official=True)
# One bf16 ulp of the largest output: a sum in another order may round a hidden value or a product to the other side.
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


def difference(got: Tensor, expected: Tensor) -> float:
    """From what the twin gives, in units of what is allowed."""
    assert got.dtype == torch.bfloat16
    return off(got, expected, TOLERANCE)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 17])
def test_rows_get_what_the_twin_gives(rows: int, hashed: bool) -> None:
    ours, theirs = layer(hashed=hashed)
    x, ids = randn(rows, 256, seed=9).bfloat16(), torch.arange(rows) % 64
    assert difference(moe(x, ids.int(), ours), twin(x.float(), ids.numpy(), theirs, num=OFFICIAL)) <= 1


def test_a_small_layer() -> None:
    """Sizes of the embedded model."""
    ours, theirs = layer(width=128, inner=128, experts=4, k=2, limit=10.0)
    x, ids = randn(3, 128, seed=9).bfloat16(), torch.zeros(3, dtype=torch.int64)
    assert difference(moe(x, ids.int(), ours), twin(x.float(), ids.numpy(), theirs, num=OFFICIAL)) <= 1


def test_equal_scores_go_to_the_lower_expert() -> None:
    ours, theirs = layer(experts=8, k=3)
    ours, theirs = (w._replace(gate=torch.zeros_like(w.gate), bias=torch.zeros_like(w.bias)) for w in (ours, theirs))
    x, ids = randn(2, 256, seed=9).bfloat16(), torch.zeros(2, dtype=torch.int64)
    assert difference(moe(x, ids.int(), ours), twin(x.float(), ids.numpy(), theirs, num=OFFICIAL)) <= 1


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    ours, _ = layer()
    x, ids = randn(70, 256, seed=9).bfloat16(), (torch.arange(70) % 64).int()
    together = moe(x, ids, ours)
    for count in (1, 2, 16, 17):
        assert torch.equal(moe(x[:count], ids[:count], ours), together[:count]), count
    order = randn(70, seed=10).argsort()
    assert torch.equal(moe(x[order], ids[order], ours), together[order])


def test_columns_of_two_ranks_have_the_bits_of_the_whole() -> None:
    """Of hidden values by blocks of 128, of outputs too."""
    inner = 256
    experts = [fp4(8, *s, i)[0] for i, s in enumerate(((inner, 256),) * 2 + ((256, inner),))]
    whole, _ = layer(inner=inner)
    x, ids = randn(5, 256, seed=9).bfloat16(), torch.arange(5).int()
    hidden, chosen = moe_hidden(x, ids, whole)
    columns = moe_columns(hidden, chosen, whole)
    assert torch.equal(columns, moe(x, ids, whole))
    for share in (slice(0, 128), slice(128, 256)):
        w13, w2 = pack_experts(*(Fp4Weight(w.data[:, share], w.scale[:, share]) for w in experts))
        gate_up = [torch.cat([half[share] for half in part.chunk(2)]) for part in whole.shared_w13[:2]]
        shared = Fp8Weight(*gate_up), Fp8Weight(*(part[share] for part in whole.shared_w2[:2]))
        part = whole._replace(w13=w13, w2=w2, shared_w13=shared[0], shared_w2=shared[1])
        got, order = moe_hidden(x, ids, part)
        assert torch.equal(got, hidden[:, share])
        assert torch.equal(moe_columns(hidden, order, part), columns[:, share])


@pytest.mark.parametrize("tokens", [64, 128])
def test_bits_do_not_depend_on_the_tile(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = layer(experts=4, k=2)
    x, ids = randn(18, 256, seed=9).bfloat16(), torch.zeros(18, dtype=torch.int32)
    expected = moe(x, ids, ours)  # tiles of 16 rows, as for decode
    monkeypatch.setattr("holdfast.kernels.gpu.moe.tile_tokens", lambda num_pairs, num_experts: tokens)
    assert torch.equal(moe(x, ids, ours), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 64, 600])
@pytest.mark.parametrize(("width", "inner"), [(4096, 2048), (7168, 3072)])
def test_real_shapes(width: int, inner: int, rows: int) -> None:
    ours, theirs = layer(width, inner, experts=8, k=6, limit=10.0)
    x, ids = randn(rows, width, seed=9).bfloat16(), torch.zeros(rows, dtype=torch.int64)
    here = MoEWeights(*(to_gpu(value) for value in ours))
    got = moe(x.cuda(), ids.int().cuda(), here)
    assert difference(got.cpu(), twin(x.float(), ids.numpy(), theirs, num=OFFICIAL)) <= 1
    assert torch.equal(moe(x[:1].cuda(), ids[:1].int().cuda(), here), got[:1])


def to_gpu(value: Any) -> Any:
    """A tensor, or a weight of several, on the GPU; numbers stay."""
    if isinstance(value, tuple):
        return type(value)(*(to_gpu(part) for part in value))
    return value.cuda() if isinstance(value, Tensor) else value
