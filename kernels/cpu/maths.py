"""Scalar functions of the kernels: one exp for all, and the number formats of stored rows.

Written so that LLVM vectorises loops over them; a result does not depend on whether it did.
"""

import numpy as np

from holdfast.kernels.cpu.jit import inlined
from holdfast.kernels.cpu.vector import as_float, as_int, fma, sum_squares

ZERO, ONE, HALF, TWO = np.float32(0), np.float32(1), np.float32(0.5), np.float32(2)
INF = np.float32(np.inf)
# exp(x) = 2^n * exp(r): n the nearest integer to x / ln 2, ln 2 in two parts (Cody and Waite), exp(r) a Taylor series
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693145752), np.float32(1.42860677e-6)
TAYLOR = tuple(np.float32(1 / c) for c in (5040, 720, 120, 24, 6))
TO_INTEGER = np.float32(1.5 * 2**23)  # added and taken away again, it rounds to an integer, ties to even
LEAST, MOST = np.float32(-87), np.float32(88)  # below, exp counts as zero
FP8_INVERSE, FP8_LEAST, FP4_INVERSE, FP4_LEAST = (np.float32(x) for x in (1 / 448, 1e-4, 1 / 6, 6 * 2.0**-126))
FP8_NORMAL, FP8_TO_STEP = np.float32(2.0**-6), np.float32(1.5 * 2**14)  # the steps of e4m3 subnormals are 2^-9
FOUR, SIX = np.float32(4), np.float32(6)


@inlined
def exp(x):
    """float32, to two units in the last place."""
    clipped = min(max(x, LEAST), MOST)
    n = fma(clipped, LOG2_E, TO_INTEGER) - TO_INTEGER
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, clipped))
    p = TAYLOR[0]
    p = fma(p, r, TAYLOR[1])
    p = fma(p, r, TAYLOR[2])
    p = fma(p, r, TAYLOR[3])
    p = fma(p, r, TAYLOR[4])
    p = fma(fma(fma(p, r, HALF), r, ONE), r, ONE)
    value = p * as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return value if x >= LEAST else ZERO


@inlined
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@inlined
def inverse_rms(x, x_at, count, eps):
    """1 / sqrt(mean(x^2) + eps) of one row."""
    return ONE / np.sqrt(fma(sum_squares(x, x_at, count), ONE / np.float32(count), np.float32(eps)))


@inlined
def rms_norm(x, weight, out, eps):
    """out = x * inverse rms * weight, of one row."""
    scale = inverse_rms(x, 0, len(weight), eps)
    for i in range(len(weight)):
        out[i] = x[i] * scale * weight[i]


@inlined
def rotate(x, freqs_cis, sign):
    """Rotate the last channel pairs of a row by freqs_cis [P, (cos, sin)]; sign -1 rotates back."""
    pairs = x[len(x) - 2 * len(freqs_cis) :]
    for i in range(len(freqs_cis)):
        c, s = freqs_cis[i, 0], sign * freqs_cis[i, 1]
        a, b = pairs[2 * i], pairs[2 * i + 1]
        pairs[2 * i] = a * c - b * s
        pairs[2 * i + 1] = a * s + b * c


@inlined
def round_bf16(x):
    bits = as_int(x)
    kept = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) & np.int32(-0x10000)
    return as_float(np.int32(kept))


@inlined
def round_e4m3(x):
    """To the nearest e4m3 value, ties to even; |x| <= 448."""
    bits = as_int(x)
    kept = (bits + np.int32(0x7FFFF) + ((bits >> np.int32(20)) & np.int32(1))) & np.int32(-0x100000)
    small = (x + FP8_TO_STEP) - FP8_TO_STEP
    return as_float(np.int32(kept)) if abs(x) >= FP8_NORMAL else small


@inlined
def pow2_scale(largest, inverse_limit):
    """The smallest power of two s with largest * inverse_limit <= s (see holdfast.kernels.quant)."""
    return as_float(np.int32((as_int(largest * inverse_limit) + np.int32(0x7FFFFF)) & np.int32(0x7F800000)))


@inlined
def largest(x):
    """The largest magnitude: that of the largest bits without the sign, which vectorises."""
    most = np.int32(0)
    for i in range(len(x)):
        most = max(most, as_int(x[i]) & np.int32(0x7FFFFFFF))
    return as_float(most)


@inlined
def round_key_row(x, rope):
    """Twin: `kernels/quant.py` `round_kv_rows`. In place: e4m3 in blocks of 64, bf16 for the last `rope` channels."""
    for start in range(0, len(x) - rope, 64):
        block = x[start : start + 64]
        scale = pow2_scale(max(largest(block), FP8_LEAST), FP8_INVERSE)
        inverse = ONE / scale
        for i in range(64):
            block[i] = round_e4m3(block[i] * inverse) * scale
    rotated = x[len(x) - rope :]
    for i in range(rope):
        rotated[i] = round_bf16(rotated[i])


@inlined
def round_e2m1(x):
    """To the nearest e2m1 value, ties to the even code, with the sign of x; |x| beyond 6 saturates."""
    a = min(abs(x), SIX)
    step = HALF if a < TWO else (ONE if a < FOUR else TWO)
    rounded = ((a / step + TO_INTEGER) - TO_INTEGER) * step
    return -rounded if as_int(x) < 0 else rounded


@inlined
def round_index_row(x):
    """In place, what `holdfast.kernels.quant.fake_fp4` gives: e2m1 in blocks of 32."""
    for start in range(0, len(x), 32):
        block = x[start : start + 32]
        scale = pow2_scale(max(largest(block), FP4_LEAST), FP4_INVERSE)
        for i in range(32):
            block[i] = round_e2m1(block[i] / scale) * scale
