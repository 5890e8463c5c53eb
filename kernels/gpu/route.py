"""Which experts a row goes to, and the order of their products: rows sorted by expert, in tiles of one expert.

A pair is one row at one of its experts, number row * k + slot; a row's slots are in ascending order of experts, which
is the order in which the twin adds them. Sorting is stable and exact integer work: where a pair lies decides nothing
about its value.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.gpu.jit import kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.quant import fake_e4m3, to_bf16

BLOCK_ROWS = 16  # routed by one program


class Plan(NamedTuple):
    """Pairs in order of experts. Tile t is rows first ... first + count - 1 of that order, all of one expert."""

    weights: Tensor  # float32 [N, k]
    experts: Tensor  # int32 [N, k], ascending
    order: Tensor  # int32 [N * k]: pairs
    num_tiles: Tensor  # int32 [1]
    tiles: Tensor  # int32 [most tiles, 3]: expert, first, count
    arrivals: Tensor  # int32 [most tiles + shared tiles, groups], zero


def plan(x: Tensor, scores: Tensor, ids: Tensor, w: Any, tokens: int, groups: int) -> tuple[Plan, Tensor]:
    """The plan of x bf16 [N, D], in tiles of `tokens` rows, and x as bf16, rounded to e4m3 in blocks of 128.

    scores float32 [N, E] are those before their activation. Hidden values have `groups` such blocks.
    """
    num_rows, width = x.shape
    num_experts, device, k = scores.shape[1], x.device, w.k
    pairs = num_rows * k
    most_tiles = min(pairs, pairs // tokens + num_experts)
    num_blocks = -(-num_rows // BLOCK_ROWS)

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    out = Plan(
        torch.empty(num_rows, k, device=device),
        ints(num_rows, k),
        ints(pairs),
        ints(1),
        ints(most_tiles, 3),
        ints(most_tiles + -(-num_rows // tokens), groups),
    )
    rounded = torch.empty_like(x)
    counts = ints(num_blocks, num_experts)
    hashed, alone = len(w.tid2eid) > 0, num_blocks == 1
    bins = next_power_of_two(num_experts)
    shape = {"ROWS": 1 if num_rows == 1 else BLOCK_ROWS, "K": k, "SLOTS": next_power_of_two(k)}
    launch(
        _route,
        (num_blocks + -(-num_rows * width // 2048),),
        x,
        rounded,
        num_rows * width // 128,
        scores,
        ids,
        w.tid2eid if hashed else w.bias,
        counts,
        *out,
        num_rows,
        num_blocks,
        num_experts,
        tokens,
        w.factor,
        out.arrivals.numel(),
        BINS=bins,
        HASHED=hashed,
        ALONE=alone,
        **shape,
    )
    if not alone:
        launch(
            _scan,
            (1,),
            counts,
            out.num_tiles,
            out.tiles,
            out.arrivals,
            num_blocks,
            num_experts,
            tokens,
            out.arrivals.numel(),
            BINS=bins,
            BLOCKS=16,
            num_warps=8,
        )
        launch(_place, (num_blocks,), counts, out.experts, out.order, num_rows, num_experts, **shape)
    return out, rounded


@kernel
def _route(
    x,
    rounded,
    num_x_blocks,
    scores,
    ids,
    table,
    counts,
    weights,
    experts,
    order,
    num_tiles,
    tiles,
    arrivals,
    num_rows,
    num_blocks,
    num_experts,
    num_tokens,
    factor,
    num_arrivals,
    BINS: tl.constexpr,
    HASHED: tl.constexpr,
    ALONE: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """The first `num_blocks` programs choose experts, the others round x. A block that is alone also sorts."""
    block = tl.program_id(0)
    if block >= num_blocks:
        _round(x, rounded, block - num_blocks, num_x_blocks)
        return
    row = block * ROWS + tl.arange(0, ROWS)
    if HASHED:
        token = tl.load(ids + row, mask=row < num_rows, other=0)
        slot = tl.arange(0, SLOTS)[None, :]
        chosen = tl.load(table + token.to(tl.int64)[:, None] * K + slot, mask=slot < K, other=0)
    else:
        chosen = _best(scores, table, row, num_rows, num_experts, BINS, ROWS, K, SLOTS)
    _weigh(scores, chosen, row, num_rows, weights, experts, num_experts, factor, ROWS, K, SLOTS)
    tl.debug_barrier()
    _count(counts, experts, block, num_rows, num_experts, BINS, ROWS, K, SLOTS)
    if ALONE:
        tl.debug_barrier()
        _order_experts(counts, num_tiles, tiles, arrivals, 1, num_experts, num_tokens, num_arrivals, BINS, 1)
        tl.debug_barrier()
        _place_block(counts, experts, order, 0, num_rows, num_experts, ROWS, K, SLOTS)


@kernel
def _scan(
    counts,
    num_tiles,
    tiles,
    arrivals,
    num_blocks,
    num_experts,
    num_tokens,
    num_arrivals,
    BINS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    _order_experts(counts, num_tiles, tiles, arrivals, num_blocks, num_experts, num_tokens, num_arrivals, BINS, BLOCKS)


@kernel
def _place(counts, experts, order, num_rows, num_experts, ROWS: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr):
    _place_block(counts, experts, order, tl.program_id(0), num_rows, num_experts, ROWS, K, SLOTS)


@kernel
def _round(x, rounded, program, num_blocks):
    """16 blocks of 128 values to e4m3 and back."""
    block = program * 16 + tl.arange(0, 16)
    at = block[:, None].to(tl.int64) * 128 + tl.arange(0, 128)[None, :]
    mask = (block < num_blocks)[:, None]
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(rounded + at, to_bf16(fake_e4m3(values, 1)), mask=mask)


@kernel
def activation(y):
    """sqrt(softplus(y)): log(1 + z) as a series of s = z / (2 + z), which is exact to float32 for z <= 1."""
    z = tl.exp(-tl.abs(y))
    s = z / (2 + z)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.sqrt_rn(tl.maximum(y, 0.0) + 2 * s * series)


@kernel
def _best(
    scores,
    bias,
    row,
    num_rows,
    num_experts,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """The K best of score + bias, ties to the lower expert: int32 [ROWS, SLOTS]."""
    expert, slot = tl.arange(0, BINS)[None, :], tl.arange(0, SLOTS)[None, :]
    exists = expert < num_experts
    y = tl.load(scores + row[:, None] * num_experts + expert, mask=exists & (row < num_rows)[:, None], other=0.0)
    left = tl.where(exists, activation(y) + tl.load(bias + expert, mask=exists, other=0.0), -float("inf"))
    chosen = tl.zeros((ROWS, SLOTS), tl.int32)
    for i in tl.static_range(K):
        best = tl.minimum(tl.argmax(left, 1, tie_break_left=True), num_experts - 1)[:, None]
        chosen = tl.where(slot == i, best, chosen)
        left = tl.where(expert == best, -float("inf"), left)
    return chosen


@kernel
def _weigh(
    scores,
    chosen,
    row,
    num_rows,
    weights,
    experts,
    num_experts,
    factor,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Store the weights and numbers of the chosen experts [ROWS, SLOTS], in ascending order."""
    slot = tl.arange(0, SLOTS)[None, :]
    valid = (slot < K) & (row < num_rows)[:, None]
    y = tl.load(scores + row[:, None] * num_experts + chosen, mask=valid, other=0.0)
    score = tl.where(valid, activation(y), 0.0)
    weight = score * (factor / tl.maximum(tl.sum(score, 1, keep_dims=True), 1e-37))
    key = tl.where(slot < K, chosen, num_experts) * SLOTS + slot
    rank = tl.sum((key[:, None, :] < key[:, :, None]).to(tl.int32), 2)
    at = row[:, None] * K + rank
    tl.store(weights + at, weight, mask=valid)
    tl.store(experts + at, chosen, mask=valid)


@kernel
def _pairs(experts, block, num_rows, ROWS: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr):
    """The pairs of a block of rows and their experts, -1 where there is none: int32 [ROWS * SLOTS] both."""
    row, slot = block * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, SLOTS)[None, :]
    pair = row * K + slot
    expert = tl.load(experts + pair, mask=(row < num_rows) & (slot < K), other=-1)
    return pair.reshape(ROWS * SLOTS), expert.reshape(ROWS * SLOTS)


@kernel
def _count(
    counts,
    experts,
    block,
    num_rows,
    num_experts,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Store how many pairs of a block go to each expert."""
    _, expert = _pairs(experts, block, num_rows, ROWS, K, SLOTS)
    bins = tl.arange(0, BINS)
    elsewhere = tl.sum((expert < 0).to(tl.int32), 0)
    count = tl.histogram(tl.maximum(expert, 0), BINS) - tl.where(bins == 0, elsewhere, 0)
    tl.store(counts + block * num_experts + bins, count, mask=bins < num_experts)


@kernel
def _order_experts(
    counts,
    num_tiles,
    tiles,
    arrivals,
    num_blocks,
    num_experts,
    num_tokens,
    num_arrivals,
    BINS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Replace counts of blocks by where their pairs start in the order; list tiles of at most `num_tokens` rows."""
    expert, step = tl.arange(0, BINS), tl.arange(0, BLOCKS)
    total = tl.zeros((BINS,), tl.int32)
    for first in range(0, num_blocks, BLOCKS):
        at = (first + step)[:, None] * num_experts + expert[None, :]
        total += tl.sum(tl.load(counts + at, mask=_inside(first + step, num_blocks, expert, num_experts), other=0), 0)
    start = tl.cumsum(total, 0) - total
    expert_tiles = (total + num_tokens - 1) // num_tokens
    first_tile = tl.cumsum(expert_tiles, 0) - expert_tiles
    tl.store(num_tiles, tl.sum(expert_tiles, 0))
    for i in range(tl.max(expert_tiles, 0)):
        at, mask = tiles + (first_tile + i) * 3, i < expert_tiles
        tl.store(at, expert, mask=mask)
        tl.store(at + 1, start + i * num_tokens, mask=mask)
        tl.store(at + 2, tl.minimum(total - i * num_tokens, num_tokens), mask=mask)
    for first in range(0, num_arrivals, 1024):
        at = first + tl.arange(0, 1024)
        tl.store(arrivals + at, tl.zeros((1024,), tl.int32), mask=at < num_arrivals)
    for first in range(0, num_blocks, BLOCKS):
        at = (first + step)[:, None] * num_experts + expert[None, :]
        mask = _inside(first + step, num_blocks, expert, num_experts)
        count = tl.load(counts + at, mask=mask, other=0)
        tl.store(counts + at, start[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        start += tl.sum(count, 0)


@kernel
def _inside(block, num_blocks, expert, num_experts):
    return (block < num_blocks)[:, None] & (expert < num_experts)[None, :]


@kernel
def _place_block(
    starts, experts, order, block, num_rows, num_experts, ROWS: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr
):
    """Write the pairs of a block of rows at their places in the order, those of one expert by row."""
    pair, expert = _pairs(experts, block, num_rows, ROWS, K, SLOTS)
    same_before = (expert[None, :] == expert[:, None]) & (pair[None, :] < pair[:, None])
    here = expert >= 0
    start = tl.load(starts + block * num_experts + expert, mask=here, other=0)
    tl.store(order + start + tl.sum(same_before.to(tl.int32), 1), pair, mask=here)
