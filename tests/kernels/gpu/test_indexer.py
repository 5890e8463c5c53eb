"""Selection of entries against its twin in official numerics."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu import indexer, jit
from holdfast.kernels.indexer import select as select_ref
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows
from tests.kernels.gpu.layer import PAGE_TOKENS, Segment, device_rows, index_pool, make_rows, one_segment

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OFFICIAL = Rounding(official=True)
RATIO = 4


class Layer:
    """Queries, weights and keys with few values: products are exact in any order, and many scores are equal."""

    def __init__(self, rows: Rows, dim: int, heads: int):
        torch.manual_seed(dim)
        n, fmt = len(rows.positions), RowFormat(dim, 0, "index")
        self.rows = rows
        self.q = torch.randint(-2, 3, (n, heads, dim)).float()
        self.weights = torch.randint(-3, 4, (n, heads)).float()
        keys = torch.randint(-1, 2, (rows.pages.size * (PAGE_TOKENS // RATIO), dim)).float()
        self.pool, self.packed = fmt.round(keys), index_pool(keys, fmt, PAGE_TOKENS // RATIO)

    def expected(self, k: int) -> Tensor:
        return select_ref(self.q, self.weights, self.rows, self.pool, RATIO, k, num=OFFICIAL)

    def run(self, k: int, rows: Rows | None = None, own: slice = slice(None), padding: int = 0) -> Tensor:
        q = torch.nn.functional.pad(self.q[own].bfloat16(), (0, 0, 0, 0, 0, padding))
        weights = torch.nn.functional.pad(self.weights[own], (0, 0, 0, padding))
        step = device_rows(rows or self.rows, DEVICE, padding)
        return indexer.select(q.to(DEVICE), weights.to(DEVICE), step, self.packed.to(DEVICE), RATIO, k).long().cpu()


STEP = [Segment(0, 2), Segment(1535, 2, dropped=128), Segment(600, 3), Segment(2, 1)]


@pytest.mark.parametrize("dim,heads", [(32, 4), (128, 8)])
@pytest.mark.parametrize("k", [1, 16, 37, 352, 1024])
def test_select_equals_twin(k: int, dim: int, heads: int) -> None:
    layer = Layer(make_rows(STEP), dim, heads)
    assert torch.equal(layer.run(k), layer.expected(k))


def test_blocks_of_entries_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 8,192 entries, rows in parts, a row that sees just a block and one that sees one more."""
    layer = Layer(make_rows([Segment(8192 * 4 - 1, 1), Segment(8192 * 4 + 3, 1), Segment(40_000, 1)]), 32, 1)
    monkeypatch.setattr(indexer, "WORKSPACE_BYTES", 100_000)
    assert torch.equal(layer.run(512), layer.expected(512))


def test_a_row_selects_the_same_in_any_step() -> None:
    """In a chunk whose rows share keys, alone, and beside padding; also where sums round."""
    layer = Layer(make_rows([Segment(600, 66), Segment(700, 1)]), 32, 4)
    layer.q, layer.weights = torch.randn_like(layer.q).bfloat16().float(), torch.randn_like(layer.weights)
    whole = layer.run(16, padding=2)
    assert (whole[67:] == -1).all()
    for n in (0, 7, 64, 65):
        assert torch.equal(layer.run(16, one_segment(layer.rows, 0, n, n + 1), slice(n, n + 1)), whole[n : n + 1])
    assert torch.equal(layer.run(16, one_segment(layer.rows, 1, 0, 1), slice(66, 67)), whole[66:67])


@pytest.mark.gpu
@pytest.mark.parametrize("k", [512, 1024])
def test_select_at_full_shapes(k: int) -> None:
    layer = Layer(make_rows([Segment(131_072, 1), Segment(40_000, 70), Segment(1_000, 3)]), 128, 64)
    assert torch.equal(layer.run(k), layer.expected(k))
