"""Compressed rows in pages, as they lie in memory: one pool for each kind of row of a layer.

On a CPU rows are float32 that carry the rounding of their format: unpacking them in every step took longer than the
rest of it. On a GPU they stay packed (`packed_pool.py`). On disk both are the same bytes (`RowFormat`).
"""

import contextlib
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels.cache import RowFormat


class Pool(ABC):
    """Rows of one kind, `per_page` in each page. `rows` [num_pages * per_page, ...] is what the ops read and write."""

    rows: Tensor

    def __init__(self, kind: str, fmt: RowFormat, per_page: int):
        self.kind, self.fmt, self.per_page = kind, fmt, per_page

    def page(self, number: int) -> Tensor:
        """The rows of a page, where they are."""
        return self.rows[number * self.per_page : (number + 1) * self.per_page]

    @abstractmethod
    def cut(self, page: int, count: int) -> Tensor:
        """A copy of the first `count` rows of a page, in main memory, for `pack`."""

    @abstractmethod
    def pack(self, cut: Tensor) -> Tensor:
        """Stored rows [count, width]."""

    @abstractmethod
    def place(self, pages: Sequence[int], stored: Tensor) -> None:
        """Fill whole pages with stored rows [len(pages) * per_page, width]."""

    @abstractmethod
    def place_first(self, page: int, stored: Tensor) -> None:
        """Fill the first rows of a page with stored rows."""

    @abstractmethod
    def write(self, page: int, values: Tensor) -> None:
        """Fill a page with float32 rows [per_page, dim] that carry the rounding of the format."""


class FloatPool(Pool):
    """float32 rows in main memory."""

    def __init__(self, kind: str, fmt: RowFormat, per_page: int, num_pages: int):
        super().__init__(kind, fmt, per_page)
        self.rows = zeros(num_pages * per_page, fmt.dim)

    def cut(self, page: int, count: int) -> Tensor:
        return self.page(page)[:count].clone()

    def pack(self, cut: Tensor) -> Tensor:
        return self.fmt.pack(cut)

    def place(self, pages: Sequence[int], stored: Tensor) -> None:
        size, done = self.per_page, 0
        for first, count in _runs(pages):
            into = self.rows[first * size : (first + count) * size]
            self.fmt.unpack_into(stored[done * size : (done + count) * size], into)
            done += count

    def place_first(self, page: int, stored: Tensor) -> None:
        self.page(page)[: len(stored)] = self.fmt.unpack(stored)

    def write(self, page: int, values: Tensor) -> None:
        self.page(page)[:] = values


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first page, count) of every stretch of pages that follow one another."""
    start = 0
    for at in range(1, len(pages) + 1):
        if at == len(pages) or pages[at] != pages[at - 1] + 1:
            yield pages[start], at - start
            start = at


def zeros(*shape: int) -> Tensor:
    """float32 zeros that cost memory only once they are written, in large pages where the system has them.

    torch would touch every page.
    """
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(4 * count, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, np.float32, count).reshape(shape))
