"""Products around attention against their torch twins in official numerics."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from holdfast.kernels import project as twins
from holdfast.kernels.dispatch import check_signature
from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.project import output, output_columns, output_low, project, rope_table
from holdfast.kernels.gpu.weights import Fp8Weight, fp8_weight
from holdfast.kernels.project import OutputWeights, ProjectWeights
from holdfast.kernels.quant import dequant_fp8_weight, hadamard_matrix, pack_fp8_weight
from holdfast.kernels.rope import rope_frequencies
from holdfast.kernels.rounding import Rounding

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

OFFICIAL = Rounding(official=True)
CPU = torch.device("cpu")
# Sums in another order round to the other side now and then: one ulp of bf16, which may move a rounded block of what
# follows by an e4m3 step (2^-3 at most) of one of its many terms.
TOLERANCE = 2**-6
# Index queries end on the e2m1 grid, where an ulp may become a step of a quarter; so may a window row's e4m3 channel by
# an eighth.
FEW = 0.01  # share of values that may be a step off


class Sizes(NamedTuple):
    width: int
    heads: int
    dim: int
    rope: int
    q_lora: int
    index_heads: int
    index_dim: int
    groups: int
    o_lora: int


POCKET = Sizes(128, 4, 96, 32, 128, 4, 32, 2, 64)
TINY = Sizes(256, 8, 128, 64, 128, 8, 128, 4, 128)
WITHOUT_INDEXER = Sizes(256, 3, 128, 64, 384, 0, 0, 1, 128)
FLASH = Sizes(4096, 64, 512, 64, 1024, 64, 128, 8, 1024)
PRO = Sizes(7168, 128, 512, 64, 1536, 64, 128, 16, 1024)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fp8(out: int, width: int, seed: int) -> tuple[Fp8Weight, Tensor]:
    """A random weight, and its values [in, out] as twins take them."""
    data, scale = pack_fp8_weight(
        randn(out, width, seed=seed) * width**-0.5 * (1 + 3 * (torch.arange(width) // 128 % 2))
    )
    return fp8_weight(data, scale), dequant_fp8_weight(data, scale).t()


def project_weights(s: Sizes, rounds_rows: bool = True) -> tuple[ProjectWeights, ProjectWeights]:
    """Of our op and of its twin."""
    w_in, in_values = fp8(s.q_lora + s.dim, s.width, 1)
    wq_b, b_values = fp8(s.heads * s.dim + s.index_heads * s.index_dim, s.q_lora, 2)
    norms = 1 + randn(s.q_lora, seed=3) / 8, 1 + randn(s.dim, seed=4) / 8
    turning = hadamard_matrix(s.index_dim) if s.index_heads else torch.zeros(0, 0)
    rest = (turning, s.heads, s.index_heads, rounds_rows, 1e-6)
    theirs = ProjectWeights(in_values, *norms, b_values, *rest)
    return theirs._replace(w_in=w_in, wq_b=wq_b), theirs  # type: ignore[arg-type]


def output_weights(s: Sizes) -> tuple[OutputWeights, OutputWeights]:
    depth = s.heads * s.dim // s.groups
    parts = [fp8(s.o_lora, depth, 5 + group) for group in range(s.groups)]
    wo_b, b_values = fp8(s.width, s.groups * s.o_lora, 4)
    wo_a = Fp8Weight(torch.stack([w.data for w, _ in parts]), torch.stack([w.scale for w, _ in parts]))
    theirs = OutputWeights(torch.stack([values for _, values in parts]), b_values)
    return theirs._replace(wo_a=wo_a, wo_b=wo_b), theirs  # type: ignore[arg-type]


def on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return value._make(on(x, device) for x in value) if hasattr(value, "_make") else value


def fault(got: Tensor, expected: Tensor, few: float = 0.0) -> str:
    """What is wrong with bf16 values; empty when all is well.

    None may be off but for a few that are within a step of a coarse grid; on a CPU nearly all are equal.
    """
    assert got.shape == expected.shape
    if not expected.numel():
        return ""
    unequal = (got.bfloat16().float().cpu() != expected).float().mean().item()
    error, most = (got.float().cpu() - expected).abs(), expected.abs().max()
    share = 1 - (error <= TOLERANCE * (expected.abs() + most / 4)).float().mean().item()
    is_well = (got.is_cuda or unequal <= FEW) and share <= few and bool((error <= most / 3).all())
    return "" if is_well else f"{unequal:.2%} unequal, {share:.2%} off, by {error.max():.2g} of {most:.2g}"


def positions(rows: int) -> Tensor:
    """Near and far: float32 angles would be off by a radian at a million tokens."""
    return torch.arange(rows) * 7919 % 1_000_000


def faults(s: Sizes, rows: int, rounds_rows: bool = True, device: torch.device = CPU) -> dict[str, str]:
    """Which of the ops do not give for these rows what their twins give."""
    freqs, at = rope_frequencies(s.rope, 10_000.0, None), positions(rows)
    freqs_cis, their_freqs_cis = (
        rope_table(at.to(device), freqs.to(device)),
        twins.rope_table(at.numpy(), freqs, num=OFFICIAL),
    )
    assert freqs_cis.dtype == torch.float32
    error = (freqs_cis.cpu() - torch.view_as_real(their_freqs_cis)).abs()
    found = {"rope_table": "" if (error <= 1e-7).all() else f"{error.max():.1e} off"}

    ours, theirs = project_weights(s, rounds_rows)
    x = randn(rows, s.width, seed=9).bfloat16()
    expected = twins.project(x.float(), their_freqs_cis, theirs, num=OFFICIAL)
    for name, got, values in zip(("q", "kv", "index_q"), project(x.to(device), freqs_cis, on(ours, device)), expected):
        assert got.dtype == torch.bfloat16
        found[name] = fault(got, values, FEW)

    weights, their_weights = output_weights(s)
    o = randn(rows, s.heads, s.dim, seed=10).bfloat16()
    values = twins.output(o.float(), their_weights, num=OFFICIAL)
    got = output(o.to(device), on(weights, device))
    assert got.dtype == torch.bfloat16
    found["output"] = fault(got, values)
    return {name: what for name, what in found.items() if what}


@pytest.mark.parametrize("rounds_rows", [True, False])
def test_sizes_of_the_embedded_model(rounds_rows: bool) -> None:
    assert not faults(POCKET, 5, rounds_rows)


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_rows_get_what_the_twin_gives(rows: int) -> None:
    assert not faults(TINY, rows)


def test_a_layer_without_an_indexer_and_with_an_odd_number_of_heads() -> None:
    assert not faults(WITHOUT_INDEXER, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("s", [FLASH, PRO])
@pytest.mark.parametrize("rows", [1, 16, 64, 300])
def test_rows_of_the_real_models(s: Sizes, rows: int) -> None:
    assert not faults(s, rows, device=torch.device("cuda"))
    assert not other_bits(s, rows, (1, 2, 7, 16, 17, 64), torch.device("cuda"))


def test_ops_are_called_as_their_twins() -> None:
    for op in (rope_table, project, output, output_low, output_columns):
        check_signature(op, getattr(twins, op.__name__))


def test_columns_of_two_ranks_have_the_bits_of_the_whole() -> None:
    """A group of heads each, then half of the outputs."""
    s = TINY._replace(groups=2)
    whole, _ = output_weights(s)
    o = randn(3, s.heads, s.dim, seed=10).bfloat16()
    expected = output(o, whole)
    low, columns = [], []
    for rank, heads in enumerate(o.chunk(2, 1)):
        wo_a = Fp8Weight(whole.wo_a.data[rank : rank + 1], whole.wo_a.scale[rank : rank + 1], s.groups * s.o_lora)
        low.append(output_low(heads.contiguous(), whole._replace(wo_a=wo_a)))
    for data, scale in zip(whole.wo_b.data.chunk(2), whole.wo_b.scale.chunk(2)):
        part = whole._replace(wo_b=Fp8Weight(data, scale, s.width))
        columns.append(output_columns(torch.cat(low, 1), part))
    assert torch.equal(torch.cat(columns, 1), expected)


def other_bits(s: Sizes, rows: int, counts: tuple[int, ...], device: torch.device) -> list[str]:
    """In which company rows have other bits."""
    w, weights = on(project_weights(s)[0], device), on(output_weights(s)[0], device)
    freqs_cis = rope_table(positions(rows).to(device), rope_frequencies(s.rope, 10_000.0, None).to(device))
    x, o = randn(rows, s.width, seed=9).bfloat16(), randn(rows, s.heads, s.dim, seed=10).bfloat16()
    x, o, order = x.to(device), o.to(device), randn(rows).argsort().to(device)
    one = torch.arange(rows, device=device)

    def results(chosen: Tensor) -> tuple[Tensor, ...]:
        return *project(x[chosen], freqs_cis[chosen], w), output(o[chosen], weights)

    together, found = results(one), []
    for count in [c for c in counts if c < rows]:
        if not all(torch.equal(whole[:count], few) for whole, few in zip(together, results(one[:count]))):
            found.append(f"{count} rows")
    if not all(torch.equal(whole[order], permuted) for whole, permuted in zip(together, results(order))):
        found.append("another order")
    return found


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    assert not other_bits(POCKET, 18, (1, 2, 7, 16, 17), CPU)
