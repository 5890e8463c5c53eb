"""Compiled siblings of the unpacking in kernels.quant: stored rows to float32 rows, by tables, in one pass."""

import numpy as np
import torch

from kernels.cpu.jit import kernel
from kernels.quant import from_e8m0, unpack_fp4

_CODES = torch.arange(256, dtype=torch.uint8)
E4M3 = _CODES.view(torch.float8_e4m3fn).float().numpy()
E8M0 = from_e8m0(_CODES).float().numpy()
E2M1 = unpack_fp4(_CODES.unsqueeze(1)).float().numpy()  # [256, 2]: both nibbles of a byte


def unpack_keys(packed: np.ndarray, rope: int, out: np.ndarray) -> None:
    """packed uint8 [n, width] -> out float32 [n, nope + rope]; see `kernels.quant.unpack_kv_rows`."""
    _unpack_keys(packed, rope, E4M3, E8M0, out.view(np.uint32), out)


def unpack_index_keys(packed: np.ndarray, out: np.ndarray) -> None:
    """packed uint8 [n, dim / 2 + dim / 32] -> out float32 [n, dim]; see `kernels.quant.unpack_index_rows`."""
    _unpack_index_keys(packed, E2M1, E8M0, out)


@kernel
def _unpack_keys(packed, rope, e4m3, e8m0, bits, out):
    nope = out.shape[1] - rope
    for row in range(len(packed)):
        for block in range(nope // 64):
            scale = e8m0[packed[row, nope + 2 * rope + block]]
            for c in range(block * 64, block * 64 + 64):
                out[row, c] = e4m3[packed[row, c]] * scale
        for c in range(rope):
            at = nope + 2 * c
            bits[row, nope + c] = np.uint32(packed[row, at]) << np.uint32(16) | np.uint32(
                packed[row, at + 1]
            ) << np.uint32(24)


@kernel
def _unpack_index_keys(packed, e2m1, e8m0, out):
    dim = out.shape[1]
    for row in range(len(packed)):
        for byte in range(dim // 2):
            scale = e8m0[packed[row, dim // 2 + byte // 16]]
            out[row, 2 * byte] = e2m1[packed[row, byte], 0] * scale
            out[row, 2 * byte + 1] = e2m1[packed[row, byte], 1] * scale
