"""Rows as values that kernels compute with, and as bytes of a pool (V4 spec 3.4, 5.2).

All exact, so that the interpreter and every GPU give the same bytes. Rounding is to nearest, ties to even. The calling
kernel knows where rows lie.
"""

from holdfast.kernels.gpu.jit import kernel, tl
from holdfast.kernels.gpu.quant import e8m0, fp4_scale, from_e8m0, inverse_pow2, quantise_e4m3, to_bf16, to_multiple

__all__ = ["e2m1_codes", "e2m1_values", "e4m3_values", "read_keys", "write_index_key", "write_keys"]


@kernel
def e4m3_values(code):
    """e4m3 bytes -> float32, exact. The bits make a float32 that is 2^120 times too small, perhaps a subnormal one."""
    bits = code.to(tl.int32)
    return (((bits & 0x7F) << 20) | ((bits & 0x80) << 24)).to(tl.float32, bitcast=True) * 1.329227995784916e36


@kernel
def e2m1_codes(x):
    """float32 -> 4-bit codes int32; beyond 6 the code of 6."""
    size = tl.minimum(tl.abs(x), 6.0)
    small, middle = to_multiple(size * 2.0, 1.0), to_multiple(size, 1.0) + 2.0
    code = tl.where(size < 2.0, small, tl.where(size < 4.0, middle, to_multiple(size * 0.5, 1.0) + 4.0))
    return code.to(tl.int32) | ((x.to(tl.int32, bitcast=True) >> 28) & 8)


@kernel
def e2m1_values(code):
    """4-bit codes -> float32, exact. The bits make a float32 that is 2^126 times too small, perhaps a subnormal one."""
    bits = code.to(tl.int32)
    return (((bits & 7) << 22) | ((bits & 8) << 28)).to(tl.float32, bitcast=True) * 8.507059173023462e37


@kernel
def read_keys(source, at, seen, out, out_at, NOPE: tl.constexpr, ROPE: tl.constexpr, BLOCK: tl.constexpr):
    """Key rows from bytes to bf16 [BLOCK >= NOPE + ROPE], zeros past the end, and all zeros for a row that is not seen.

    at, out_at: where each row begins, in bytes of `source` and elements of `out`, int64 [R]; seen [R].
    """
    GROUPS: tl.constexpr = BLOCK // 64
    at, out_at, seen = at[:, None, None], out_at[:, None, None], seen[:, None, None]
    group = tl.arange(0, GROUPS)[None, :, None]
    channel = tl.arange(0, 64)[None, None, :]
    is_coded = group < NOPE // 64
    codes = tl.load(source + at + group * 64 + channel, mask=seen & is_coded, other=0)
    scales = tl.load(source + at + NOPE + 2 * ROPE + group, mask=seen & is_coded, other=1)
    values = to_bf16(e4m3_values(codes) * from_e8m0(scales))
    tl.store(out + out_at + group * 64 + channel, values, mask=is_coded)

    column = NOPE + tl.arange(0, BLOCK)[None, None, :]
    tail = source.to(tl.pointer_type(tl.bfloat16)) + at // 2 + NOPE // 2 + column - NOPE
    turned = tl.load(tail, mask=seen & (column < NOPE + ROPE), other=0.0)
    tl.store(out + out_at + column, turned, mask=column < BLOCK)


@kernel
def write_keys(x, out, at, kept, NOPE: tl.constexpr, ROPE: tl.constexpr):
    """Key rows x float32 [R, BLOCK / 64, 64] of bf16 values -> bytes of `out` from at, int64 [R], where kept [R]."""
    codes, scale = quantise_e4m3(x, 2)
    codes, scale = codes.to(tl.uint8, bitcast=True), scale.reshape(x.shape[0], x.shape[1])
    group = tl.arange(0, x.shape[1])
    column = group[None, :, None] * 64 + tl.arange(0, 64)[None, None, :]
    at3, kept3 = at[:, None, None], kept[:, None, None]
    tl.store(out + at3 + column, codes, mask=kept3 & (column < NOPE))
    tail = out.to(tl.pointer_type(tl.bfloat16)) + at3 // 2 + NOPE // 2 + column - NOPE
    tl.store(tail, to_bf16(x), mask=kept3 & (column >= NOPE) & (column < NOPE + ROPE))

    scales = out + at[:, None] + NOPE + 2 * ROPE
    tl.store(scales + group[None, :], e8m0(scale), mask=kept[:, None] & (group < NOPE // 64)[None, :])
    pad = NOPE // 64 // 8 * 8 + tl.arange(0, 8)
    is_pad = (pad >= NOPE // 64) & (NOPE % 512 != 0)
    tl.store(scales + pad[None, :], tl.zeros([1, 8], tl.uint8), mask=kept[:, None] & is_pad[None, :])


@kernel
def write_index_key(x, codes, scales, DIM: tl.constexpr):
    """An index key x float32 [DIM] of bf16 values -> e2m1 pairs at `codes`, and scales.

    The even channel of a pair is in the low half.
    """
    groups = x.reshape(DIM // 32, 32)
    scale = fp4_scale(tl.max(tl.abs(groups), 1))
    even, odd = tl.split(e2m1_codes(groups * inverse_pow2(scale)[:, None]).reshape(DIM // 2, 2))
    tl.store(codes + tl.arange(0, DIM // 2), (even | (odd << 4)).to(tl.uint8))
    tl.store(scales + tl.arange(0, DIM // 32), e8m0(scale))
