"""Compressed rows in pages as a GPU holds them: packed, and padded as its kernels want them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.engine.state.pools import Pool
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.gpu.pages import gather_pages, scatter_pages
from holdfast.kernels.gpu.pools import pool_stride


class PackedPool(Pool):
    """uint8 rows on a device (`holdfast.kernels.gpu.pools`)."""

    def __init__(self, kind: str, fmt: RowFormat, per_page: int, num_pages: int, device: torch.device):
        super().__init__(kind, fmt, per_page)
        self.rows = torch.zeros(num_pages * per_page, pool_stride(fmt), dtype=torch.uint8, device=device)

    def cut(self, page: int, count: int) -> Tensor:
        return gather_pages(self.rows, self._numbers([page]), self.fmt, self.per_page)[:count].cpu()

    def pack(self, cut: Tensor) -> Tensor:
        return cut

    def place(self, pages: Sequence[int], stored: Tensor) -> None:
        on_device = stored.to(self.rows.device).contiguous()
        scatter_pages(on_device, self._numbers(pages), self.fmt, self.per_page, self.rows)

    def place_first(self, page: int, stored: Tensor) -> None:
        whole = self.cut(page, self.per_page)
        whole[: len(stored)] = stored
        self.place([page], whole)

    def write(self, page: int, values: Tensor) -> None:
        self.place([page], self.fmt.pack(values.cpu()))

    def _numbers(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int32, device=self.rows.device)
