"""One step's work: which rows belong to which sequence, and where their state lies.

Built once per step and shared by all layers. Pure arithmetic on positions: nothing here reads or writes the cache.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from holdfast.engine.sequence import Sequence
from holdfast.engine.state.cache import Cache
from holdfast.engine.state.pinned_prefix import PinnedPrefix
from holdfast.kernels.dispatch import Ops
from holdfast.kernels.rows import Rows

ROWS_AT_ONCE = 4  # most tokens of a decoding sequence in one step: its last one, and guesses


@dataclass(frozen=True)
class Segment:
    """`count` tokens of one sequence from `position` on, in rows `start` ... of the batch."""

    seq: Sequence
    position: int
    count: int
    start: int


class Step:
    """What the layers see of a step: its rows, and which of them belong to pinned prefixes.

    `host_rows` and the rows of `prefixes` are in main memory; `rows` and `prefix_rows` are the same as arguments of
    `ops`, made when they are first asked for: a captured graph has its own.
    """

    def __init__(self, rows: Rows, prefixes: list[tuple[PinnedPrefix, Rows]], ops: Ops):
        self.host_rows, self.prefixes, self._ops = rows, prefixes, ops
        ends = [int(rows.positions[stop - 1]) + 1 for stop in rows.starts[1:].tolist()]
        self._spans: list[tuple[int, int]] = list(zip(rows.dropped.tolist(), ends))
        self._freqs_cis: dict[bool, Any] = {}

    @cached_property
    def rows(self) -> Any:
        return self._ops.rows(self.host_rows)

    @cached_property
    def prefix_rows(self) -> list[tuple[PinnedPrefix, Any]]:
        return [(prefix, self._ops.rows(rows)) for prefix, rows in self.prefixes]

    def freqs_cis(self, ops: Ops, ratio: int, freqs: Any) -> Any:
        """Rotary table of the rows; compressed layers have another than window-only ones."""
        key = bool(ratio)
        if key not in self._freqs_cis:
            self._freqs_cis[key] = ops.rope_table(self.rows.positions, freqs)
        return self._freqs_cis[key]

    def most_visible(self, ratio: int) -> int:
        """Entries that the last row of some segment may see: the most of any row."""
        return max(end // ratio - dropped // ratio for dropped, end in self._spans)


class Batch(Step):
    """`segments` is [(sequence, number of tokens)]: these tokens follow the sequence's `num_tokens` processed ones."""

    def __init__(self, segments: list[tuple[Sequence, int]], cache: Cache, ops: Ops):
        self.segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        for seq, count in segments:
            end = seq.num_tokens + count - seq.dropped_tokens
            assert end <= len(seq.pages) * cache.page_tokens, f"{end} tokens on {len(seq.pages)} pages"
            self.segments.append(Segment(seq, seq.num_tokens, count, len(ids)))
            known = seq.token_ids[seq.num_tokens : seq.num_tokens + count]
            ids += known + seq.drafts[: count - len(known)]
            positions += range(seq.num_tokens, seq.num_tokens + count)
        most_pages = max(len(seq.pages) for seq, _ in segments)
        rows = Rows(
            np.array(ids, np.int64),
            np.array(positions, np.int64),
            np.array([*(s.start for s in self.segments), len(ids)], np.int64),
            np.array([seq.slot for seq, _ in segments], np.int64),
            np.array([seq.dropped_tokens for seq, _ in segments], np.int64),
            np.array([seq.pages + [0] * (most_pages - len(seq.pages)) for seq, _ in segments], np.int64),
            cache.page_tokens,
        )
        prefixes = []
        for s in self.segments:
            if (prefix := s.seq.prefix) is not None and s.position < prefix.num_tokens:
                prefixes.append((prefix, prefix.rows_of(rows, s.start, s.start + s.count)))
        super().__init__(rows, prefixes, ops)
