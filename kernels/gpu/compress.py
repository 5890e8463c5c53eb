"""Blocks of tokens pooled into packed entries, and the rings that later steps need (V4 spec 2.6, 3.1, 3.2).

Whether a row completes a block is a predicate inside the kernel: a captured graph serves every position.
"""

from typing import Any

import torch
from torch import Tensor

from holdfast.kernels.gpu.attention import rope_channels
from holdfast.kernels.gpu.formats import write_index_key, write_keys
from holdfast.kernels.gpu.gemm import linear_bf16
from holdfast.kernels.gpu.jit import kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.norm import inverse_rms
from holdfast.kernels.gpu.quant import round_bf16
from holdfast.kernels.gpu.rows import DeviceRows


def block_rows(x: Tensor, rows: DeviceRows, w: Any) -> tuple[Tensor, Tensor]:
    """x bf16 [N, D] -> values and gates float32 [N, 2 * width], index head weights float32 [N, num_index_heads].

    w: CompressWeights, w_blocks bf16 [2 * width + num_index_heads, D].
    """
    ratio, width = w.ape.shape
    products = linear_bf16(x, w.w_blocks, torch.float32)
    mixed = products.new_empty(len(x), 2 * width)
    head_weights = products.new_empty(len(x), products.shape[1] - 2 * width)
    launch(
        split_products,
        (len(x), -(-products.shape[1] // 1024)),
        products,
        rows.positions,
        w.ape,
        mixed,
        head_weights,
        w.index_scale,
        RATIO=ratio,
        WIDTH=width,
        NUM_HEADS=head_weights.shape[1],
        COUNT=1024,
    )
    return mixed, head_weights


@kernel
def split_products(
    products,
    positions,
    ape,
    mixed,
    head_weights,
    index_scale,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    COUNT: tl.constexpr,
):
    """COUNT columns of one row: gates get the bias of their place in the block, head weights their scale."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COUNT + tl.arange(0, COUNT)
    is_head = (column >= 2 * WIDTH) & (column < 2 * WIDTH + NUM_HEADS)
    is_gate = (column >= WIDTH) & (column < 2 * WIDTH)
    x = tl.load(products + row * (2 * WIDTH + NUM_HEADS) + column, mask=column < 2 * WIDTH + NUM_HEADS)
    place = tl.load(positions + row) % RATIO
    gate_bias = tl.load(ape + place * WIDTH + column - WIDTH, mask=is_gate, other=0.0)
    tl.store(mixed + row * (2 * WIDTH) + column, x + gate_bias, mask=column < 2 * WIDTH)
    tl.store(head_weights + row * NUM_HEADS + column - 2 * WIDTH, round_bf16(x) * index_scale, mask=is_head)


def complete_blocks(mixed: Tensor, rows: DeviceRows, ring: Tensor, pool: Tensor, index_pool: Tensor, w: Any) -> None:
    """Write the entries of all blocks that end in these rows, into the pools at the places their pages say.

    mixed float32 [N, 2 * width], ring float32 [slots, length, 2 * width]. Pools are packed
    (`holdfast.kernels.gpu.pools`), or float32 [rows, channels] for rows that are not rounded. w: CompressWeights, all
    float32 but for freqs.
    """
    has_index = len(w.index_norm) > 0
    head_dim, index_dim = len(w.entry_norm), len(w.index_norm)
    is_packed = pool.dtype == torch.uint8
    assert is_packed == w.rounds_rows, (pool.dtype, w.rounds_rows)
    launch(
        complete_block,
        (len(mixed), 1 + has_index),
        mixed,
        rows.positions,
        rows.owners,
        rows.starts,
        rows.slots,
        rows.dropped,
        rows.pages,
        ring,
        pool,
        index_pool,
        w.entry_norm,
        w.index_norm,
        w.hadamard,
        w.freqs,
        w.eps,
        rows.pages.shape[1],
        ring.shape[1],
        rows.page_tokens // w.ratio,
        pool.shape[1],
        RATIO=w.ratio,
        WIDTH=w.ape.shape[1],
        DIM=head_dim,
        BLOCK=max(64, next_power_of_two(head_dim)),
        INDEX_DIM=index_dim,
        ROTATED=2 * len(w.freqs),
        ROPE=rope_channels(head_dim, pool.shape[1]) if is_packed else 0,
        OVERLAPS=w.overlaps,
        IS_PACKED=is_packed,
        num_warps=8,
    )


@kernel
def complete_block(
    mixed,
    positions,
    owners,
    starts,
    slots,
    dropped,
    pages,
    ring,
    pool,
    index_pool,
    entry_norm,
    index_norm,
    hadamard,
    freqs,
    eps,
    num_pages,
    ring_length,
    per_page,
    stride,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    INDEX_DIM: tl.constexpr,
    ROTATED: tl.constexpr,
    ROPE: tl.constexpr,
    OVERLAPS: tl.constexpr,
    IS_PACKED: tl.constexpr,
):
    """The entry, or with program 1 of axis 1 the index key, of the block that ends with a row, if one does."""
    row = tl.program_id(0)
    owner = tl.load(owners + row)
    t = tl.load(positions + row)
    if (owner < 0) | ((t + 1) % RATIO != 0):
        return
    start = tl.load(starts + owner)
    first = tl.load(positions + start)
    block = t // RATIO
    entry = block - tl.load(dropped + owner) // RATIO
    page = tl.load(pages + owner.to(tl.int64) * num_pages + entry // per_page).to(tl.int64)
    old = ring + tl.load(slots + owner).to(tl.int64) * ring_length * (2 * WIDTH)
    new = mixed + start.to(tl.int64) * (2 * WIDTH)
    place = page * per_page + entry % per_page
    if tl.program_id(1) == 0:
        key = pool_block(new, old, block, first, ring_length, 0, RATIO, WIDTH, DIM, BLOCK, OVERLAPS)
        key = rotate(normalise(key, entry_norm, eps, DIM), freqs, block * RATIO, DIM, ROTATED)
        if IS_PACKED:
            at = place * stride + tl.zeros([1], tl.int64)
            write_keys(key.reshape(1, BLOCK // 64, 64), pool, at, at >= 0, DIM - ROPE, ROPE)
        else:
            column = tl.arange(0, BLOCK)
            tl.store(pool + place * DIM + column, key, mask=column < DIM)
    elif INDEX_DIM:
        index_key = pool_block(new, old, block, first, ring_length, DIM, RATIO, WIDTH, INDEX_DIM, INDEX_DIM, OVERLAPS)
        index_key = rotate(normalise(index_key, index_norm, eps, INDEX_DIM), freqs, block * RATIO, INDEX_DIM, ROTATED)
        channel = tl.arange(0, INDEX_DIM)
        matrix = tl.load(hadamard + channel[:, None] * INDEX_DIM + channel[None, :])
        index_key = round_bf16(tl.sum(index_key[:, None] * matrix, 0))
        if IS_PACKED:
            page_bytes = per_page * (INDEX_DIM // 2 + INDEX_DIM // 32)
            codes = index_pool + page * page_bytes + entry % per_page * (INDEX_DIM // 2)
            scales = index_pool + page * page_bytes + per_page * (INDEX_DIM // 2) + entry % per_page * (INDEX_DIM // 32)
            write_index_key(index_key, codes, scales, INDEX_DIM)
        else:
            tl.store(index_pool + place * INDEX_DIM + channel, index_key)


@kernel
def pool_block(
    new,
    old,
    block,
    first,
    ring_length,
    FROM: tl.constexpr,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Channels FROM ... FROM + DIM of a block, pooled: rounded to bf16, zero past DIM.

    Per channel, a softmax over its slots weighs the values.

    With overlap the previous block's slots give their A half and the block's own their B half. Eight slots at a time,
    in order.
    """
    back = RATIO if OVERLAPS else 0
    channel = tl.arange(0, BLOCK)[None, :]
    top = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, RATIO + back, 8):
        slot = begin + tl.arange(0, 8)
        position = block * RATIO - back + slot
        column = FROM + tl.where(slot < back, 0, WIDTH // 2 if OVERLAPS else 0)[:, None] + channel
        is_there = (position >= 0)[:, None] & (channel < DIM)
        is_new, is_old = is_there & (position >= first)[:, None], is_there & (position < first)[:, None]
        new_at = new + tl.maximum(position - first, 0)[:, None] * (2 * WIDTH) + column
        old_at = old + (tl.maximum(position, 0) % ring_length)[:, None] * (2 * WIDTH) + column
        gates = tl.load(new_at + WIDTH, mask=is_new, other=0.0)
        gates += tl.load(old_at + WIDTH, mask=is_old, other=0.0)
        values = tl.load(new_at, mask=is_new, other=0.0)
        values += tl.load(old_at, mask=is_old, other=0.0)
        gates = tl.where((position >= 0)[:, None], gates, float("-inf"))
        higher = tl.maximum(top, tl.max(gates, 0))
        weights, fade = tl.exp(gates - higher[None, :]), tl.exp(top - higher)
        total = total * fade + tl.sum(weights, 0)
        sums = sums * fade + tl.sum(weights * values, 0)
        top = higher
    return round_bf16(sums / total)


@kernel
def normalise(x, weight, eps, DIM: tl.constexpr):
    """RMS norm of x [BLOCK] that is zero past DIM, rounded to bf16."""
    channel = tl.arange(0, x.shape[0])
    scale = inverse_rms(tl.sum(x * x, 0), DIM, eps)
    return round_bf16(x * scale * tl.load(weight + channel, mask=channel < DIM, other=0.0))


@kernel
def rotate(x, freqs, position, DIM: tl.constexpr, ROTATED: tl.constexpr):
    """The last ROTATED of DIM channels of x [BLOCK], as pairs, by the angles of a position; rounded to bf16."""
    HALF: tl.constexpr = x.shape[0] // 2
    pair = tl.arange(0, HALF) - (DIM - ROTATED) // 2
    is_turned = (pair >= 0) & (pair < ROTATED // 2)
    angle = position.to(tl.float64) * tl.load(freqs + pair, mask=is_turned, other=0.0)
    cos, sin = turn(angle)
    even, odd = tl.split(x.reshape(HALF, 2))
    return round_bf16(tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(x.shape[0]))


@kernel
def turn(angle):
    """Cosine and sine of float64 angles, as float32.

    Taylor series of the rest after quarters of a turn, with an error below 1e-11. Pi / 2 is subtracted in three parts
    of 27 bits and more, so that products with up to 2^26 quarters are exact.
    """
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = angle - quarters * 1.570796325802803
    x = x - quarters * 9.920935739593517e-10
    x = x - quarters * 5.721188726109832e-18
    z = x * x
    sin = z * (-1.0 / 5040) + (z * z) * (1.0 / 362880) - (z * z * z) * (1.0 / 39916800)
    sin = x * (1.0 + z * (-1.0 / 6 + z * (1.0 / 120 + sin)))
    cos = z * (1.0 / 40320) - (z * z) * (1.0 / 3628800) + (z * z * z) * (1.0 / 479001600)
    cos = 1.0 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + cos)))
    quarter = quarters.to(tl.int64) & 3
    is_odd, is_far, is_last = (quarter & 1) == 1, (quarter == 1) | (quarter == 2), quarter >= 2
    turned_cos, turned_sin = tl.where(is_odd, sin, cos), tl.where(is_odd, cos, sin)
    cos = tl.where(is_far, -turned_cos, turned_cos)
    return cos.to(tl.float32), tl.where(is_last, -turned_sin, turned_sin).to(tl.float32)


def store(rows: DeviceRows, *pairs: tuple[Tensor, Tensor]) -> None:
    """Put the last rows of each segment into its ring, at position % length; of one pair or two.

    A pair is a source [N, width] and a ring [slots, length, width].
    """
    (source, ring), (other, other_ring) = pairs[0], pairs[-1]
    width, other_width = source.shape[1], other.shape[1] if len(pairs) == 2 else 0
    launch(
        store_rows,
        (len(source), -(-width // 1024) + -(-other_width // 1024)),
        rows.positions,
        rows.owners,
        rows.starts,
        rows.slots,
        source,
        ring,
        ring.shape[1],
        other,
        other_ring,
        other_ring.shape[1],
        WIDTH=width,
        OTHER_WIDTH=other_width,
        COUNT=1024,
    )


@kernel
def store_rows(
    positions,
    owners,
    starts,
    slots,
    source,
    ring,
    ring_length,
    other,
    other_ring,
    other_length,
    WIDTH: tl.constexpr,
    OTHER_WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Grid (rows, parts of COUNT columns of the one, then of the other)."""
    part = tl.program_id(1)
    parts: tl.constexpr = (WIDTH + COUNT - 1) // COUNT
    if part < parts:
        store_part(positions, owners, starts, slots, source, ring, ring_length, part, WIDTH, COUNT)
    elif OTHER_WIDTH:
        store_part(positions, owners, starts, slots, other, other_ring, other_length, part - parts, OTHER_WIDTH, COUNT)


@kernel
def store_part(
    positions, owners, starts, slots, source, ring, ring_length, part, WIDTH: tl.constexpr, COUNT: tl.constexpr
):
    """COUNT columns of a row, if no later row of its segment goes to the same place."""
    row = tl.program_id(0)
    owner = tl.load(owners + row)
    end = tl.load(starts + tl.maximum(owner, 0) + 1)
    if (owner >= 0) & (row + ring_length >= end):
        column = part * COUNT + tl.arange(0, COUNT)
        place = tl.load(slots + owner).to(tl.int64) * ring_length + tl.load(positions + row) % ring_length
        x = tl.load(source + row.to(tl.int64) * WIDTH + column, mask=column < WIDTH)
        tl.store(ring + place * WIDTH + column, x, mask=column < WIDTH)
