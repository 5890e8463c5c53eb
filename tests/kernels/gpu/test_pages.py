"""Pages come out of a pool as `holdfast.kernels.gpu.pools` says that they are stored, and go back byte for byte."""

import pytest
import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu import jit
from holdfast.kernels.gpu.pages import gather_pages, scatter_pages
from holdfast.kernels.gpu.pools import pool_stride
from tests.kernels.gpu.layer import planes

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = [RowFormat(*f) for f in ((96, 32, "key"), (512, 64, "key"), (32, 0, "index"), (128, 0, "index"))]


def make_pool(fmt: RowFormat, per_page: int, num_pages: int) -> Tensor:
    return torch.randint(0, 256, (num_pages * per_page, pool_stride(fmt)), dtype=torch.uint8)


def stored_page(pool: Tensor, page: int, fmt: RowFormat, per_page: int) -> Tensor:
    rows = pool[page * per_page : (page + 1) * per_page]
    return torch.cat(planes(rows, fmt), 1) if fmt.kind == "index" else rows[:, : fmt.width]


def out_and_back(
    fmt: RowFormat, per_page: int, pages: list[int], num_pages: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What came out of pages of a pool and what should; another pool that took it in and how it should be."""
    pool, other = make_pool(fmt, per_page, num_pages), make_pool(fmt, per_page, num_pages)
    numbers = torch.tensor(pages, dtype=torch.int32, device=DEVICE)
    stored = gather_pages(pool.to(DEVICE), numbers, fmt, per_page)
    expected = torch.cat([*(stored_page(pool, page, fmt, per_page) for page in pages), pool.new_empty(0, fmt.width)])

    filled = other.to(DEVICE)
    scatter_pages(stored, numbers, fmt, per_page, filled)
    for page in pages:
        rows, width = slice(page * per_page, (page + 1) * per_page), fmt.width
        other[rows, :width] = pool[rows, :width]
    return stored.cpu(), expected, filled.cpu(), other


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.kind}-{fmt.dim}")
@pytest.mark.parametrize("per_page", [1, 2, 32, 65])
def test_pages_go_out_and_back(fmt: RowFormat, per_page: int) -> None:
    stored, expected, filled, pool = out_and_back(fmt, per_page, [3, 0, 4], 5)
    assert torch.equal(stored, expected) and torch.equal(filled, pool)


@pytest.mark.parametrize("fmt", FORMATS[::2], ids=lambda fmt: f"{fmt.kind}-{fmt.dim}")
@pytest.mark.parametrize("pages", [[], [2], list(range(19, -1, -1))], ids=len)
def test_any_number_of_pages(fmt: RowFormat, pages: list[int]) -> None:
    stored, expected, filled, pool = out_and_back(fmt, 2, pages, 20)
    assert torch.equal(stored, expected) and torch.equal(filled, pool)


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", FORMATS[1::2], ids=lambda fmt: f"{fmt.kind}-{fmt.dim}")
def test_pages_past_two_gigabytes(fmt: RowFormat) -> None:
    num_pages = (5 << 29) // (64 * fmt.width)
    stored, expected, filled, pool = out_and_back(fmt, 64, [num_pages - 1, 0, num_pages // 2], num_pages)
    assert torch.equal(stored, expected) and torch.equal(filled, pool)
