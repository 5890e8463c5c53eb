"""Rounding inside kernels: bf16, FP8 e4m3 and FP4 e2m1 with power-of-two scales (V4 spec 5).

Twins in `kernels/quant.py`.

Scales come from exponent bits, never from a logarithm. The interpreter truncates where hardware rounds to nearest even,
so the casts have a branch of plain operations for it; both branches give the same bits.
"""

from holdfast.kernels.gpu.jit import INTERPRETED, kernel, tl

_INTERPRETED = tl.constexpr(INTERPRETED) if tl else None


@kernel
def to_bf16(x):
    """float32 -> bf16, to nearest even."""
    if _INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(tl.bfloat16)


@kernel
def round_bf16(x):
    """float32 -> the nearest bf16 value, as float32."""
    return to_bf16(x).to(tl.float32)


@kernel
def pow2_scale(amax, LIMIT: tl.constexpr):
    """The smallest power of two s with amax * (1 / LIMIT) <= s: adding the largest mantissa carries otherwise."""
    bits = (amax * (1.0 / LIMIT)).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)


@kernel
def inverse_pow2(scale):
    """1 / s of a power of two between 2^-126 and 2^126, exact."""
    return ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@kernel
def e8m0(scale):
    """Power of two -> the byte exponent + 127."""
    return (scale.to(tl.int32, bitcast=True) >> 23).to(tl.uint8)


@kernel
def from_e8m0(byte):
    """The byte exponent + 127 -> power of two; 0 and 255 do not occur."""
    return (byte.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@kernel
def to_e4m3(x):
    """float32 -> e4m3, to nearest even, clamped to +-448."""
    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    if _INTERPRETED:
        exponent = ((tl.abs(x).to(tl.int32, bitcast=True) >> 23) & 255) - 127
        x = to_multiple(x, tl.exp2((tl.maximum(exponent, -6) - 3).to(tl.float32)))
    return x.to(tl.float8e4nv)


@kernel
def quantise_e4m3(x, AXIS: tl.constexpr):
    """One block of FP8 along an axis of float32 x: e4m3 codes and float32 scales, whose axis has length 1."""
    scale = pow2_scale(tl.maximum(tl.max(tl.abs(x), AXIS, keep_dims=True), 1e-4), 448.0)
    return to_e4m3(x * inverse_pow2(scale)), scale


@kernel
def fake_e4m3(x, AXIS: tl.constexpr):
    """Rounded as `quantise_e4m3` and back, float32."""
    codes, scale = quantise_e4m3(x, AXIS)
    return codes.to(tl.float32) * scale


@kernel
def fp4_scale(amax):
    """The scale of a block of FP4 from its largest magnitude."""
    return pow2_scale(tl.maximum(amax, 6.0 * 2.0**-126), 6.0)


@kernel
def round_e2m1(x):
    """The nearest value of the e2m1 grid, ties to the even code; beyond +-6 it saturates."""
    a = tl.minimum(tl.abs(x), 6.0)
    rounded = to_multiple(a, tl.where(a < 2.0, 0.5, tl.where(a < 4.0, 1.0, 2.0)))
    return tl.where(x < 0, -rounded, rounded)


@kernel
def fake_e2m1(x, AXIS: tl.constexpr):
    """One block of FP4 along an axis of float32 x, rounded and back."""
    scale = fp4_scale(tl.max(tl.abs(x), AXIS, keep_dims=True))
    return round_e2m1(x * inverse_pow2(scale)) * scale


@kernel
def to_multiple(x, step):
    """The nearest multiple of a power of two, ties to even: float32 has just these values around 1.5 * 2^23 * step."""
    anchor = step * 12582912.0
    return (x + anchor) - anchor


@kernel
def widen_e4m3(codes):
    """uint8 codes of e4m3 -> bf16, exact.

    Sign and magnitude bits move to where bf16 has them, and 2^120 makes up for its bias.
    """
    if _INTERPRETED:
        return to_bf16(codes.to(tl.float8e4nv, bitcast=True).to(tl.float32))
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 low, high, a, b, bias;
        mov.b32 bias, 0x7B807B80;
        prmt.b32 low, $2, 0, 0x1404;
        prmt.b32 high, $2, 0, 0x3424;
        shr.u32 a, low, 4;
        shr.u32 b, high, 4;
        and.b32 a, a, 0x07F007F0;
        and.b32 b, b, 0x07F007F0;
        lop3.b32 low, low, 0x80008000, a, 0xEA;
        lop3.b32 high, high, 0x80008000, b, 0xEA;
        mul.rn.bf16x2 $0, low, bias;
        mul.rn.bf16x2 $1, high, bias;
        }""",
        "=r,=r,r",
        [codes],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )
