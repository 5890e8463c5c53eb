"""Products of rows with weights [K, N].

Each result is one chain of fused multiply-adds in ascending k, for any number of rows.
"""

from holdfast.kernels.cpu.jit import inlined
from holdfast.kernels.cpu.vector import LANES, tile_1x1, tile_1x2, tile_1x8, tile_4x1, tile_4x2, tile_8x1, tile_8x2


@inlined
def gemm(x, x_at, x_step, w, w_at, w_step, out, out_at, out_step, rows, inner, columns, adds):
    """out[rows, columns] = x[rows, inner] . w[inner, columns], or with `adds` onto what is in out.

    Rows left over by tiles of 8 are computed in one more tile that ends with the last row: a row that is computed twice
    gets the same bits twice. Where results are added that may not be, and tiles of 4 and 1 take them.
    """
    j = 0
    if rows == 1:
        while j + 128 <= columns:
            tile_1x8(x, x_at, x_step, w, w_at + j, w_step, out, out_at + j, out_step, inner, adds, LANES)
            j += 128
    while j < columns:
        i, count = 0, min(columns - j, LANES)
        is_wide = columns - j >= 2 * LANES
        while i < rows:
            height = 8 if rows - i >= 8 else (4 if rows - i >= 4 else 1)
            if i >= height and not adds and rows >= 4:
                height = 8 if rows >= 8 else 4
                i = min(i, rows - height)
            x_i, out_ij = x_at + i * x_step, out_at + i * out_step + j
            if is_wide:
                if height == 8:
                    tile_8x2(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, LANES)
                elif height == 4:
                    tile_4x2(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, LANES)
                else:
                    tile_1x2(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, LANES)
            elif height == 8:
                tile_8x1(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, count)
            elif height == 4:
                tile_4x1(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, count)
            else:
                tile_1x1(x, x_i, x_step, w, w_at + j, w_step, out, out_ij, out_step, inner, adds, count)
            i += height
        j += 2 * LANES if is_wide else count
