"""Linear layers: y = x W^T with FP8 or bf16 weights in the checkpoint's orientation [out, in].

Weights are the 64- or 128-row operand of the tensor cores and tokens the narrow one, padded to 16: one row would waste
most of a tile the other way round. A sum over K has one shape for any number of rows. K is cut into `SPLITS` parts, a
constant of the weight's shape, of the whole weight where a rank has some of its outputs; each part is summed in steps
of 128, and the parts are added in order. For few rows each part has a separate program, and the last one to arrive
adds them up; for many rows one program does one part after the other. So rows have the same bits either way.
"""

import functools

import torch
from torch import Tensor

from holdfast.kernels.gpu.jit import dot, kernel, launch, tl
from holdfast.kernels.gpu.quant import from_e8m0, quantise_e4m3, to_bf16, widen_e4m3
from holdfast.kernels.gpu.weights import Fp8Weight

BLOCK_K = 128
FEW_ROWS = 64  # up to which parts of K are separate programs
ENOUGH_PROGRAMS = 256  # two for each of an H100's 132 multiprocessors


def linear_fp8(x: Tensor, weight: Fp8Weight, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x bf16 [N, K], rounded to e4m3 in blocks of 128 along K, times e4m3 weights [out, K] -> [N, out].

    K is a multiple of 128.
    """
    if len(x) > FEW_ROWS:
        return linear_quantised(*quantise(x), weight, out_dtype)
    return _linear(x, None, weight.data, weight.scale, weight.outs, out_dtype, "quantise")


def linear_quantised(
    codes: Tensor, scale: Tensor, weight: Fp8Weight, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """As `linear_fp8`, of rows rounded by `quantise`."""
    return _linear(codes, scale, weight.data, weight.scale, weight.outs, out_dtype, "fp8")


def grouped_fp8(x: Tensor, weight: Fp8Weight, out_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """x bf16 [N, G, K], not rounded, times e4m3 weights [G, out, K] -> [N, G * out]."""
    return _linear(x, None, weight.data.view(torch.uint8), weight.scale, weight.outs, out_dtype, "widen")


def linear_bf16(x: Tensor, weight: Tensor, out_dtype: torch.dtype = torch.bfloat16, outs: int = 0) -> Tensor:
    """x bf16 [N, K] times bf16 weights [out, K] -> [N, out]; `outs` as in Fp8Weight."""
    return _linear(x, None, weight, None, outs, out_dtype, "bf16")


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """x bf16 [N, K] -> e4m3 [N, K] and the scales of its blocks of 128, float32 [K / 128, N rounded up to 128]."""
    num_rows, width = x.shape
    codes, scale = quantised_like(num_rows, width, x.device)
    launch(
        _quantise,
        (width // BLOCK_K, scale_stride(num_rows) // 16),
        x.contiguous(),
        codes,
        scale,
        num_rows,
        WIDTH=width,
        ROWS=16,
    )
    return codes, scale


def quantised_like(num_rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for what `quantise` gives. Scales are padded because a tile reads those of all its rows."""
    codes = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=device)
    return codes, torch.empty(width // BLOCK_K, scale_stride(num_rows), device=device)


def scale_stride(num_rows: int) -> int:
    return -(-num_rows // 128) * 128


def num_splits(num_tiles: int, num_steps: int) -> int:
    """Parts of K for a weight of so many tiles of 64 rows and so many steps of 128 columns."""
    splits = 1
    while num_tiles * splits < ENOUGH_PROGRAMS and num_steps >= 8 * splits:
        splits *= 2
    return splits


def _linear(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    outs: int,
    out_dtype: torch.dtype,
    mode: str,
) -> Tensor:
    groups = weight.shape[0] if weight.ndim == 3 else 1
    width, depth = weight.shape[-2:]
    num_rows, x = len(x), x.contiguous()
    steps = -(-depth // BLOCK_K)
    splits = num_splits(max(groups * -(-width // 64), -(-outs // 64)), steps)
    own = splits > 1 and num_rows <= FEW_ROWS  # each part of K has a separate program
    block_out, block_rows, num_warps = _tile(num_rows, mode, splits)
    tiles = -(-width // block_out) * -(-num_rows // block_rows)
    out = torch.empty(num_rows, groups * width, dtype=out_dtype, device=x.device)
    parts = torch.empty((splits if own else 0, num_rows, groups * width), device=x.device)
    launch(
        _linear_kernel,
        (tiles, groups, splits if own else 1),
        x,
        x_scale,
        weight,
        scale,
        out,
        parts,
        arrivals(x.device),
        num_rows,
        GROUPS=groups,
        OUT=width,
        K=depth,
        SPLITS=splits,
        STEPS=-(-steps // splits),
        OWN=own,
        MODE=mode,
        BLOCK_OUT=block_out,
        BLOCK_ROWS=block_rows,
        BLOCK_K=BLOCK_K,
        num_warps=num_warps,
        num_stages=4 if num_rows <= FEW_ROWS else 3,
    )
    return out


def _tile(num_rows: int, mode: str, splits: int) -> tuple[int, int, int]:
    """Rows of a weight tile, rows of x, warps. The largest tiles that leave all sums in registers."""
    if num_rows <= FEW_ROWS:
        return 64, next(n for n in (16, 32, 64) if num_rows <= n), 4
    is_wide = mode == "bf16" or (mode == "fp8" and splits == 1)
    return 128, 128 if is_wide else 64, 8


@functools.cache
def arrivals(device: torch.device) -> Tensor:
    """int32 counters of the programs that finished a tile.

    They are zero between launches, since the last program sets its counter back. All launches share them: only one
    stream at a time may launch.
    """
    return torch.zeros(ENOUGH_PROGRAMS, dtype=torch.int32, device=device)


@kernel
def _linear_kernel(
    x,
    x_scale,
    weight,
    scale,
    out,
    parts,
    counters,
    num_rows,
    GROUPS: tl.constexpr,
    OUT: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    STEPS: tl.constexpr,
    OWN: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles, groups, parts of K): one tile of [out, rows].

    MODE says what multiplies: "fp8" e4m3 rows, "quantise" rows that are rounded to e4m3 here, "widen" bf16 rows and
    e4m3 weights, "bf16" bf16 both.
    """
    row_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    tile, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    outs = (tile // row_tiles) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    rows = (tile % row_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    # past the end the last row is read again: what comes of it is not stored
    read_outs = group * OUT + tl.minimum(outs, OUT - 1)
    read_rows = tl.minimum(rows, num_rows - 1).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    w_at = weight + read_outs.to(tl.int64)[:, None] * K + columns[None, :]
    x_at = x + (read_rows * GROUPS + group)[:, None] * K + columns[None, :]
    blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    scale_at, x_scale_at = scale, x_scale
    if MODE != "bf16":
        scale_at = scale + read_outs * blocks
    if MODE == "fp8":
        x_scale_at = x_scale + rows

    total = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    for s in range(1 if OWN else SPLITS):
        first = (split if OWN else s) * STEPS
        total += _part(
            w_at,
            x_at,
            scale_at,
            x_scale_at,
            first,
            tl.minimum(first + STEPS, blocks),
            columns,
            num_rows,
            K,
            MODE,
            BLOCK_OUT,
            BLOCK_ROWS,
            BLOCK_K,
        )
    kept = (outs < OUT)[:, None] & (rows < num_rows)[None, :]
    at = (rows.to(tl.int64) * (GROUPS * OUT))[None, :] + (group * OUT + outs)[:, None]
    if OWN:
        counter = counters + group * tl.num_programs(0) + tile
        part_size = num_rows.to(tl.int64) * (GROUPS * OUT)
        tl.store(parts + split * part_size + at, total, mask=kept)
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
            for s in range(SPLITS):
                total += tl.load(parts + s * part_size + at, mask=kept, other=0.0, cache_modifier=".cg")
            _store(out + at, total, kept)
            tl.store(counter, 0)
    else:
        _store(out + at, total, kept)


@kernel
def _part(
    w_at,
    x_at,
    scale_at,
    x_scale_at,
    first,
    last,
    columns,
    num_rows,
    K: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum over steps first ... last - 1 of K: float32 [BLOCK_OUT, BLOCK_ROWS].

    Tensor cores add FP8 products with few bits, so each step starts anew.
    """
    sums = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    for step in range(first, last):
        start = step * BLOCK_K
        if K % BLOCK_K == 0:
            w, v = tl.load(w_at + start), tl.load(x_at + start)
        else:
            inside = (start + columns < K)[None, :]
            w, v = tl.load(w_at + start, mask=inside, other=0), tl.load(x_at + start, mask=inside, other=0)
        if MODE == "bf16":
            sums = dot(w, v.T, sums)
        elif MODE == "widen":
            sums += dot(widen_e4m3(w), v.T) * from_e8m0(tl.load(scale_at + step))[:, None]
        elif MODE == "quantise":
            codes, v_scale = quantise_e4m3(v.to(tl.float32), 1)
            sums += (dot(w, codes.T) * from_e8m0(tl.load(scale_at + step))[:, None]) * v_scale.T
        else:
            v_scale = tl.load(scale_row(x_scale_at, step, num_rows))
            sums += (dot(w, v.T) * from_e8m0(tl.load(scale_at + step))[:, None]) * v_scale[None, :]
    return sums


@kernel
def _store(at, values, mask):
    if at.dtype.element_ty == tl.bfloat16:
        tl.store(at, to_bf16(values), mask=mask)
    else:
        tl.store(at, values, mask=mask)


@kernel
def _quantise(x, codes, scale, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Grid (blocks of 128 columns, tiles of rows)."""
    block = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mask = (rows < num_rows)[:, None]
    at = rows.to(tl.int64)[:, None] * WIDTH + (block * 128 + tl.arange(0, 128))[None, :]
    rounded, s = quantise_e4m3(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), 1)
    tl.store(codes + at, rounded, mask=mask)
    tl.store(scale_row(scale, block, num_rows) + rows[:, None], s)


@kernel
def scale_row(scale, block, num_rows):
    """Where the scales of one block of 128 columns begin, in what `quantise` gives."""
    return scale + block * (tl.cdiv(num_rows, 128) * 128)
