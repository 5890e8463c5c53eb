"""Products of rows with weights [K, N]: each result one chain of fused multiply-adds in ascending k, for any number of rows."""

from kernels.cpu.jit import inlined
from kernels.cpu.vector import tile_1x1, tile_1x2, tile_1x8, tile_4x2, tile_8x1, tile_8x2


@inlined
def gemm(x, x_at, x_step, w, w_at, w_step, out, out_at, out_step, rows, inner, columns, adds):
    """out[rows, columns] = x[rows, inner] . w[inner, columns], or with `adds` onto what is in out."""
    j = 0
    if rows == 1:
        while j + 128 <= columns:
            tile_1x8(x, x_at, x_step, w, w_at + j, w_step, out, out_at + j, out_step, inner, adds, 16)
            j += 128
    while j + 32 <= columns:
        i = 0
        while i + 8 <= rows:
            tile_8x2(
                x,
                x_at + i * x_step,
                x_step,
                w,
                w_at + j,
                w_step,
                out,
                out_at + i * out_step + j,
                out_step,
                inner,
                adds,
                16,
            )
            i += 8
        if i + 4 <= rows:
            tile_4x2(
                x,
                x_at + i * x_step,
                x_step,
                w,
                w_at + j,
                w_step,
                out,
                out_at + i * out_step + j,
                out_step,
                inner,
                adds,
                16,
            )
            i += 4
        while i < rows:
            tile_1x2(
                x,
                x_at + i * x_step,
                x_step,
                w,
                w_at + j,
                w_step,
                out,
                out_at + i * out_step + j,
                out_step,
                inner,
                adds,
                16,
            )
            i += 1
        j += 32
    while j < columns:
        i, count = 0, min(columns - j, 16)
        while i + 8 <= rows:
            tile_8x1(
                x,
                x_at + i * x_step,
                x_step,
                w,
                w_at + j,
                w_step,
                out,
                out_at + i * out_step + j,
                out_step,
                inner,
                adds,
                count,
            )
            i += 8
        while i < rows:
            tile_1x1(
                x,
                x_at + i * x_step,
                x_step,
                w,
                w_at + j,
                w_step,
                out,
                out_at + i * out_step + j,
                out_step,
                inner,
                adds,
                count,
            )
            i += 1
        j += count
