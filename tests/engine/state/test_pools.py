"""Both kinds of pool hold the same stored rows: placed rows come back byte for byte, other pages stay."""

import pytest
import torch

from holdfast.engine.state.packed_pool import PackedPool
from holdfast.engine.state.pools import FloatPool, Pool
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu import jit

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

KEY, INDEX = RowFormat(96, 32, "key"), RowFormat(32, 0, "index")
PER_PAGE, NUM_PAGES = 8, 5


def make(kind: str, fmt: RowFormat) -> Pool:
    if kind == "float":
        return FloatPool("rows", fmt, PER_PAGE, NUM_PAGES)
    return PackedPool("rows", fmt, PER_PAGE, NUM_PAGES, torch.device("cpu"))


def stored(fmt: RowFormat, count: int, seed: int = 0) -> torch.Tensor:
    """Rounded rows: packing rounds the largest value, which may give the next packing another scale."""
    return fmt.pack(fmt.round(torch.randn(count, fmt.dim, generator=torch.Generator().manual_seed(seed)) * 3))


@pytest.mark.parametrize("fmt", [KEY, INDEX])
@pytest.mark.parametrize("kind", ["float", "packed"])
def test_placed_pages_come_back_and_touch_no_other(kind: str, fmt: RowFormat) -> None:
    pool, rows = make(kind, fmt), stored(fmt, 2 * PER_PAGE)
    others = {page: pool.page(page).clone() for page in (0, 2, 4)}
    pool.place([3, 1], rows)
    for page, expected in zip((3, 1), rows.split(PER_PAGE)):
        for count in (0, 1, PER_PAGE):
            assert torch.equal(pool.pack(pool.cut(page, count)), expected[:count])
    assert all(torch.equal(pool.page(page), before) for page, before in others.items())


@pytest.mark.parametrize("fmt", [KEY, INDEX])
@pytest.mark.parametrize("kind", ["float", "packed"])
@pytest.mark.parametrize("count", [1, PER_PAGE - 1, PER_PAGE])
def test_first_rows_of_a_page(kind: str, fmt: RowFormat, count: int) -> None:
    pool, old, new = make(kind, fmt), stored(fmt, PER_PAGE), stored(fmt, count, seed=1)
    pool.place([2], old)
    pool.place_first(2, new)
    assert torch.equal(pool.pack(pool.cut(2, PER_PAGE)), torch.cat((new, old[count:])))


@pytest.mark.parametrize("fmt", [KEY, INDEX])
@pytest.mark.parametrize("kind", ["float", "packed"])
def test_a_cut_is_a_copy_and_written_values_are_those_that_are_stored(kind: str, fmt: RowFormat) -> None:
    pool, rows = make(kind, fmt), stored(fmt, PER_PAGE)
    cut = pool.cut(1, PER_PAGE)
    pool.write(1, fmt.unpack(rows))
    assert torch.equal(pool.pack(pool.cut(1, PER_PAGE)), rows)
    assert not cut.any()
