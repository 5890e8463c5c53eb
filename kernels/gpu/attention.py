"""Attention of queries over window rows and compressed entries (V4 spec 2.5, 5.3).

Three launches: gather rows as bf16, attend to them in splits, combine the splits. Split 0 is the window, the others are
fixed blocks of entries in order, independent of the step: a row has the same splits alone, in a batch and in a prefill
chunk, so it has the same bits.

Keys are the 64-row operand of the products and heads the narrow one, so scores and the accumulator are transposed:
[keys, heads] and [channels, heads].
"""

import math
from typing import Any

import torch
from torch import Tensor

from holdfast.kernels.gpu.formats import read_keys
from holdfast.kernels.gpu.jit import dot, kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.quant import round_bf16, to_bf16
from holdfast.kernels.gpu.rope import rotate
from holdfast.kernels.gpu.rows import DeviceRows

TILE = 64  # keys per step of a split
HEAD_TILE = 16
GATHERED = 16  # rows per program that gathers
WORKSPACE_BYTES = 1 << 28  # of gathered entries and partial results of a few rows
LARGE_WORKSPACE_BYTES = 1 << 26  # of many rows: what is still in the cache when it is read


def attend(
    q: Tensor,
    kv: Tensor,
    freqs_cis: Tensor,
    rows: DeviceRows,
    ring: Tensor,
    pool: Tensor,
    chosen: Tensor | None,
    w: Any,
) -> Tensor:
    """q bf16 [N, H, d], kv bf16 [N, d], freqs_cis float32 [N, P, 2] -> bf16 [N, H, d].

    ring bf16 [slots, length, d], pool uint8 [rows, stride], chosen int32 [N, k]; w: AttendWeights, the sink in float32.
    Segments that have rows come first, one after the other, then padding.
    """
    n, heads, dim = q.shape
    o = torch.empty_like(q)
    block = max(64, next_power_of_two(dim))
    per_page = rows.page_tokens // w.ratio if w.ratio else 0
    num_slots = 0 if not w.ratio else rows.pages.shape[1] * per_page if chosen is None else chosen.shape[1]
    room = -(-num_slots // TILE) * TILE
    split = 256 if w.ratio == 128 else 128
    num_splits = 1 + -(-num_slots // split)

    num_segments = len(rows.slots)
    band = q.new_empty(num_segments * (w.window - 1) + n + TILE, block)
    row_bytes = num_splits * heads * (block + 2) * 4 + room * block * 2
    chunk = min(n, max(1, (LARGE_WORKSPACE_BYTES if n > 64 else WORKSPACE_BYTES) // row_bytes))
    lists = chunk if chosen is not None else min(chunk, num_segments)  # of entries, of a row or of a segment
    entries = q.new_empty(lists * room, block)
    partial = torch.empty(chunk, heads, num_splits, block, dtype=torch.float32, device=q.device)
    stats = torch.empty(2, chunk, heads, num_splits, dtype=torch.float32, device=q.device)
    shape = {"WINDOW": w.window, "RATIO": w.ratio, "BLOCK": block, "DIM": dim, "IS_CHOSEN": chosen is not None}

    for first in range(0, n, chunk):
        count = min(chunk, n - first)
        gather(kv, rows, ring, pool, chosen, band, entries, first, count, lists, num_slots, shape)
        launch(
            attend_rows,
            (count, -(-heads // HEAD_TILE), num_splits),
            *(q, band, entries, chosen, rows.positions, rows.owners, rows.dropped, partial, stats),
            *(first, chunk, heads, num_splits, num_slots, room, w.scale * math.log2(math.e)),
            **shape,
            SPLIT=split,
            HEAD_TILE=HEAD_TILE,
        )
        launch(
            combine_splits,
            (count, heads),
            *(partial, stats, w.sink, rows.owners, freqs_cis, o),
            *(first, chunk, num_splits),
            HEADS=heads,
            DIM=dim,
            BLOCK=block,
            ROPE=2 * freqs_cis.shape[1],
        )
    return o


def gather(kv, rows, ring, pool, chosen, band, entries, first, count, lists, num_slots, shape) -> None:
    """Window rows of all segments into `band` with the first chunk, then entries of rows first ... first + count."""
    n, dim = kv.shape
    band_programs = 0 if first else -(-len(band) // GATHERED)
    is_shared = chosen is None and len(rows.slots) == 1  # one list, which the first chunk has gathered
    room = -(-num_slots // TILE) * TILE
    entry_programs = 0 if first and is_shared else lists * (room // GATHERED)
    rope = 0 if not shape["RATIO"] else rope_channels(dim, pool.shape[1])
    launch(
        gather_rows,
        (band_programs + entry_programs,),
        *(kv, ring, pool, chosen),
        *(rows.positions, rows.owners, rows.starts, rows.slots, rows.dropped, rows.pages),
        *(band, entries),
        *(n, len(rows.slots), first, count, band_programs, rows.pages.shape[1], num_slots, room),
        *(ring.shape[1], pool.shape[-1], rows.page_tokens // max(shape["RATIO"], 1)),
        **shape,
        ROPE=rope,
        COUNT=GATHERED,
    )


@kernel
def gather_rows(
    kv,
    ring,
    pool,
    chosen,
    positions,
    owners,
    starts,
    slots,
    dropped,
    pages,
    band,
    entries,
    num_rows,
    num_segments,
    num_before,
    num_chunk,
    num_band_programs,
    num_pages,
    num_slots,
    num_room,
    ring_length,
    stride,
    per_page,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    IS_CHOSEN: tl.constexpr,
    COUNT: tl.constexpr,
):
    """COUNT rows of the band, or of the entries."""
    pid = tl.program_id(0)
    if pid < num_band_programs:
        gather_window(
            pid,
            kv,
            ring,
            positions,
            owners,
            starts,
            slots,
            band,
            num_rows,
            num_segments,
            ring_length,
            WINDOW,
            BLOCK,
            DIM,
            COUNT,
        )
    elif RATIO:
        gather_entries(
            pid - num_band_programs,
            pool,
            chosen,
            positions,
            owners,
            starts,
            dropped,
            pages,
            entries,
            num_rows,
            num_segments,
            num_before,
            num_chunk,
            num_pages,
            num_slots,
            num_room,
            stride,
            per_page,
            RATIO,
            BLOCK,
            DIM,
            ROPE,
            IS_CHOSEN,
            COUNT,
        )


@kernel
def gather_window(
    pid,
    kv,
    ring,
    positions,
    owners,
    starts,
    slots,
    band,
    num_rows,
    num_segments,
    ring_length,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    COUNT: tl.constexpr,
):
    """The band has for each segment the WINDOW - 1 rows before its first, from the ring, then its own.

    So a window is a run of WINDOW rows. What is not there is zero.
    """
    i = pid * COUNT + tl.arange(0, COUNT)
    num_old = num_segments * (WINDOW - 1)
    segment = tl.minimum(i // max(WINDOW - 1, 1), num_segments - 1)
    start = tl.load(starts + segment)
    back = (segment + 1) * (WINDOW - 1) - i  # tokens before the segment's first
    position = tl.load(positions + start, mask=start < tl.load(starts + segment + 1), other=0) - back
    is_old = (i < num_old) & (position >= 0)
    slot = tl.load(slots + segment).to(tl.int64)
    new = i - num_old
    owner = tl.load(owners + new, mask=(new >= 0) & (new < num_rows), other=-1)
    shift = tl.where(owner >= 0, owner + 1, num_segments) * (WINDOW - 1)
    place = tl.where(i < num_old, start + i, new + shift).to(tl.int64)

    column = tl.arange(0, BLOCK)[None, :]
    old_row = slot * ring_length + tl.maximum(position, 0) % ring_length
    x = tl.load(ring + old_row[:, None] * DIM + column, mask=is_old[:, None] & (column < DIM), other=0.0)
    new_row = tl.maximum(new, 0).to(tl.int64)
    x += tl.load(kv + new_row[:, None] * DIM + column, mask=(owner >= 0)[:, None] & (column < DIM), other=0.0)
    tl.store(band + place[:, None] * BLOCK + column, x, mask=(new < num_rows + 64)[:, None])


@kernel
def gather_entries(
    pid,
    pool,
    chosen,
    positions,
    owners,
    starts,
    dropped,
    pages,
    entries,
    num_rows,
    num_segments,
    num_before,
    num_chunk,
    num_pages,
    num_slots,
    num_room,
    stride,
    per_page,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    ROPE: tl.constexpr,
    IS_CHOSEN: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Lists of num_room entries, one for each row of the chunk (chosen) or for each segment that has rows in it.

    Entries past the last one are zero as far as a tile of keys reaches.
    """
    at = pid // (num_room // COUNT)
    first = pid % (num_room // COUNT) * COUNT
    e = first + tl.arange(0, COUNT)
    if IS_CHOSEN:
        end = tl.where(at < num_chunk, num_slots, 0).to(tl.int64)
        place = tl.load(chosen + (num_before + at).to(tl.int64) * num_slots + e, mask=e < end, other=-1).to(tl.int64)
        seen = place >= 0
    else:
        segment = tl.load(owners + num_before) + at
        is_segment = (segment >= at) & (segment < num_segments)
        start = tl.load(starts + segment, mask=is_segment, other=num_rows)
        stop = tl.load(starts + segment + 1, mask=is_segment, other=0)
        is_here = (start < stop) & (start < num_before + num_chunk)
        last = tl.load(positions + stop - 1, mask=is_here, other=-1)
        end = (last + 1) // RATIO - tl.load(dropped + segment, mask=is_here, other=0) // RATIO
        seen = e < end
        page = tl.load(pages + segment.to(tl.int64) * num_pages + e // per_page, mask=seen, other=0)
        place = page.to(tl.int64) * per_page + e % per_page
    if first < tl.cdiv(end, 64) * 64:
        out_at = (at.to(tl.int64) * num_room + e) * BLOCK
        read_keys(pool, tl.where(seen, place, 0) * stride, seen, entries, out_at, DIM - ROPE, ROPE, BLOCK)


@kernel
def attend_rows(
    q,
    band,
    entries,
    chosen,
    positions,
    owners,
    dropped,
    partial,
    stats,
    num_before,
    num_chunk,
    num_heads,
    num_splits,
    num_slots,
    num_room,
    scale,
    WINDOW: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    IS_CHOSEN: tl.constexpr,
):
    """One split of one row for some heads: unnormalised output, largest score, sum of weights.

    Scores are exponents of two.
    """
    at = tl.program_id(0)
    row = (num_before + at).to(tl.int64)
    split = tl.program_id(2)
    owner = tl.load(owners + row)
    if owner < 0:
        return
    t = tl.load(positions + row)
    heads = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    columns, tile = tl.arange(0, BLOCK), tl.arange(0, 64)
    out = (at.to(tl.int64) * num_heads + heads) * num_splits + split
    top = tl.full([HEAD_TILE], -1e30, tl.float32)  # below any score, and its difference to one is finite
    total = tl.zeros([HEAD_TILE], tl.float32)
    num_stats = num_chunk.to(tl.int64) * num_heads * num_splits

    base = (split - 1) * SPLIT  # first entry
    if split == 0:
        keys = band + (row + owner * (WINDOW - 1)) * BLOCK
        size, lowest = WINDOW, tl.maximum(WINDOW - 1 - t, 0).to(tl.int32)
    elif IS_CHOSEN:
        keys = entries + (at.to(tl.int64) * num_room + base) * BLOCK
        size, lowest = tl.minimum(SPLIT, num_slots - base), 0
    else:
        visible = ((t + 1) // RATIO - tl.load(dropped + owner) // RATIO if RATIO else t * 0).to(tl.int32)
        keys = entries + ((owner - tl.load(owners + num_before)).to(tl.int64) * num_room + base) * BLOCK
        size, lowest = tl.minimum(SPLIT, visible - base), 0
    if size > 0:
        is_head = heads[None, :] < num_heads
        at_q = q + (row * num_heads + heads[None, :]) * DIM + columns[:, None]
        query = tl.load(at_q, mask=is_head & (columns[:, None] < DIM), other=0.0)  # [BLOCK, HEAD_TILE]
        o = tl.zeros([BLOCK, HEAD_TILE], tl.float32)
        for start in tl.range(0, size, 64, num_stages=2):
            e = start + tile
            key = tl.load(keys + e[:, None] * BLOCK + columns[None, :])  # [64, BLOCK]
            seen = (e >= lowest) & (e < size)
            if IS_CHOSEN:
                place = tl.load(chosen + row * num_slots + base + e, mask=e < tl.where(split > 0, size, 0), other=0)
                seen = seen & (place >= 0)
            score = tl.where(seen[:, None], dot(key, query) * scale, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 0))
            p, fade = tl.exp2(score - higher[None, :]), tl.exp2(top - higher)
            total = total * fade + tl.sum(p, 0)
            o = o * fade[None, :] + dot(tl.trans(key), to_bf16(p))
            top = higher
        tl.store(partial + out[None, :] * BLOCK + columns[:, None], o, mask=is_head)
    tl.store(stats + out, top, mask=heads < num_heads)
    tl.store(stats + num_stats + out, total, mask=heads < num_heads)


@kernel
def combine_splits(
    partial,
    stats,
    sink,
    owners,
    freqs_cis,
    o,
    num_before,
    num_chunk,
    num_splits,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROPE: tl.constexpr,
):
    """One head of one row: the splits in order, after the sink, which has no value; then rotated back.

    Padding rows get zeros.
    """
    at, head = tl.program_id(0), tl.program_id(1)
    row = (num_before + at).to(tl.int64)
    column = tl.arange(0, BLOCK)
    top = tl.load(sink + head) * 1.4426950408889634
    total = tl.exp2(top - top)
    sums = tl.zeros([BLOCK], tl.float32)
    base = (at.to(tl.int64) * HEADS + head) * num_splits
    num_stats = num_chunk.to(tl.int64) * HEADS * num_splits
    last = tl.where(tl.load(owners + row) < 0, 0, num_splits)
    for split in range(0, last):
        part_top = tl.load(stats + base + split)
        part_total = tl.load(stats + num_stats + base + split)
        if part_total > 0.0:
            part = tl.load(partial + (base + split) * BLOCK + column)
            higher = tl.maximum(top, part_top)
            fade, weight = tl.exp2(top - higher), tl.exp2(part_top - higher)
            total = total * fade + part_total * weight
            sums = sums * fade + part * weight
            top = higher
    x = rotate(round_bf16(sums / total).reshape(1, BLOCK), freqs_cis + row * ROPE, DIM, ROPE, BACK=True)
    tl.store(o + (row * HEADS + head) * DIM + column, to_bf16(x.reshape(BLOCK)), mask=column < DIM)


def rope_channels(dim: int, stride: int) -> int:
    """Of a key row of `dim` channels in a pool whose rows are `stride` bytes apart (see `pool_stride`)."""
    for nope in range(dim // 64 * 64, -1, -64):
        rope = dim - nope
        width = nope + 2 * rope + -(-(nope // 64) // 8) * 8
        if -(-width // 16) * 16 == stride:
            return rope
    raise AssertionError((dim, stride))
