"""The two products of the experts, for rows sorted by expert, and their sum.

Both kernels do the routed experts, whose weights are FP4, and the shared expert, whose weights are FP8 and which takes
every row: its tiles come first, being the longest. Weights are unpacked to bf16, exactly, and multiplied by rows
rounded to e4m3, held in bf16. Weights are the operand of 64 rows of the tensor cores, tokens the narrow one, padded to
16. A sum over K is in steps of 128 for any tile.
"""

import torch
from torch import Tensor

from holdfast.kernels.gpu.fp4 import PackedFp4, tile_rows, unpack
from holdfast.kernels.gpu.jit import dot, kernel, launch, tl
from holdfast.kernels.gpu.quant import fake_e4m3, from_e8m0, round_bf16, to_bf16, widen_e4m3
from holdfast.kernels.gpu.route import Plan
from holdfast.kernels.gpu.weights import Fp8Weight


def tile_tokens(num_pairs: int, num_experts: int) -> int:
    """Rows of a tile: what an expert gets on average, or a little more. Decides how fast it goes, not the result."""
    average = num_pairs // num_experts
    return 16 if average < 8 else 64 if average < 64 else 128


def gate_up(x: Tensor, plan: Plan, w13: PackedFp4, shared: Fp8Weight, limit: float, tokens: int) -> Tensor:
    """x bf16 [N, D] -> hidden bf16 [pairs + N, inner]: pairs in the plan's order, then the shared expert's rows.

    silu(min(gate, limit)) * clamp(up), of a routed expert times its routing weight, rounded to e4m3 in blocks of 128.
    """
    num_rows, width = x.shape
    num_pairs, inner = plan.order.numel(), w13.codes.shape[1] * 32
    hidden = x.new_empty(num_pairs + num_rows, inner)
    num_shared_tiles = -(-num_rows // tokens)
    rows, num_warps, num_stages = _tile(tokens)
    launch(
        _gate_up,
        (plan.arrivals.shape[1] * 256 // rows, num_shared_tiles + len(plan.tiles)),
        x,
        *w13,
        shared.data,
        shared.scale,
        plan.weights,
        plan.order,
        plan.num_tiles,
        plan.tiles,
        plan.arrivals,
        hidden[:num_pairs],
        hidden[num_pairs:],
        num_rows,
        num_shared_tiles,
        width,
        inner,
        limit,
        SLOTS=plan.weights.shape[1],
        ROWS=rows,
        TOKENS=tokens,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return hidden


def down(routed: Tensor, shared: Tensor, plan: Plan, w2: PackedFp4, shared_w2: Fp8Weight, tokens: int) -> Tensor:
    """Hidden bf16 [pairs, inner] and [N, inner] -> bf16 [N, D], the second products.

    They are added over a row's experts in ascending order, then the shared one.
    """
    (num_rows, inner), width = shared.shape, len(shared_w2.data)
    num_shared_tiles = -(-num_rows // tokens)
    rows, num_warps, num_stages = _tile(tokens)
    routed_out, shared_out = shared.new_empty(len(routed), width), shared.new_empty(num_rows, width)
    launch(
        _down,
        (width // rows, num_shared_tiles + len(plan.tiles)),
        routed,
        shared,
        *w2,
        shared_w2.data,
        shared_w2.scale,
        plan.order,
        plan.num_tiles,
        plan.tiles,
        routed_out,
        shared_out,
        num_rows,
        num_shared_tiles,
        width,
        inner,
        ROWS=rows,
        TOKENS=tokens,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    out = torch.empty_like(shared_out)
    launch(
        _add,
        (num_rows, -(-width // 1024)),
        routed_out,
        shared_out,
        out,
        width,
        SLOTS=plan.weights.shape[1],
        COLUMNS=1024,
    )
    return out


def _tile(tokens: int) -> tuple[int, int, int]:
    """Rows of a weight tile, warps, stages of the pipeline."""
    return (64, 4, 5) if tokens == 16 else (128, 8, 3)


@kernel
def _gate_up(
    x,
    codes,
    scale,
    shared_data,
    shared_scale,
    weights,
    order,
    num_tiles,
    tiles,
    arrivals,
    routed,
    shared,
    num_rows,
    num_shared_tiles,
    width,
    inner,
    limit,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Grid (rows of weights, tiles): ROWS / 2 columns of hidden, for the rows of one tile."""
    block, tile = tl.program_id(0), tl.program_id(1)
    counter = arrivals + tile * (tl.num_programs(0) * ROWS // 256) + block * (ROWS // 2) // 128
    token = tl.arange(0, TOKENS)
    if tile < num_shared_tiles:
        first = tile * TOKENS
        row = tl.minimum(first + token, num_rows - 1)
        at = tl.arange(0, ROWS)  # gate and up rows in turns of eight
        out = at // 8 % 2 * inner + block * (ROWS // 2) + at // 16 * 8 + at % 8
        acc = _shared_product(x, row * width, shared_data, shared_scale, out, width, ROWS, TOKENS)
        hidden = _swiglu(acc, limit, ROWS, TOKENS)
        count = tl.minimum(num_rows - first, TOKENS)
        _store_hidden(shared, counter, hidden, first, count, block, inner, ROWS, TOKENS)
    elif tile - num_shared_tiles < tl.load(num_tiles):
        tiles += (tile - num_shared_tiles) * 3
        expert, first, count = tl.load(tiles), tl.load(tiles + 1), tl.load(tiles + 2)
        pair = tl.load(order + first + tl.minimum(token, count - 1))
        start = (expert.to(tl.int64) * (inner // 32) + block * (ROWS // 64)) * (width // 128 * 64)
        acc = _routed_product(x, pair // SLOTS * width, codes + start * 64, scale + start, width, ROWS, TOKENS)
        hidden = _swiglu(acc, limit, ROWS, TOKENS) * tl.load(weights + pair)[None, :]
        _store_hidden(routed, counter, hidden, first, count, block, inner, ROWS, TOKENS)


@kernel
def _down(
    routed,
    shared,
    codes,
    scale,
    shared_data,
    shared_scale,
    order,
    num_tiles,
    tiles,
    routed_out,
    shared_out,
    num_rows,
    num_shared_tiles,
    width,
    inner,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Grid (rows of weights, tiles): ROWS columns of the products, for a tile's rows, stored at a pair's number."""
    block, tile = tl.program_id(0), tl.program_id(1)
    token, column = tl.arange(0, TOKENS), block * ROWS + tl.arange(0, ROWS)
    if tile < num_shared_tiles:
        row = tile * TOKENS + token
        read = tl.minimum(row, num_rows - 1)
        acc = _shared_product(shared, read * inner, shared_data, shared_scale, column, inner, ROWS, TOKENS)
        at = shared_out + row.to(tl.int64)[None, :] * width + column[:, None]
        tl.store(at, to_bf16(acc), mask=(row < num_rows)[None, :])
    elif tile - num_shared_tiles < tl.load(num_tiles):
        tiles += (tile - num_shared_tiles) * 3
        expert, first, count = tl.load(tiles), tl.load(tiles + 1), tl.load(tiles + 2)
        row = first + tl.minimum(token, count - 1)
        start = (expert.to(tl.int64) * (width // 64) + block * (ROWS // 64)) * (inner // 128 * 64)
        acc = _routed_product(routed, row * inner, codes + start * 64, scale + start, inner, ROWS, TOKENS)
        at = routed_out + tl.load(order + row).to(tl.int64)[None, :] * width + column[:, None]
        tl.store(at, to_bf16(acc), mask=(token < count)[None, :])


@kernel
def _add(routed, shared, out, width, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (rows, columns): the products of a row's experts in order of slots, then that of the shared expert."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for slot in tl.static_range(SLOTS):
        total += tl.load(routed + (row * SLOTS + slot) * width + column, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(shared + row * width + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, to_bf16(total), mask=mask)


@kernel
def _routed_product(x, token, codes, scale, width, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """float32 [ROWS, TOKENS]: ROWS rows of weights, all columns, times rows of x.

    The weights are the tiles from `codes` and `scale` on; `token` [TOKENS] is where the rows of x start.
    """
    tile, row = tile_rows(ROWS)
    codes += (tile * (width // 128 * 4096) + row * 64)[:, None] + tl.arange(0, 64)[None, :]
    scale += tile * (width // 128 * 64) + row
    x += token[None, :] + tl.arange(0, 128)[:, None]
    acc = tl.zeros((ROWS, TOKENS), tl.float32)
    for step in range(width // 128):
        acc = dot(unpack(tl.load(codes + step * 4096), tl.load(scale + step * 64)), tl.load(x + step * 128), acc)
    return acc


@kernel
def _shared_product(x, token, data, scale, out, width, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """Rows `out` [ROWS] of an FP8 weight times the rows of x that start at `token` [TOKENS]: float32 [ROWS, TOKENS]."""
    data += out[:, None] * width + tl.arange(0, 128)[None, :]
    scale += out * (width // 128)
    x += token[None, :] + tl.arange(0, 128)[:, None]
    acc = tl.zeros((ROWS, TOKENS), tl.float32)
    factor = tl.load(scale)
    for step in range(width // 128):
        following = tl.load(scale + tl.minimum(step + 1, width // 128 - 1))  # a step ahead: nothing may wait for it
        acc += dot(widen_e4m3(tl.load(data + step * 128)), tl.load(x + step * 128)) * from_e8m0(factor)[:, None]
        factor = following
    return acc


@kernel
def _swiglu(acc, limit, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """Gate and up rows in turns of eight [ROWS, TOKENS] -> float32 [ROWS / 2, TOKENS]; one thread holds both."""
    gate, up = tl.split(acc.reshape(ROWS // 16, 2, 8, TOKENS).permute(0, 2, 3, 1))
    gate = tl.minimum(round_bf16(gate), limit)
    up = tl.minimum(tl.maximum(round_bf16(up), -limit), limit)
    return (gate / (1 + tl.exp(-gate)) * up).reshape(ROWS // 2, TOKENS)


@kernel
def _store_hidden(out, counter, hidden, first, count, block, width, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """Store a part of hidden in bf16; the program that completes a block of 128 columns rounds it to e4m3."""
    token = tl.arange(0, TOKENS)
    at = out + (first + token)[None, :].to(tl.int64) * width + (block * (ROWS // 2) + tl.arange(0, ROWS // 2))[:, None]
    tl.store(at, to_bf16(hidden), mask=(token < count)[None, :])
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == 256 // ROWS - 1:
        _round_block(out, first, count, block * (ROWS // 2) // 128 * 128, width, TOKENS)


@kernel
def _round_block(hidden, first, count, first_column, width, TOKENS: tl.constexpr):
    token, column = tl.arange(0, TOKENS), first_column + tl.arange(0, 128)
    at = hidden + (first + token)[:, None].to(tl.int64) * width + column[None, :]
    mask = (token < count)[:, None]
    values = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
    tl.store(at, to_bf16(fake_e4m3(values, 1)), mask=mask)
