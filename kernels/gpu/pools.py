"""Packed rows in the page pool, padded so that kernels load 16 bytes at a time.

A key row is its e4m3 channels, its bf16 rope channels, its e8m0 scales (`RowFormat`), then padding to a multiple of 16
bytes: 592 bytes at head_dim 512. The index keys of a page of n keys are n rows of codes, then n rows of scales: a scan
reads whole runs. On disk rows are as `RowFormat` packs them; `pages.py` converts.
"""

from holdfast.kernels.cache import RowFormat


def pool_stride(fmt: RowFormat) -> int:
    """Bytes from one row of a pool to the next; of index keys, whose codes and scales lie apart, what each takes."""
    return fmt.width if fmt.kind == "index" else -(-fmt.width // 16) * 16
