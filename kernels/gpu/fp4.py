"""FP4 weights in the order in which a tensor core takes them, and how a kernel turns them into bf16.

A tile is 64 rows x 128 columns, 4096 contiguous bytes; the tiles of the same rows follow each other, so that a program
streams one run of memory. Inside a tile the bytes lie as wgmma spreads its left operand over threads: nothing changes
threads after it is unpacked.

    byte of a tile    [half 2][warp 4][row 8][quad 4][group 4][byte 4]     row    = warp * 16 + half * 8 + row code of 4
    bytes   [step 2][half 2][pair 2], pair 0 in the low 16 bits  column = group * 32 + step * 16 + half * 8 + quad * 2 +
    pair

Four codes share 16 bits, so placed that shifts and masks give bf16 with the sign in front and the three other bits at
8..6: the value times 2^-126, subnormal 0.5 included. Multiplying by the scale, whose byte is kept 126 too large,
completes it, exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.gpu.jit import AVAILABLE, INTERPRETED, kernel, tl
from holdfast.kernels.gpu.quant import to_bf16
from holdfast.kernels.gpu.weights import Fp4Weight

ROWS, COLUMNS = 64, 128  # of a tile
MAX_SCALE = 128  # byte of 2.0: beyond, the completed scale is no bf16


class PackedFp4(NamedTuple):
    """Linears with FP4 weights, one per expert, in tiles."""

    codes: Tensor  # uint8 [E, out / 64, in / 128, 64, 64]
    scale: Tensor  # int32 [E, out / 64, in / 128, 64]: of four groups, low byte first, exponent + 253


def pack(w: Fp4Weight) -> PackedFp4:
    """Raises ValueError for a scale above 2, which no trained weight needs."""
    experts, out, half_width = w.data.shape
    tiles = (out // ROWS, 2 * half_width // COLUMNS)
    if w.scale.max() > MAX_SCALE:
        raise ValueError(f"an FP4 scale is 2^{int(w.scale.max()) - 127}: these kernels read scales up to 2")
    codes = w.data.new_empty(experts, *tiles, ROWS, COLUMNS // 2)
    scale = w.data.new_empty(experts, *tiles, ROWS, COLUMNS // 32)
    for e in range(experts):  # one at a time: a layer's codes unpacked would be gigabytes
        _pack_codes(w.data[e], codes[e])
        rows = w.scale[e].view(tiles[0], 4, 2, 8, tiles[1], COLUMNS // 32)  # tile, warp, half, row, tile, group
        scale[e] = rows.permute(0, 4, 2, 1, 3, 5).reshape(scale[e].shape) + 126
    return PackedFp4(codes, scale.view(torch.int32).squeeze(-1))


def _pack_codes(data: Tensor, out: Tensor) -> None:
    """Codes of one expert uint8 [out, in / 2] -> tiles uint8 [out / 64, in / 128, 64, 64]."""
    nibbles = torch.stack((data & 15, data >> 4), -1).to(torch.int32)
    # tile, warp, half, row, tile, group, step, half, quad, pair
    # -> tile, tile, half, warp, row, quad, group, pair, step, half
    nibbles = nibbles.view(out.shape[0], 4, 2, 8, out.shape[1], 4, 2, 2, 4, 2).permute(0, 4, 2, 1, 3, 8, 5, 9, 6, 7)
    sign, rest = nibbles >> 3, nibbles & 7
    words = sign[..., 0, 0] << 15 | rest[..., 0, 0] << 6
    words |= sign[..., 1, 0] << 12 | rest[..., 1, 0] << 3
    words |= sign[..., 0, 1] << 9 | rest[..., 0, 1]
    words |= sign[..., 1, 1] << 14 | (rest[..., 1, 1] & 6) << 9 | (rest[..., 1, 1] & 1) << 13
    out.copy_(torch.stack((words & 255, words >> 8), -1).to(torch.uint8).view(out.shape))


# Words of four bytes and their scale, twice, as two bf16 -> columns of two steps, the left half, then the right half.
_ASM = """
{
.reg .b32 a, b, s;
and.b32 s, $5, 255;
mul.lo.u32 s, s, 0x00800080;
and.b32 a, $4, 0x81C081C0;
mul.bf16x2 $0, a, s;
shl.b32 a, $4, 3;
and.b32 a, a, 0x81C081C0;
mul.bf16x2 $1, a, s;
shl.b32 a, $4, 6;
and.b32 a, a, 0x81C081C0;
mul.bf16x2 $2, a, s;
shl.b32 a, $4, 1;
and.b32 a, a, 0x80008000;
shr.b32 b, $4, 3;
and.b32 b, b, 0x01800180;
or.b32 a, a, b;
shr.b32 b, $4, 7;
and.b32 b, b, 0x00400040;
or.b32 a, a, b;
mul.bf16x2 $3, a, s;
}
"""
_INTERPRETED, _UNPACK = (tl.constexpr(INTERPRETED), tl.constexpr(_ASM)) if AVAILABLE else (None, None)


@kernel
def tile_rows(ROWS: tl.constexpr):
    """Where the rows of a block of ROWS / 64 tiles lie, in the order of `unpack`: which tile, which row of it."""
    at = tl.arange(0, ROWS)
    warp = at // 8 % (ROWS // 16)
    return warp // 4, at // (ROWS // 2) * 32 + warp % 4 * 8 + at % 8


@kernel
def unpack(codes, scale):
    """uint8 codes [rows, 64] and scales [rows, 4] in the order of `tile_rows` -> bf16 [rows, 128] in natural order."""
    ROWS: tl.constexpr = codes.shape[0]
    scale = scale.reshape(ROWS, 1, 1, 1) >> 8 * tl.arange(0, 4)[None, None, :, None]
    if _INTERPRETED:
        low, high = codes.to(tl.uint32).reshape(ROWS, 4, 4, 2, 2).split()
        w = low | high << 8
        factor = ((scale & 255) << 23).to(tl.float32, bitcast=True)
        v00 = ((w & 0x81C0) << 16).to(tl.float32, bitcast=True) * factor
        v10 = ((w << 3 & 0x81C0) << 16).to(tl.float32, bitcast=True) * factor
        v01 = ((w << 6 & 0x81C0) << 16).to(tl.float32, bitcast=True) * factor
        v11 = ((w << 1 & 0x8000 | w >> 3 & 0x0180 | w >> 7 & 0x0040) << 16).to(tl.float32, bitcast=True) * factor
        values = tl.join(tl.join(v00, v01), tl.join(v10, v11))  # row, quad, group, pair, half, step
        values = to_bf16(values.permute(0, 1, 2, 5, 3, 4))
    else:
        scale = scale.broadcast_to(ROWS, 4, 4, 4)
        left, right = tl.inline_asm_elementwise(
            _UNPACK, "=r,=r,=r,=r,r,r,r,r,r", [codes.reshape(ROWS, 4, 4, 4), scale], (tl.bfloat16, tl.bfloat16), True, 4
        )
        values = tl.join(left, right)
    values = values.reshape(2, ROWS // 16, 8, 4, 4, 2, 2, 2)  # half, warp, row, quad, group, step, pair, half
    return values.permute(1, 0, 2, 4, 5, 7, 3, 6).reshape(ROWS, 128)
