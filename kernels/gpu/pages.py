"""Pages between a pool and a contiguous staging buffer, where rows have their stored layout.

Main memory is then reached with one copy instead of many small ones. `pools.py` says how the two layouts differ.
"""

import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu.jit import kernel, launch, tl
from holdfast.kernels.gpu.pools import pool_stride

PROGRAMS = 8  # few, so that decoding beside it keeps its processors; they move more than the bus does
COUNT = 4096


def gather_pages(pool: Tensor, pages: Tensor, fmt: RowFormat, per_page: int) -> Tensor:
    """Stored rows uint8 [P * per_page, width] of pages int32 [P] of a pool of keys or index keys."""
    stored = torch.empty(len(pages) * per_page, fmt.width, dtype=torch.uint8, device=pool.device)
    _copy(pool, pages, fmt, per_page, stored, to_pool=False)
    return stored


def scatter_pages(stored: Tensor, pages: Tensor, fmt: RowFormat, per_page: int, pool: Tensor) -> None:
    """Fill pages int32 [P], each given once, with stored rows uint8 [P * per_page, width].

    Padding of pool rows stays as it is.
    """
    assert stored.shape == (len(pages) * per_page, fmt.width), (stored.shape, pages.shape, per_page, fmt)
    _copy(pool, pages, fmt, per_page, stored, to_pool=True)


def _copy(pool: Tensor, pages: Tensor, fmt: RowFormat, per_page: int, stored: Tensor, to_pool: bool) -> None:
    is_index = fmt.kind == "index"
    codes_bytes = fmt.dim // 2 if is_index else fmt.width
    stride = codes_bytes if is_index else pool_stride(fmt)  # from a row's codes to the next row's
    assert pool.shape[1] == pool_stride(fmt), (pool.shape, fmt)
    word = next(
        t for t in (torch.int64, torch.int32, torch.uint8) if not any(n % t.itemsize for n in (codes_bytes, fmt.width))
    )
    per_page_blocks = -(-per_page * (fmt.width // word.itemsize) // COUNT)
    launch(
        copy_pages,
        (min(PROGRAMS, len(pages) * per_page_blocks),),
        pool.view(word),
        pages,
        stored.view(word),
        len(pages),
        per_page,
        pool.shape[1] // word.itemsize,
        WIDTH=fmt.width // word.itemsize,
        CODES=codes_bytes // word.itemsize,
        STRIDE=stride // word.itemsize,
        TO_POOL=to_pool,
        COUNT=COUNT,
        num_warps=8,
    )


@kernel
def copy_pages(
    pool,
    pages,
    stored,
    num_pages,
    per_page,
    row_words,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    STRIDE: tl.constexpr,
    TO_POOL: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Copy rows of pages; all sizes are in words of the pool.

    A page of a pool has its rows' codes STRIDE apart, then the rest of each row.
    """
    page_blocks = tl.cdiv(per_page * WIDTH, COUNT)
    for part in range(tl.program_id(0), num_pages * page_blocks, tl.num_programs(0)):
        n = part // page_blocks
        at = part % page_blocks * COUNT + tl.arange(0, COUNT)
        row, column = at // WIDTH, at % WIDTH
        is_code = column < CODES
        place = tl.where(is_code, row * STRIDE + column, per_page * STRIDE + row * (WIDTH - CODES) + column - CODES)
        in_pool = pool + tl.load(pages + n).to(tl.int64) * per_page * row_words + place
        in_stored = stored + tl.cast(n, tl.int64) * per_page * WIDTH + at
        if TO_POOL:
            tl.store(in_pool, tl.load(in_stored, mask=at < per_page * WIDTH), mask=at < per_page * WIDTH)
        else:
            tl.store(in_stored, tl.load(in_pool, mask=at < per_page * WIDTH), mask=at < per_page * WIDTH)
