"""Number formats of the checkpoint and of KV rows: FP8 e4m3, FP4 e2m1, e8m0 scales, Hadamard (V4 spec 4.3, 5).

All scales are powers of two taken from exponent bits, never from a logarithm. Rounding is to nearest, ties to even.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_MAX, FP4_MAX = 448.0, 6.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def pow2_scale(amax: Tensor, limit: float) -> Tensor:
    """The smallest power of two s with amax * (1 / limit) <= s, float32 of amax's shape (spec 5.1).

    Adding the largest mantissa carries into the exponent unless the value is a power of two already.
    """
    bits = (amax.float() * (1.0 / limit)).view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def to_e8m0(scale: Tensor) -> Tensor:
    """Powers of two -> bytes exponent + 127 (uint8)."""
    return (torch.frexp(scale).exponent + 126).to(torch.uint8)


def from_e8m0(code: Tensor) -> Tensor:
    """Bytes of an e8m0 tensor -> float32 powers of two; 255 is NaN."""
    bits = code.view(torch.uint8)
    value = torch.ldexp(torch.ones_like(bits, dtype=torch.float32), bits.to(torch.int32) - 127)
    return torch.where(bits == 255, math.nan, value)


def round_e2m1(x: Tensor) -> Tensor:
    """Nearest value of the e2m1 grid, ties to the even code; |x| beyond 6 saturates."""
    a = x.abs().clamp(max=FP4_MAX)
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return torch.copysign((a / step).round() * step, x)


def e2m1_codes(x: Tensor) -> Tensor:
    """Values on the e2m1 grid -> 4-bit codes (uint8, bit 3 the sign)."""
    a = x.abs()
    code = torch.where(a < 2, a * 2, torch.where(a < 4, a + 2, a / 2 + 4))
    return code.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Bytes [..., K/2] -> float32 [..., K]; the low nibble is the even element."""
    table = torch.tensor(FP4_VALUES + tuple(-v for v in FP4_VALUES), device=packed.device)
    bits = packed.view(torch.uint8).long()
    return table[torch.stack((bits & 15, bits >> 4), -1).flatten(-2)]


def pack_codes(codes: Tensor) -> Tensor:
    """4-bit codes [..., K] -> bytes [..., K/2] uint8."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def in_blocks(x: Tensor, size: int) -> Tensor:
    """[..., K] -> [..., K / size, size]."""
    return torch.unflatten(x, -1, (-1, size))


def quant_fp8(x: Tensor, block: int, least: float = 1e-4) -> tuple[Tensor, Tensor]:
    """x [..., K] in blocks along K -> (e4m3 [..., K], scale float32 [..., K/block]) (spec 5.1)."""
    blocks = in_blocks(x.float(), block)
    scale = pow2_scale(blocks.abs().amax(-1).clamp_min(least), FP8_MAX)
    q = (blocks / scale.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return q.flatten(-2), scale


def fake_fp8(x: Tensor, block: int) -> Tensor:
    """Quantise to FP8 and back, in x's dtype."""
    q, scale = quant_fp8(x, block)
    return (in_blocks(q.float(), block) * scale.unsqueeze(-1)).flatten(-2).to(x.dtype)


def quant_fp4(x: Tensor, block: int = 32) -> tuple[Tensor, Tensor]:
    """x [..., K] -> (values on the e2m1 grid [..., K], scale float32 [..., K/block]) (spec 5.2)."""
    blocks = in_blocks(x.float(), block)
    scale = pow2_scale(blocks.abs().amax(-1).clamp_min(6 * 2.0**-126), FP4_MAX)
    return round_e2m1(blocks / scale.unsqueeze(-1)).flatten(-2), scale


def fake_fp4(x: Tensor, block: int = 32) -> Tensor:
    q, scale = quant_fp4(x, block)
    return (in_blocks(q, block) * scale.unsqueeze(-1)).flatten(-2).to(x.dtype)


def dequant_fp8_weight(weight: Tensor, scale: Tensor, row: int = 0) -> Tensor:
    """e4m3 [out, in] with e8m0 [ceil(out/128), ceil(in/128)] -> float32 [out, in], exact.

    Some rows of a weight may begin at any `row` of their first block of 128 x 128.
    """
    out, width = weight.shape
    s = from_e8m0(scale).repeat_interleave(128, 0)[row : row + out]
    return weight.float() * s.repeat_interleave(128, 1)[:, :width]


def dequant_fp4_weight(packed: Tensor, scale: Tensor) -> Tensor:
    """Packed [out, in/2] with e8m0 [out, in/32] -> float32 [out, in], exact."""
    return (in_blocks(unpack_fp4(packed), 32) * from_e8m0(scale).unsqueeze(-1)).flatten(-2)


def pack_fp8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [out, in] -> (e4m3 [out, in], e8m0 [ceil(out/128), ceil(in/128)])."""
    out, width = weight.shape
    padded = F.pad(weight.float(), (0, -width % 128, 0, -out % 128))
    blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    scale = pow2_scale(blocks.abs().amax((1, 3)).clamp_min(1e-10), FP8_MAX)
    q = (blocks / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).flatten(2).flatten(0, 1)[:out, :width]
    return q.to(torch.float8_e4m3fn).contiguous(), to_e8m0(scale).view(torch.float8_e8m0fnu)


def pack_fp4_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [out, in] -> (packed int8 [out, in/2], e8m0 [out, in/32])."""
    blocks = in_blocks(weight.float(), 32)
    scale = pow2_scale(blocks.abs().amax(-1).clamp_min(1e-10), FP4_MAX)
    q = round_e2m1(blocks / scale.unsqueeze(-1)).flatten(-2)
    return pack_codes(e2m1_codes(q)).view(torch.int8), to_e8m0(scale).view(torch.float8_e8m0fnu)


@functools.cache
def hadamard_matrix(n: int) -> Tensor:
    """Orthonormal Walsh-Hadamard [n, n] float32, Sylvester order; n a power of two."""
    assert n & (n - 1) == 0, n
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    orthonormal: Tensor = h * n**-0.5
    return orthonormal


def round_kv_rows(rows: Tensor, rope: int) -> Tensor:
    """What unpack_kv_rows(pack_kv_rows(rows)) gives, without the bytes between."""
    nope = rows.shape[-1] - rope
    out = rows.bfloat16().float()
    blocks = in_blocks(rows[:, :nope], 64)
    scale = pow2_scale(blocks.abs().amax(-1, keepdim=True).clamp_min_(1e-4), FP8_MAX)
    out[:, :nope] = ((blocks / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)
    return out


def pack_kv_rows(rows: Tensor, rope: int) -> Tensor:
    """Rows [n, nope + rope] -> bytes [n, nope + 2 * rope + pad8(nope / 64)]: e4m3, bf16, e8m0 (spec 3.4).

    Exact for rows that carry the FP8 rounding already: the rounding is deterministic and idempotent in value.
    """
    nope = rows.shape[-1] - rope
    q, scale = quant_fp8(rows[:, :nope], 64)
    tail = rows[:, nope:].bfloat16().contiguous().view(torch.uint8)
    scales = F.pad(to_e8m0(scale), (0, -(nope // 64) % 8))
    return torch.cat((q.view(torch.uint8), tail, scales), -1)


def unpack_kv_rows(packed: Tensor, nope: int, rope: int) -> Tensor:
    """The inverse of pack_kv_rows: float32 [n, nope + rope]."""
    q = in_blocks(packed[:, :nope].contiguous().view(torch.float8_e4m3fn).float(), 64)
    scale = from_e8m0(packed[:, nope + 2 * rope :][:, : nope // 64].contiguous())
    tail = packed[:, nope : nope + 2 * rope].contiguous().view(torch.bfloat16).float()
    return torch.cat(((q * scale.unsqueeze(-1)).flatten(-2), tail), -1)


def pack_index_rows(rows: Tensor) -> Tensor:
    """Index keys [n, d] -> bytes [n, d/2 + d/32]: e2m1 nibbles and e8m0 scales."""
    q, scale = quant_fp4(rows)
    return torch.cat((pack_codes(e2m1_codes(q)), to_e8m0(scale)), -1)


def unpack_index_rows(packed: Tensor, dim: int) -> Tensor:
    values = in_blocks(unpack_fp4(packed[:, : dim // 2].contiguous()), 32)
    return (values * from_e8m0(packed[:, dim // 2 :].contiguous()).unsqueeze(-1)).flatten(-2)
