"""Packed rows in the page pool, padded so that kernels load 16 bytes at a time.

A key row is its e4m3 channels, its bf16 rope channels, its e8m0 scales (`RowFormat`), then padding to a multiple of 16 bytes: 592 bytes
at head_dim 512. The index keys of a page of n keys are n rows of codes, then n rows of scales: a scan reads whole runs. On disk rows are
as `RowFormat` packs them; `to_stored` and `from_stored` convert.
"""

from torch import Tensor

from kernels.cache import RowFormat


def key_stride(fmt: RowFormat) -> int:
    """Bytes from one key row of a pool to the next."""
    return -(-fmt.width // 16) * 16


def keys_to_stored(rows: Tensor, fmt: RowFormat) -> Tensor:
    """Pool rows uint8 [n, key_stride] -> stored rows uint8 [n, width]."""
    return rows[:, : fmt.width]


def index_keys_to_stored(page: Tensor, fmt: RowFormat) -> Tensor:
    """One page of index keys uint8 [n, width], codes before scales -> stored rows uint8 [n, width]."""
    codes, scales = _planes(page, fmt)
    out = page.new_empty(page.shape)
    out[:, : fmt.dim // 2], out[:, fmt.dim // 2 :] = codes, scales
    return out


def index_keys_from_stored(stored: Tensor, fmt: RowFormat, out: Tensor) -> None:
    """Stored rows uint8 [n, width] -> one page of a pool."""
    codes, scales = _planes(out, fmt)
    codes.copy_(stored[:, : fmt.dim // 2])
    scales.copy_(stored[:, fmt.dim // 2 :])


def _planes(page: Tensor, fmt: RowFormat) -> tuple[Tensor, Tensor]:
    count, flat = len(page), page.view(-1)
    split = count * (fmt.dim // 2)
    return flat[:split].view(count, -1), flat[split:].view(count, -1)
