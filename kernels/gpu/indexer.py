"""The lightning indexer: which compressed entries a query attends to (V4 spec 2.7).

Scores are rounded to bf16 as in the reference, so they order as 16-bit integers, and the k best are found exactly by
counting: how many scores have each upper byte, then, within the byte that the k-th best has, each lower byte. Counts
are kept per block of entries, so every block knows what the blocks before it contribute, and writes its own part of the
result in order.
"""

import torch
from torch import Tensor

from holdfast.kernels.gpu.formats import e2m1_values
from holdfast.kernels.gpu.jit import dot, kernel, launch, next_power_of_two, tl
from holdfast.kernels.gpu.quant import from_e8m0, to_bf16
from holdfast.kernels.gpu.rows import DeviceRows

WORKSPACE_BYTES = 1 << 28  # of scores; more rows are done in parts
KEY_TILE = 128
FEW_ROWS = 64  # up to which a program scores one query; rows of a prefill chunk share keys


def select(index_q: Tensor, head_weights: Tensor, rows: DeviceRows, index_pool: Tensor, ratio: int, k: int) -> Tensor:
    """Rows of the pool int32 [N, k] of the k best entries that each row may see, in order of entry; -1 for none.

    index_q bf16 [N, H, d], head_weights float32 [N, H], index_pool uint8 [rows, width] (`holdfast.kernels.gpu.pools`).
    """
    n, heads, dim = index_q.shape
    per_page, num_pages = rows.page_tokens // ratio, rows.pages.shape[1]
    count, num_warps = (8192, 8) if num_pages * per_page > 4096 else (2048, 4)
    num_blocks = -(-num_pages * per_page // count)
    assert k <= num_blocks * count, (k, num_blocks, count)
    chunk = min(n, max(1, WORKSPACE_BYTES // (num_blocks * (2 * count + 2048))))
    scores = torch.empty(chunk, num_blocks * count, dtype=torch.int16, device=index_q.device)
    high, low = torch.empty(2, chunk, num_blocks, 256, dtype=torch.int32, device=index_q.device)
    chosen = torch.empty(n, k, dtype=torch.int32, device=index_q.device)
    queries = 1 if n <= FEW_ROWS else 16
    where = rows.positions, rows.owners, rows.dropped
    for first in range(0, n, chunk):
        last = min(first + chunk, n)
        launch(
            score_entries,
            (num_blocks * (count // KEY_TILE), -(-(last - first) // queries)),
            index_q,
            head_weights,
            index_pool,
            *where,
            rows.starts,
            rows.pages,
            scores,
            first,
            last,
            num_pages,
            num_blocks * count,
            per_page,
            k,
            RATIO=ratio,
            HEADS=heads,
            HEAD_TILE=max(16, next_power_of_two(heads)),
            DIM=dim,
            TILE=KEY_TILE,
            QUERIES=queries,
        )
        grid = (last - first, num_blocks)
        for level in range(2):
            launch(
                count_scores,
                grid,
                scores,
                *where,
                high,
                low,
                first,
                num_blocks,
                k,
                RATIO=ratio,
                COUNT=count,
                LEVEL=level,
                num_warps=num_warps,
            )
        launch(
            choose,
            grid,
            scores,
            *where,
            rows.pages,
            high,
            low,
            chosen,
            first,
            num_blocks,
            num_pages,
            per_page,
            k,
            RATIO=ratio,
            COUNT=count,
            num_warps=num_warps,
        )
    return chosen


@kernel
def visible_entries(row, positions, owners, dropped, RATIO: tl.constexpr):
    """How many entries a row may see, int32; none if it is padding."""
    owner = tl.load(owners + row)
    visible = (tl.load(positions + row) + 1) // RATIO - tl.load(dropped + tl.maximum(owner, 0)) // RATIO
    return tl.where(owner < 0, 0, visible).to(tl.int32)


@kernel
def score_entries(
    index_q,
    head_weights,
    index_pool,
    positions,
    owners,
    dropped,
    starts,
    pages,
    scores,
    num_before,
    num_last,
    num_pages,
    num_room,
    per_page,
    num_chosen,
    RATIO: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Scores of TILE entries for QUERIES rows, as int16 that order as the scores do.

    Rows that see no more than num_chosen need none.
    """
    first_row = num_before + tl.program_id(1) * QUERIES
    last_row = tl.minimum(first_row + QUERIES, num_last)
    row = first_row + tl.arange(0, QUERIES)
    owner = tl.load(owners + row, mask=row < last_row, other=-1)
    last_owner = tl.max(owner, 0)
    first_owner = tl.min(tl.where(owner < 0, last_owner + 1, owner), 0)
    first = tl.program_id(0) * TILE
    for segment in range(tl.maximum(first_owner, 0), last_owner + 1):
        begin = tl.maximum(tl.load(starts + segment), first_row)
        end = tl.minimum(tl.load(starts + segment + 1), last_row)
        most = visible_entries(tl.maximum(end - 1, 0), positions, owners, dropped, RATIO)
        if (begin < end) & (first < most) & (most > num_chosen):
            score_segment(
                index_q,
                head_weights,
                index_pool,
                positions,
                owners,
                dropped,
                pages + tl.cast(segment, tl.int64) * num_pages,
                scores,
                begin,
                end,
                first,
                most,
                num_before,
                num_room,
                per_page,
                RATIO,
                HEADS,
                HEAD_TILE,
                DIM,
                TILE,
            )


@kernel
def score_segment(
    index_q,
    head_weights,
    index_pool,
    positions,
    owners,
    dropped,
    pages,
    scores,
    begin,
    end,
    first,
    most,
    num_before,
    num_room,
    per_page,
    RATIO: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Of rows begin ... end, which are of one segment, and entries from `first` on."""
    e = first + tl.arange(0, TILE)
    page = tl.load(pages + e // per_page, mask=e < most, other=0).to(tl.int64)
    key = read_index_keys(index_pool, page, e % per_page, e < most, per_page, DIM, TILE)
    head = tl.arange(0, HEAD_TILE)
    channel = tl.arange(0, DIM)
    for n in range(begin, end):
        visible = visible_entries(n, positions, owners, dropped, RATIO)
        row = tl.cast(n, tl.int64)
        at_q = index_q + (row * HEADS + head[:, None]) * DIM + channel[None, :]
        query = tl.load(at_q, mask=head[:, None] < HEADS, other=0.0)
        weight = tl.load(head_weights + row * HEADS + head, mask=head < HEADS, other=0.0)
        score = tl.sum(tl.maximum(dot(key, tl.trans(query)), 0.0) * weight[None, :], 1)
        bits = to_bf16(score).to(tl.int16, bitcast=True)
        bits = tl.where(bits == -32768, 0, bits)  # zeros are equal
        order = bits ^ ((bits >> 15) & 0x7FFF)
        tl.store(scores + (row - num_before) * num_room + e, order, mask=e < visible)


@kernel
def read_index_keys(pool, page, place, seen, per_page, DIM: tl.constexpr, TILE: tl.constexpr):
    """Index keys at `place` of a page, int64 and int32 [TILE] -> bf16 [TILE, DIM], zero where not seen."""
    CODES: tl.constexpr = DIM // 2
    GROUPS: tl.constexpr = DIM // 32
    base = page * (per_page * (CODES + GROUPS))
    codes_at = (base + place * CODES)[:, None, None]
    scales_at = (base + per_page * CODES + place * GROUPS)[:, None, None]
    group = tl.arange(0, GROUPS)[None, :, None]
    is_seen = seen[:, None, None]
    codes = tl.load(pool + codes_at + group * 16 + tl.arange(0, 16)[None, None, :], mask=is_seen)
    scale = from_e8m0(tl.load(pool + scales_at + group, mask=is_seen))
    even = (e2m1_values(codes & 15) * scale).to(tl.bfloat16)
    odd = (e2m1_values(codes >> 4) * scale).to(tl.bfloat16)
    return tl.where(seen[:, None], tl.join(even, odd).reshape(TILE, DIM), 0.0)


@kernel
def count_scores(
    scores,
    positions,
    owners,
    dropped,
    high,
    low,
    num_before,
    num_blocks,
    num_chosen,
    RATIO: tl.constexpr,
    COUNT: tl.constexpr,
    LEVEL: tl.constexpr,
):
    """Histogram of one block of one row: upper bytes of scores (level 0), or lower bytes (level 1).

    Level 1 counts only scores with the upper byte of the k-th best. What is past the end counts as the lowest score.
    """
    at, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    visible = visible_entries(num_before + at, positions, owners, dropped, RATIO)
    if (visible <= num_chosen) | (block * COUNT >= visible):
        return
    e = block * COUNT + tl.arange(0, COUNT)
    score = tl.load(scores + at * num_blocks * COUNT + e, mask=e < visible, other=-32768).to(tl.int32)
    if LEVEL == 0:
        tl.store(high + (at * num_blocks + block) * 256 + tl.arange(0, 256), tl.histogram((score >> 8) + 128, 256))
    else:
        upper, _, _, _ = find_byte(high + at * num_blocks * 256, tl.cdiv(visible, COUNT), block, num_chosen)
        byte = tl.where((score >> 8) + 128 == upper, score & 255, 256)
        counts, bins = tl.histogram(byte, 512), tl.arange(0, 512)
        tl.store(low + (at * num_blocks + block) * 256 + bins, counts, mask=bins < 256)


@kernel
def find_byte(counts, num_blocks, block, wanted):
    """The byte of the wanted-th best, by counts of bytes int32 [num_blocks, 256].

    Also how many of those with this byte are wanted and, in the blocks before `block`, how many have a higher byte and
    how many this one.
    """
    byte = tl.arange(0, 256)
    total = tl.zeros([256], tl.int32)
    before = tl.zeros([256], tl.int32)
    for first in range(0, num_blocks, 16):
        b = first + tl.arange(0, 16)
        part = tl.load(counts + b[:, None] * 256 + byte[None, :], mask=(b < num_blocks)[:, None], other=0)
        total += tl.sum(part, 0)
        before += tl.sum(tl.where((b < block)[:, None], part, 0), 0)
    at_least = tl.sum(total, 0) - tl.cumsum(total, 0) + total
    best = tl.max(tl.where(at_least >= wanted, byte, 0), 0)
    higher = tl.sum(tl.where(byte > best, total, 0), 0)
    higher_before = tl.sum(tl.where(byte > best, before, 0), 0)
    equal_before = tl.sum(tl.where(byte == best, before, 0), 0)
    return best, wanted - higher, higher_before, equal_before


@kernel
def choose(
    scores,
    positions,
    owners,
    dropped,
    pages,
    high,
    low,
    chosen,
    num_before,
    num_blocks,
    num_pages,
    per_page,
    num_chosen,
    RATIO: tl.constexpr,
    COUNT: tl.constexpr,
):
    """The chosen entries of one block, for one row.

    These are all above the k-th best score and, of those equal to it, as many as are wanted, the lower first.
    """
    at, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = num_before + at
    visible = visible_entries(row, positions, owners, dropped, RATIO)
    e = block * COUNT + tl.arange(0, COUNT)
    none = tl.full([COUNT], -1, tl.int32)
    tl.store(chosen + row * num_chosen + e, none, mask=(e >= visible) & (e < num_chosen))
    if block * COUNT >= visible:
        return
    if visible <= num_chosen:
        is_chosen = (e < visible).to(tl.int32)
        slot = e
    else:
        filled = tl.cdiv(visible, COUNT)
        upper, wanted, above, _ = find_byte(high + at * num_blocks * 256, filled, block, num_chosen)
        lower, wanted, above_here, equal = find_byte(low + at * num_blocks * 256, filled, block, wanted)
        limit = ((upper - 128) << 8) | lower
        score = tl.load(scores + at * num_blocks * COUNT + e, mask=e < visible, other=-32768).to(tl.int32)
        is_equal = (score == limit).to(tl.int32)
        is_wanted = (equal + tl.cumsum(is_equal, 0) <= wanted).to(tl.int32)
        is_chosen = (score > limit).to(tl.int32) + is_equal * is_wanted
        slot = above + above_here + tl.minimum(equal, wanted) + tl.cumsum(is_chosen, 0) - 1
    owner = tl.load(owners + row).to(tl.int64)
    page = tl.load(pages + owner * num_pages + e // per_page, mask=is_chosen > 0, other=0)
    tl.store(chosen + row * num_chosen + slot, page * per_page + e % per_page, mask=is_chosen > 0)
