"""Compiled siblings of the packing in holdfast.kernels.quant: float32 rows to stored rows and back, in one pass."""

import numpy as np
import torch

from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import (
    FOUR,
    FP4_INVERSE,
    FP4_LEAST,
    FP8_INVERSE,
    FP8_LEAST,
    FP8_NORMAL,
    ONE,
    TWO,
    largest,
    pow2_scale,
    round_bf16,
    round_e2m1,
    round_e4m3,
)
from holdfast.kernels.cpu.vector import as_int
from holdfast.kernels.quant import from_e8m0, unpack_fp4

_CODES = torch.arange(256, dtype=torch.uint8)
E4M3 = _CODES.view(torch.float8_e4m3fn).float().numpy()
E8M0 = from_e8m0(_CODES).float().numpy()
E2M1 = unpack_fp4(_CODES.unsqueeze(1)).float().numpy()  # [256, 2]: both nibbles of a byte


def pack_keys(rows: np.ndarray, rope: int, out: np.ndarray) -> None:
    """rows float32 [n, nope + rope] -> out uint8 [n, width]; see `holdfast.kernels.quant.pack_kv_rows`."""
    _pack_keys(rows, rope, out)


def pack_index_keys(rows: np.ndarray, out: np.ndarray) -> None:
    """rows float32 [n, dim] -> out uint8 [n, dim / 2 + dim / 32]; see `holdfast.kernels.quant.pack_index_rows`."""
    _pack_index_keys(rows, out)


def unpack_keys(packed: np.ndarray, rope: int, out: np.ndarray) -> None:
    """packed uint8 [n, width] -> out float32 [n, nope + rope]; see `holdfast.kernels.quant.unpack_kv_rows`."""
    _unpack_keys(packed, rope, E4M3, E8M0, out.view(np.uint32), out)


def unpack_index_keys(packed: np.ndarray, out: np.ndarray) -> None:
    """packed uint8 [n, dim / 2 + dim / 32] -> out float32 [n, dim]; see `holdfast.kernels.quant.unpack_index_rows`."""
    _unpack_index_keys(packed, E2M1, E8M0, out)


@inlined
def _exponent(scale):
    """The byte of a power of two."""
    return np.uint8((as_int(scale) >> np.int32(23)) & np.int32(255))


@inlined
def _e4m3_code(x):
    """The byte of the nearest e4m3 value, with the sign of x also where that is zero."""
    a = round_e4m3(abs(x))
    if a < FP8_NORMAL:
        code = np.int32(a * np.float32(512))
    else:
        bits = as_int(a)
        code = (((bits >> np.int32(23)) - np.int32(120)) << np.int32(3)) | ((bits >> np.int32(20)) & np.int32(7))
    return np.uint8(code | (np.int32(128) if as_int(x) < 0 else np.int32(0)))


@inlined
def _e2m1_code(x):
    """The four bits of a value on the e2m1 grid."""
    a = abs(x)
    code = np.int32(a * TWO) if a < TWO else (np.int32(a + TWO) if a < FOUR else np.int32(a / TWO + FOUR))
    return code | (np.int32(8) if as_int(x) < 0 else np.int32(0))


@kernel
def _pack_keys(rows, rope, out):
    nope = rows.shape[1] - rope
    for row in range(len(rows)):
        out[row, nope + 2 * rope :] = 0
        for block in range(nope // 64):
            values = rows[row, block * 64 : block * 64 + 64]
            scale = pow2_scale(max(largest(values), FP8_LEAST), FP8_INVERSE)
            inverse = ONE / scale
            for c in range(64):
                out[row, block * 64 + c] = _e4m3_code(values[c] * inverse)
            out[row, nope + 2 * rope + block] = _exponent(scale)
        for c in range(rope):
            bits = as_int(round_bf16(rows[row, nope + c]))
            out[row, nope + 2 * c] = np.uint8((bits >> np.int32(16)) & np.int32(255))
            out[row, nope + 2 * c + 1] = np.uint8((bits >> np.int32(24)) & np.int32(255))


@kernel
def _pack_index_keys(rows, out):
    dim = rows.shape[1]
    for row in range(len(rows)):
        for block in range(dim // 32):
            values = rows[row, block * 32 : block * 32 + 32]
            scale = pow2_scale(max(largest(values), FP4_LEAST), FP4_INVERSE)
            for c in range(0, 32, 2):
                low, high = _e2m1_code(round_e2m1(values[c] / scale)), _e2m1_code(round_e2m1(values[c + 1] / scale))
                out[row, block * 16 + c // 2] = np.uint8(low | (high << np.int32(4)))
            out[row, dim // 2 + block] = _exponent(scale)


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
