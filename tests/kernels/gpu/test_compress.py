"""Pooling into packed entries and the rings behind it, against their twins in official numerics."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat
from holdfast.kernels.compress import CompressWeights
from holdfast.kernels.compress import block_rows as block_rows_ref
from holdfast.kernels.compress import complete_blocks as complete_blocks_ref
from holdfast.kernels.compress import store as store_ref
from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.compress import block_rows, complete_blocks, store
from holdfast.kernels.gpu.pools import pool_stride
from holdfast.kernels.quant import hadamard_matrix
from holdfast.kernels.rope import rope_frequencies
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows
from tests.kernels.gpu.layer import PAGE_TOKENS, Segment, device_rows, make_rows, one_segment, planes

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OFFICIAL = Rounding(official=True)


class Layer:
    """A compressor with random weights and rings; `index_dim` 0 for a layer without an indexer."""

    def __init__(self, rows: Rows, ratio: int, dim: int, rope: int, index_dim: int, hidden: int = 128):
        torch.manual_seed(dim + ratio)
        num_heads = 3 if index_dim else 0
        width = 2 * (dim + index_dim) if index_dim else dim
        self.rows, self.ratio, self.width = rows, ratio, width
        self.key, self.index = RowFormat(dim, rope, "key"), RowFormat(index_dim, 0, "index")
        self.w = CompressWeights(
            torch.randn(hidden, 2 * width + num_heads).bfloat16().float() / 8,
            torch.randn(ratio, width),
            torch.rand(dim) + 0.5,
            torch.rand(index_dim) + 0.5,
            hadamard_matrix(index_dim) if index_dim else torch.zeros(0, 0),
            rope_frequencies(rope, 160_000.0, None),
            ratio,
            bool(index_dim),
            0.125,
            True,
            1e-6,
        )
        length = (2 * ratio if index_dim else ratio) + 16
        self.ring = torch.randn(len(rows.slots), length, 2 * width)
        self.mixed = torch.randn(len(rows.positions), 2 * width)
        self.num_rows = rows.pages.size * (PAGE_TOKENS // ratio)

    def moved(self, w: CompressWeights) -> CompressWeights:
        held = [t.to(DEVICE) if isinstance(t, Tensor) else t for t in w]
        return CompressWeights._make(held)._replace(w_blocks=w.w_blocks.t().contiguous().bfloat16().to(DEVICE))

    def expected(self, w: CompressWeights) -> tuple[Tensor, Tensor]:
        pools = (
            torch.full((self.num_rows, self.key.dim), torch.nan),
            torch.full((self.num_rows, self.index.dim), torch.nan),
        )
        complete_blocks_ref(self.mixed, self.rows, self.ring, *pools, w, num=OFFICIAL)
        return pools

    def run(self, rows: Rows | None = None, own: slice = slice(None), ring: Tensor | None = None, padding: int = 0):
        """Packed pools, all 0xFF where nothing was written."""
        pool = torch.full((self.num_rows, pool_stride(self.key)), 0xFF, dtype=torch.uint8, device=DEVICE)
        index_pool = torch.full((self.num_rows, self.index.width), 0xFF, dtype=torch.uint8, device=DEVICE)
        mixed = torch.nn.functional.pad(self.mixed[own], (0, 0, 0, padding)).to(DEVICE)
        ring = (self.ring if ring is None else ring).to(DEVICE)
        step = device_rows(rows or self.rows, DEVICE, padding)
        complete_blocks(mixed, step, ring, pool, index_pool, self.moved(self.w))
        per_page = PAGE_TOKENS // self.ratio
        pages = index_pool.cpu().split(per_page) if self.index.dim else [index_pool.cpu()]
        stored = [torch.cat(planes(page, self.index), 1) for page in pages] if self.index.dim else pages
        return pool[:, : self.key.width].cpu(), torch.cat(stored)


POCKET = {"dim": 96, "rope": 32}
TINY = {"dim": 128, "rope": 64}
STEP = [Segment(0, 9), Segment(259, 2, dropped=128), Segment(6, 1), Segment(3, 1), Segment(127, 1), Segment(120, 8)]


def check_close(packed: Tensor, expected: Tensor, fmt: RowFormat) -> None:
    """Equal but for a few channels, by one step.

    Sums in another order may round to the neighbouring bf16, and that to the neighbouring code.
    """
    written = ~expected[:, 0].isnan()
    assert torch.equal(written, (packed != 0xFF).any(1))
    assert written.any()
    values, wanted = fmt.unpack(packed[written].contiguous()), expected[written]
    different = values != wanted
    assert different.float().mean() < 0.02
    torch.testing.assert_close(
        values, wanted, rtol=0.5 if fmt.kind == "index" else 0.13, atol=0.3 if fmt.kind == "index" else 0.01
    )


@pytest.mark.parametrize("shape,ratio,index_dim", [(POCKET, 4, 32), (TINY, 4, 128), (POCKET, 128, 0), (TINY, 128, 0)])
def test_complete_blocks_equals_twin(shape: dict[str, int], ratio: int, index_dim: int) -> None:
    layer = Layer(make_rows(STEP), ratio, index_dim=index_dim, **shape)
    keys, index_keys = layer.expected(layer.w)
    packed, index_packed = layer.run()
    check_close(packed, keys, layer.key)
    if index_dim:
        check_close(index_packed, index_keys, layer.index)


@pytest.mark.parametrize("ratio,index_dim", [(4, 32), (128, 0)])
def test_rows_of_a_pinned_head_are_neither_rotated_nor_rounded(ratio: int, index_dim: int) -> None:
    layer = Layer(make_rows(STEP), ratio, index_dim=index_dim, **POCKET)
    w = layer.w._replace(freqs=torch.zeros_like(layer.w.freqs), hadamard=torch.eye(index_dim), rounds_rows=False)
    keys, index_keys = layer.expected(w)
    pools = torch.full(keys.shape, torch.nan, device=DEVICE), torch.full(index_keys.shape, torch.nan, device=DEVICE)
    complete_blocks(
        layer.mixed.to(DEVICE), device_rows(layer.rows, DEVICE), layer.ring.to(DEVICE), *pools, layer.moved(w)
    )
    torch.testing.assert_close(pools[0].cpu(), keys, rtol=2.0**-7, atol=1e-5, equal_nan=True)  # a bf16 ulp
    torch.testing.assert_close(pools[1].cpu(), index_keys, rtol=2.0**-7, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("ratio,index_dim", [(4, 32), (128, 0)])
def test_a_block_has_the_same_bytes_however_its_rows_came(ratio: int, index_dim: int) -> None:
    """In one chunk, row by row with the ring in between, and beside padding of a captured graph."""
    layer = Layer(make_rows([Segment(1, 7), Segment(123, 5)]), ratio, index_dim=index_dim, **POCKET)
    whole = layer.run(padding=2)
    ring = layer.ring.clone()
    together = [torch.full_like(pool, 0xFF) for pool in whole]
    for segment, (start, end) in enumerate(zip(layer.rows.starts[:-1], layer.rows.starts[1:])):
        for n in range(start, end):
            row = one_segment(layer.rows, segment, n - start, n - start + 1)
            for pool, part in zip(together, layer.run(row, slice(n, n + 1), ring)):
                written = (part != 0xFF).any(1)
                pool[written] = part[written]
            store_ref(row, (layer.mixed[n : n + 1], ring), num=OFFICIAL)
    for pool, wanted in zip(together, whole):
        assert torch.equal(pool, wanted)


def test_block_rows_equals_twin() -> None:
    layer = Layer(make_rows([Segment(2, 5), Segment(0, 2)]), 4, index_dim=32, **POCKET)
    x = torch.randn(7, 128).bfloat16()
    mixed, head_weights = block_rows_ref(x.float(), layer.rows, layer.w, num=OFFICIAL)
    got, got_weights = block_rows(x.to(DEVICE), device_rows(layer.rows, DEVICE), layer.moved(layer.w))
    torch.testing.assert_close(got.cpu(), mixed, rtol=1e-5, atol=1e-5)  # sums in another order
    torch.testing.assert_close(got_weights.cpu(), head_weights, rtol=2.0**-7, atol=0)  # and then rounded to bf16


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_store_equals_twin(num_pairs: int) -> None:
    """Of a window row and of block rows, each into a ring of another length."""
    rows = make_rows([Segment(7, 30), Segment(21, 1), Segment(40, 20), Segment(5, 21)])
    ours, theirs = [], []
    for dtype, width, length in [(torch.bfloat16, 96, 20), (torch.float32, 1030, 24)][:num_pairs]:
        source, ring = torch.randn(72, width).to(dtype), torch.zeros(4, length, width, dtype=dtype)
        theirs.append((source, ring.clone()))
        ours.append((torch.nn.functional.pad(source, (0, 0, 0, 3), value=torch.nan).to(DEVICE), ring.to(DEVICE)))
    store_ref(rows, *theirs, num=OFFICIAL)
    store(device_rows(rows, DEVICE, 3), *ours)
    assert all(torch.equal(kept.cpu(), expected) for (_, kept), (_, expected) in zip(ours, theirs))


@pytest.mark.gpu
@pytest.mark.parametrize("ratio,index_dim", [(4, 128), (128, 0)])
def test_complete_blocks_at_full_shapes(ratio: int, index_dim: int) -> None:
    layer = Layer(make_rows([Segment(1_000_000 * 4, 300), Segment(0, 128)]), ratio, 512, 64, index_dim)
    keys, index_keys = layer.expected(layer.w)
    packed, index_packed = layer.run()
    check_close(packed, keys, layer.key)
    if index_dim:
        check_close(index_packed, index_keys, layer.index)
