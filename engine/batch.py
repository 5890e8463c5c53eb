"""One step's work as index tensors: which rows belong to which sequence, what they see, what they complete.

Built once per step on the host and shared by all layers. Segments of up to ROWS_AT_ONCE tokens (decoding, with drafts)
come first, padded to a row tile; each longer stretch (prefill) follows in whole tiles of its own. Pure arithmetic on positions: nothing here reads
or writes the cache.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from engine.cache import MAX_DRAFTS, Cache, block_ring
from engine.sequence import Sequence
from kernels.attention import ENTRY_TILE
from kernels.gemm import pad_rows
from kernels.rope import rope_table

ROWS_AT_ONCE = 4  # a segment this short reads the window ring itself, drafts included
STRETCH_TILE = 16  # rows of a stretch that share one window image; a ring is this much longer than the window


@dataclass(frozen=True)
class Segment:
    """`count` tokens of one sequence from `position` on, in rows `start` ... of the batch."""

    seq: Sequence
    position: int
    count: int
    start: int


@dataclass(frozen=True)
class Group:
    """Rows that attend together: short segments of equal length, or the tiles of one stretch."""

    segments: tuple[Segment, ...]
    start: int
    rows: int  # stretches are padded to whole tiles, short segments are not
    padding: int  # rows of the batch after these that attend to nothing
    slots: Tensor  # [segments]
    window_mask: Tensor  # [rows, ring], 0 or -inf
    image: Tensor | None  # [tiles, ring] into (ring, new rows) of a stretch; None: the ring itself is the image

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.rows)


@dataclass(frozen=True)
class BlockPlan:
    """Compressor blocks that this step completes, for layers of one ratio. S source tokens per block."""

    from_new: Tensor  # bool [blocks, S, 1]: the source is a row of this step, else of the block ring
    new_rows: Tensor  # [blocks, S]
    ring_rows: Tensor  # [blocks, S]
    missing: Tensor | None  # bool [blocks, S, 1]: before the first token
    positions: Tensor  # [blocks] of each block's first token
    destinations: Tensor  # [blocks] rows of the pool


class Batch:
    """`segments` is [(sequence, number of tokens)]: these tokens follow the sequence's `num_tokens` processed ones."""

    def __init__(self, segments: list[tuple[Sequence, int]], cache: Cache):
        self.cache = cache
        short = sorted((s for s in segments if s[1] <= ROWS_AT_ONCE), key=lambda s: s[1])
        stretches = [s for s in segments if s[1] > ROWS_AT_ONCE]
        self.segments: list[Segment] = []
        rows: list[int] = []  # token ids and positions, padding included
        positions: list[int] = []
        for seq, count in short + stretches:
            self.segments.append(Segment(seq, seq.num_tokens, count, len(rows)))
            known = seq.token_ids[seq.num_tokens : seq.num_tokens + count]
            rows += known + seq.drafts[: count - len(known)]
            positions += range(seq.num_tokens, seq.num_tokens + count)
            if count > ROWS_AT_ONCE:
                _pad(rows, positions, len(rows) + -count % STRETCH_TILE)
            elif len(self.segments) == len(short):
                _pad(rows, positions, pad_rows(len(rows)))
        self.ids = torch.tensor(rows)
        self.positions = torch.tensor(positions)
        self.real_rows = torch.cat([torch.arange(s.start, s.start + s.count) for s in self.segments])
        self.groups = self._groups(self.segments[: len(short)], self.segments[len(short) :])
        # rows of this step and their places in the flattened window rings: the last rows of each segment
        self.ring_writes = self._ring_writes(cache.ring_tokens)
        self._turns: dict[bool, tuple[Tensor, Tensor]] = {}
        self._phases: dict[int, Tensor] = {}
        self._plans: dict[int, BlockPlan | None] = {}
        self._block_writes: dict[int, tuple[Tensor, Tensor]] = {}
        self._visible: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self._first_entries: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def turns(self, ratio: int, freqs: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary table of the rows and its inverse, complex64 [N, rope / 2]; compressed layers have their own."""
        key = bool(ratio)
        if key not in self._turns:
            table = rope_table(self.positions, freqs)
            self._turns[key] = table, table.conj().resolve_conj()
        return self._turns[key]

    def phase(self, ratio: int) -> Tensor:
        """Place of each row in its compressor block, int64 [N]."""
        if ratio not in self._phases:
            self._phases[ratio] = self.positions % ratio
        return self._phases[ratio]

    def block_writes(self, ratio: int) -> tuple[Tensor, Tensor]:
        """As ring_writes, for the block rings of layers of one ratio."""
        if ratio not in self._block_writes:
            self._block_writes[ratio] = self._ring_writes(block_ring(ratio))
        return self._block_writes[ratio]

    def blocks(self, ratio: int) -> BlockPlan | None:
        """What layers of this ratio complete in this step, or None."""
        if ratio not in self._plans:
            self._plans[ratio] = self._block_plan(ratio)
        return self._plans[ratio]

    def visible(self, group: Group, ratio: int) -> tuple[Tensor, int]:
        """Entries that each row of the group may see, int64 [rows], and the most of any row."""
        key = (group.start, ratio)
        if key not in self._visible:
            dropped = torch.tensor([s.seq.dropped_tokens for s in group.segments])
            dropped = dropped.repeat_interleave(group.rows // len(group.segments))
            visible = (self.positions[group.span] + 1) // ratio - dropped // ratio
            self._visible[key] = visible, int(visible.max())
        return self._visible[key]

    def first_entries(self, group: Group, ratio: int) -> tuple[Tensor, Tensor]:
        """All entries of each segment: pool rows [segments, K] and mask [rows, K], K in whole entry tiles."""
        key = (group.start, ratio)
        if key not in self._first_entries:
            visible, most = self.visible(group, ratio)
            width = -(-max(most, 1) // ENTRY_TILE) * ENTRY_TILE
            entry = torch.arange(width)
            mask = torch.where(entry < visible.unsqueeze(1), 0.0, float("-inf"))
            rows = torch.stack([self.pool_rows(s.seq, entry, ratio) for s in group.segments])
            self._first_entries[key] = rows, mask
        return self._first_entries[key]

    def pool_rows(self, seq: Sequence, entry: Tensor, ratio: int) -> Tensor:
        """Entry numbers of a sequence -> rows of the pool; entries past the last page give some valid row."""
        per_page = self.cache.page_tokens // ratio
        table = torch.tensor(seq.pages or [0])
        return table[(entry // per_page).clamp(max=len(table) - 1)] * per_page + entry % per_page

    def page_rows(self, seq: Sequence, num_entries: int, ratio: int) -> Tensor:
        """Pool rows of the whole pages that hold the first entries, in order, [pages * rows per page]."""
        per_page = self.cache.page_tokens // ratio
        pages = torch.tensor(seq.pages[: -(-num_entries // per_page)], dtype=torch.int64)
        return (pages.unsqueeze(1) * per_page + torch.arange(per_page)).flatten()

    def _groups(self, short: list[Segment], stretches: list[Segment]) -> list[Group]:
        groups = []
        for _, same in groupby(short, key=lambda s: s.count):
            segments = tuple(same)
            rows = sum(s.count for s in segments)
            is_last = segments[-1] is short[-1]
            end = segments[0].start + rows
            last = torch.tensor([s.position + s.count - 1 for s in segments]).repeat_interleave(segments[0].count)
            groups.append(self._group(segments, rows, pad_rows(end) - end if is_last else 0, last, None))
        for s in stretches:
            last = _tile_ends(s).repeat_interleave(STRETCH_TILE)
            groups.append(self._group((s,), len(last), 0, last, self._image(s)))
        return groups

    def _group(
        self, segments: tuple[Segment, ...], rows: int, padding: int, last: Tensor, image: Tensor | None
    ) -> Group:
        """`last` [rows] is the newest position in the window image that each row reads."""
        start, ring = segments[0].start, self.cache.ring_tokens
        t, last = self.positions[start : start + rows].unsqueeze(1), last.unsqueeze(1)
        held = last - (last - torch.arange(ring)) % ring  # position that each slot of the row's image holds
        seen = (held <= t) & (t - held < ring - MAX_DRAFTS) & (held >= 0)
        mask = torch.where(seen, 0.0, float("-inf"))
        return Group(segments, start, rows, padding, torch.tensor([s.seq.slot for s in segments]), mask, image)

    def _image(self, segment: Segment) -> Tensor:
        """Where each tile's window rows lie in (the ring before this step, the stretch's new rows)."""
        ring = self.cache.ring_tokens
        slot = torch.arange(ring)
        last = _tile_ends(segment).unsqueeze(1)
        held = last - (last - slot) % ring
        new = ring + (held - segment.position).clamp(max=segment.count - 1)
        return torch.where(held < segment.position, slot, new)

    def _ring_writes(self, length: int) -> tuple[Tensor, Tensor]:
        sources, places = [], []
        for s in self.segments:
            kept = min(s.count, length)
            sources.append(torch.arange(s.start + s.count - kept, s.start + s.count))
            position = torch.arange(s.position + s.count - kept, s.position + s.count)
            places.append(s.seq.slot * length + position % length)
        return torch.cat(sources), torch.cat(places)

    def _block_plan(self, ratio: int) -> BlockPlan | None:
        back = 4 if ratio == 4 else 0  # ratio 4 reads the previous block too
        length = block_ring(ratio)
        parts: list[tuple[Tensor, ...]] = []
        for s in self.segments:
            first, end = s.position // ratio, (s.position + s.count) // ratio
            if first == end:
                continue
            block = torch.arange(first, end)
            source = (block * ratio).unsqueeze(1) + torch.arange(-back, ratio)  # [blocks, S]
            new_rows = (source - s.position).clamp(min=0) + s.start
            ring_rows = s.seq.slot * length + source % length
            entry = block - s.seq.dropped_tokens // ratio
            rows = self.pool_rows(s.seq, entry, ratio)
            parts.append((source >= s.position, new_rows, ring_rows, source < 0, block * ratio, rows))
        if not parts:
            return None
        from_new, new_rows, ring_rows, missing, positions, rows = (torch.cat(p) for p in zip(*parts))
        any_missing = missing.unsqueeze(-1) if missing.any() else None
        return BlockPlan(from_new.unsqueeze(-1), new_rows, ring_rows, any_missing, positions, rows)


def _pad(rows: list[int], positions: list[int], length: int) -> None:
    """Padding repeats the last position; nothing reads what it computes."""
    missing = length - len(rows)
    rows += [0] * missing
    positions += positions[-1:] * missing


def _tiles(segment: Segment) -> int:
    return -(-segment.count // STRETCH_TILE)


def _tile_ends(segment: Segment) -> Tensor:
    """Position of the last row of each tile of a stretch, [tiles]; past the stretch's end in the last tile."""
    return segment.position + torch.arange(_tiles(segment)) * STRETCH_TILE + STRETCH_TILE - 1
