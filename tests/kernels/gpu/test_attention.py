"""Attention over rings and packed pools against its twin in official numerics."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels.attention import AttendWeights
from holdfast.kernels.attention import attend as attend_ref
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.attention import attend
from holdfast.kernels.gpu.project import rope_table
from holdfast.kernels.rope import rope_frequencies
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows
from tests.kernels.gpu.layer import Segment, device_rows, key_pool, make_rows, one_segment

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OFFICIAL = Rounding(official=True)
# the largest score is that of a split, so probabilities round elsewhere: a bf16 ulp of each, and one of the output
TOLERANCE = {"rtol": 2.0**-7, "atol": 2.0**-7}


class Layer:
    """Random queries and state for rows; pool rows that no row may see are NaN."""

    def __init__(self, rows: Rows, ratio: int, dim: int, rope: int, heads: int, window: int, num_chosen: int = 0):
        torch.manual_seed(len(rows.positions) + dim)
        n, fmt = len(rows.positions), RowFormat(dim, rope, "key")
        self.rows, self.w = rows, AttendWeights(torch.randn(heads), dim**-0.5, window, ratio)
        self.q, self.kv = torch.randn(n, heads, dim).bfloat16(), fmt.round(torch.randn(n, dim))
        self.ring = fmt.round(torch.randn(len(rows.slots) * (window + 16), dim)).view(len(rows.slots), window + 16, dim)
        self.freqs_cis = rope_table(torch.from_numpy(rows.positions), rope_frequencies(rope, 10_000.0, None))
        self.chosen = self.pool = None
        self.packed = torch.empty(0, dim, dtype=torch.uint8)
        if ratio:
            per_page = rows.page_tokens // ratio
            self.pool = fmt.round(torch.randn(rows.pages.size * per_page, dim))
            self.packed = key_pool(self.pool, fmt)
            for segment, end in enumerate(rows.starts[1:]):
                visible = (rows.positions[end - 1] + 1) // ratio - rows.dropped[segment] // ratio
                places = (rows.pages[segment][:, None] * per_page + torch.arange(per_page).numpy()).ravel()
                self.packed[places[visible:]] = 0xFF
                self.pool[places[visible:]] = 0.0
        if num_chosen:
            self.chosen = choose(rows, ratio, num_chosen)

    def expected(self) -> Tensor:
        pool = torch.zeros(0) if self.pool is None else self.pool
        freqs_cis = torch.view_as_complex(self.freqs_cis)
        return attend_ref(
            self.q.float(), self.kv, freqs_cis, self.rows, self.ring, pool, self.chosen, self.w, num=OFFICIAL
        )

    def run(
        self, rows: Rows | None = None, own: slice = slice(None), ring: Tensor | None = None, padding: int = 0
    ) -> Tensor:
        """o of some of the rows, as a separate step."""
        rows = rows or self.rows
        pad = (0, 0) * 2 + (0, padding)
        q = torch.nn.functional.pad(self.q[own], pad, value=float("nan"))
        kv = torch.nn.functional.pad(self.kv[own].bfloat16(), pad[2:], value=float("nan"))
        chosen = None if self.chosen is None else self.chosen[own].int()
        if padding and chosen is not None:
            chosen = torch.nn.functional.pad(chosen, pad[2:], value=-1)
        ring = (self.ring if ring is None else ring).bfloat16()
        w = self.w._replace(sink=self.w.sink.to(DEVICE))
        freqs_cis = torch.nn.functional.pad(self.freqs_cis[own], pad)
        moved = [t if t is None else t.to(DEVICE) for t in (q, kv, freqs_cis, ring, self.packed, chosen)]
        o = attend(*moved[:3], device_rows(rows, DEVICE, padding), *moved[3:], w)
        return o.float().cpu()


def choose(rows: Rows, ratio: int, k: int) -> Tensor:
    """k entries of each row at random, in order, or all of them."""
    per_page, chosen = rows.page_tokens // ratio, torch.full((len(rows.positions), k), -1)
    for segment, (start, end) in enumerate(zip(rows.starts[:-1], rows.starts[1:])):
        for n in range(start, end):
            visible = int((rows.positions[n] + 1) // ratio - rows.dropped[segment] // ratio)
            entry = torch.randperm(visible)[:k].sort().values.numpy()
            place = rows.pages[segment, entry // per_page] * per_page + entry % per_page
            chosen[n, : len(place)] = torch.from_numpy(place)
    return chosen


POCKET = {"dim": 96, "rope": 32, "heads": 4, "window": 20}
TINY = {"dim": 128, "rope": 64, "heads": 8, "window": 64}
STEP = [Segment(0, 2), Segment(255, 3, dropped=128), Segment(63, 1), Segment(3, 1)]


@pytest.mark.parametrize("shape", [POCKET, TINY], ids=["pocket", "tiny"])
@pytest.mark.parametrize(
    "ratio,num_chosen", [(0, 0), (4, 0), (4, 5), (4, 130), (128, 0)], ids=["window", "all", "few", "many", "blocks"]
)
def test_attend_equals_twin(shape: dict[str, int], ratio: int, num_chosen: int) -> None:
    layer = Layer(make_rows(STEP), ratio, num_chosen=num_chosen, **shape)
    expected = layer.expected()
    torch.testing.assert_close(layer.run(), expected, **TOLERANCE)


@pytest.mark.parametrize("ratio,num_chosen", [(0, 0), (4, 5), (4, 0), (128, 0)])
def test_a_row_has_the_same_bits_in_any_step(ratio: int, num_chosen: int) -> None:
    """In a prefill chunk, alone, in a permuted batch, and beside padding of a captured graph."""
    segments = [Segment(126, 4), Segment(1, 1)]
    layer = Layer(make_rows(segments), ratio, num_chosen=num_chosen, **POCKET)
    whole = layer.run(padding=3)
    assert whole.isfinite().all()
    whole = whole[:5]
    assert torch.equal(layer.run(), whole)
    ring = layer.ring.clone()
    for n in range(4):
        assert torch.equal(layer.run(one_segment(layer.rows, 0, n, n + 1), slice(n, n + 1), ring), whole[n : n + 1]), n
        ring[layer.rows.slots[0], (126 + n) % ring.shape[1]] = layer.kv[n]


def test_all_entries_as_chosen_are_the_same_bits() -> None:
    """So a graph that always selects continues what a step without selection began."""
    rows = make_rows([Segment(530, 1)])
    every = Layer(rows, 4, num_chosen=150, **POCKET)
    chosen = every.run()
    every.chosen = None
    assert torch.equal(every.run(), chosen)


def test_bits_do_not_depend_on_the_number_of_rows() -> None:
    layer = Layer(make_rows([Segment(17, 65)]), 0, 64, 0, heads=2, window=8)
    whole = layer.run()
    for n in (1, 2, 7, 16, 17, 64):
        assert torch.equal(layer.run(one_segment(layer.rows, 0, 0, n), slice(0, n)), whole[:n]), n


@pytest.mark.gpu
@pytest.mark.parametrize("ratio,num_chosen", [(0, 0), (4, 512), (4, 1024), (128, 0)])
@pytest.mark.parametrize("num_heads", [64, 128])
def test_attend_at_full_shapes(ratio: int, num_chosen: int, num_heads: int) -> None:
    rows = make_rows([Segment(9_000, 1), Segment(5_000, 100), Segment(0, 70)])
    layer = Layer(rows, ratio, 512, 64, num_heads, window=128, num_chosen=num_chosen)
    out = layer.run()
    torch.testing.assert_close(out, layer.expected(), **TOLERANCE)
    assert torch.equal(layer.run(one_segment(rows, 0, 0, 1), slice(0, 1)), out[:1])
