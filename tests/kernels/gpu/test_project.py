"""Products around attention against their torch twins in official numerics."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kernels import project as twins
from kernels.dispatch import check_signature
from kernels.gpu import jit
from kernels.gpu.project import output, project, rope_table
from kernels.gpu.weights import Fp8Weight, fp8_weight
from kernels.project import OutputWeights, ProjectWeights
from kernels.quant import dequant_fp8_weight, hadamard_matrix, pack_fp8_weight
from kernels.rope import rope_frequencies
from kernels.rounding import Rounding

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

OFFICIAL = Rounding(official=True)
CPU = torch.device("cpu")
# Sums in another order round to the other side now and then: one ulp of bf16, which may move a rounded block of what follows by an
# e4m3 step (2^-3 at most) of one of its many terms.
TOLERANCE = 2**-6
# Index queries end on the e2m1 grid, where an ulp may become a step of a quarter; so may a window row's e4m3 channel by an eighth.
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


def close(got: Tensor, expected: Tensor, few: float = 0.0) -> None:
    """Within the tolerance, but for a few values that are within a step of a coarse grid; on a CPU nearly all are equal."""
    assert got.shape == expected.shape
    if not expected.numel():
        return
    assert got.is_cuda or (got.bfloat16().float() != expected).float().mean() <= FEW
    error, most = (got.float().cpu() - expected).abs(), expected.abs().max()
    off = (error > TOLERANCE * (expected.abs() + most / 4)).float().mean()
    assert off <= few and (error <= most / 3).all(), (off, error.max(), most)


@pytest.fixture(autouse=True)
def poisoned_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wrote is NaN."""
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        room = empty(*shape, **options)
        return room.fill_(torch.nan if room.is_floating_point() else -7)

    monkeypatch.setattr(torch, "empty", poisoned)


def positions(rows: int) -> Tensor:
    """Near and far: float32 angles would be off by a radian at a million tokens."""
    return torch.arange(rows) * 7919 % 1_000_000


def agree(s: Sizes, rows: int, rounds_rows: bool = True, device: torch.device = CPU) -> None:
    """The ops give for these rows what their twins give."""
    freqs, at = rope_frequencies(s.rope, 10_000.0, None), positions(rows)
    turns, their_turns = rope_table(at.to(device), freqs.to(device)), twins.rope_table(at.numpy(), freqs, num=OFFICIAL)
    assert turns.dtype == torch.float32
    torch.testing.assert_close(turns.cpu(), torch.view_as_real(their_turns), rtol=0, atol=1e-7)

    ours, theirs = project_weights(s, rounds_rows)
    x = randn(rows, s.width, seed=9).bfloat16()
    expected = twins.project(x.float(), their_turns, theirs, num=OFFICIAL)
    for got, values in zip(project(x.to(device), turns, on(ours, device)), expected):
        assert got.dtype == torch.bfloat16
        close(got, values, FEW)

    weights, their_weights = output_weights(s)
    o = randn(rows, s.heads, s.dim, seed=10).bfloat16()
    values = twins.output(o.float(), their_turns, their_weights, num=OFFICIAL)
    got = output(o.to(device), turns, on(weights, device))
    assert got.dtype == torch.bfloat16
    close(got, values)


@pytest.mark.parametrize("rounds_rows", [True, False])
def test_sizes_of_the_embedded_model(rounds_rows: bool) -> None:
    agree(POCKET, 5, rounds_rows)


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_rows_get_what_the_twin_gives(rows: int) -> None:
    agree(TINY, rows)


def test_a_layer_without_an_indexer_and_with_an_odd_number_of_heads() -> None:
    agree(WITHOUT_INDEXER, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("s", [FLASH, PRO])
@pytest.mark.parametrize("rows", [1, 16, 64, 300])
def test_rows_of_the_real_models(s: Sizes, rows: int) -> None:
    agree(s, rows, device=torch.device("cuda"))
    same_bits(s, rows, (1, 2, 7, 16, 17, 64), torch.device("cuda"))


def test_ops_are_called_as_their_twins() -> None:
    for op in (rope_table, project, output):
        check_signature(op, getattr(twins, op.__name__))


def test_parts_of_two_ranks_add_up_to_the_whole() -> None:
    """A group each; they are not rounded before."""
    s = TINY._replace(groups=2)
    weights, theirs = output_weights(s)
    turns = rope_table(positions(3), rope_frequencies(s.rope, 10_000.0, None))
    o = randn(3, s.heads, s.dim, seed=10).bfloat16()
    total = torch.zeros(3, s.width)
    for rank, heads in enumerate(o.chunk(2, 1)):
        columns, blocks = weights.wo_b.data.chunk(2, 1)[rank], weights.wo_b.scale.chunk(2, 1)[rank]
        wo_a = Fp8Weight(*(x[rank : rank + 1] for x in weights.wo_a))
        wo_b = Fp8Weight(columns.contiguous(), blocks.contiguous())
        part = output(heads.contiguous(), turns, weights._replace(wo_a=wo_a, wo_b=wo_b, is_partial=True))
        assert part.dtype == torch.float32
        total += part
    close(total, twins.output(o.float(), torch.view_as_complex(turns), theirs, num=OFFICIAL))


def same_bits(s: Sizes, rows: int, counts: tuple[int, ...], device: torch.device) -> None:
    w, weights = on(project_weights(s)[0], device), on(output_weights(s)[0], device)
    turns = rope_table(positions(rows).to(device), rope_frequencies(s.rope, 10_000.0, None).to(device))
    x, o = randn(rows, s.width, seed=9).bfloat16(), randn(rows, s.heads, s.dim, seed=10).bfloat16()
    x, o, order = x.to(device), o.to(device), randn(rows).argsort().to(device)
    one = torch.arange(rows, device=device)

    def results(chosen: Tensor) -> tuple[Tensor, ...]:
        return *project(x[chosen], turns[chosen], w), output(o[chosen], turns[chosen], weights)

    together = results(one)
    for count in [c for c in counts if c < rows]:
        for whole, few in zip(together, results(one[:count])):
            assert torch.equal(whole[:count], few), count
    for whole, permuted in zip(together, results(order)):
        assert torch.equal(whole[order], permuted)


def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    same_bits(POCKET, 18, (1, 2, 7, 16, 17), CPU)
