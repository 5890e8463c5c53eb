"""Stored rows: their layouts, and what rounding a layout means (V4 spec 3.1, 3.4).

`plain` stores float32 rows; `compact` and `official` store packed rows (e4m3 + bf16 + e8m0 for keys, e2m1 + e8m0 for
index keys). On a CPU live rows are float32 that carry the rounding: a decode step reads every index key and unpacking
them each time took longer than the rest of the step. A rounded row packs to the same bytes, losing nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.kernels import quant
from holdfast.kernels.cpu import cache as cpu_cache
from holdfast.kernels.cpu import jit


@dataclass(frozen=True)
class RowFormat:
    """How one row of `dim` channels is stored. `rope` trailing channels of a key stay bf16."""

    dim: int
    rope: int
    kind: str  # "float32", "key" or "index"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.kind == "float32" else torch.uint8

    @property
    def width(self) -> int:
        """Elements of `dtype` per row."""
        if self.kind == "float32":
            return self.dim
        if self.kind == "index":
            return self.dim // 2 + self.dim // 32
        nope = self.dim - self.rope
        return nope + 2 * self.rope + -(-(nope // 64) // 8) * 8

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def pack(self, rows: Tensor) -> Tensor:
        """float32 [n, dim] -> [n, width]."""
        if self.kind == "float32":
            return rows
        if jit.AVAILABLE and not rows.is_cuda:
            packed = torch.empty(len(rows), self.width, dtype=torch.uint8)
            if self.kind == "index":
                cpu_cache.pack_index_keys(rows.contiguous().numpy(), packed.numpy())
            else:
                cpu_cache.pack_keys(rows.contiguous().numpy(), self.rope, packed.numpy())
            return packed
        return quant.pack_index_rows(rows) if self.kind == "index" else quant.pack_kv_rows(rows, self.rope)

    def unpack_into(self, packed: Tensor, out: Tensor) -> None:
        """[n, width] -> out float32 [n, dim], contiguous; on a CPU in one pass, where kernels are compiled."""
        if self.kind == "float32" or out.is_cuda or not jit.AVAILABLE:
            out.copy_(self.unpack(packed))
        elif self.kind == "index":
            cpu_cache.unpack_index_keys(packed.numpy(), out.numpy())
        else:
            cpu_cache.unpack_keys(packed.numpy(), self.rope, out.numpy())

    def unpack(self, packed: Tensor) -> Tensor:
        """[n, width] -> float32 [n, dim]."""
        if self.kind == "float32":
            return packed
        if self.kind == "index":
            return quant.unpack_index_rows(packed, self.dim)
        return quant.unpack_kv_rows(packed, self.dim - self.rope, self.rope)

    def round(self, rows: Tensor) -> Tensor:
        """What a reader will see of these rows."""
        if self.kind == "float32":
            return rows
        return quant.round_kv_rows(rows, self.rope) if self.kind == "key" else quant.fake_fp4(rows)
