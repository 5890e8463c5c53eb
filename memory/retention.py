"""Which tails stay when the stored state exceeds its budget, and which pages they need.

Owns the order of eviction: unused tails first, then those of branches that are not current, then all but the newest of
each session, and last the newest of the sessions that were used longest ago. Must not delete anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast.memory.db import Database
from holdfast.memory.snapshot_rows import (
    PAGE_COLUMNS,
    TAIL_COLUMNS,
    PageRow,
    StoredTail,
    TailRow,
    checked_page,
    checked_tail,
)

UNUSED, LEFT_BEHIND, OLDER, NEWEST, PROTECTED = range(5)


@dataclass(frozen=True)
class Ranked:
    """A tail with its place in the order: the lowest `kind` is evicted first, within a kind the one used longest
    ago."""

    tail: StoredTail
    kind: int
    used_at: float


def sound_pages(database: Database) -> dict[bytes, PageRow]:
    """All pages except those with a damaged row: a wrong length must not evict everything else."""
    checked = map(checked_page, database.rows(f"SELECT {PAGE_COLUMNS} FROM pages"))
    return {page.id: page for page in checked if page}


def sound_tails(database: Database) -> list[tuple[StoredTail, float]]:
    """All tails except those with a damaged row, each with the time of its last use."""
    rows = database.rows(f"SELECT {TAIL_COLUMNS}, used_at FROM tails")
    checked = [(checked_tail(row), _time(used_at)) for *row, used_at in rows]
    return [(tail, used_at) for tail, used_at in checked if tail]


def in_order(database: Database, keep_branches: Iterable[int]) -> list[Ranked]:
    """All tails except those with a damaged row, the first to be evicted first."""
    kept = set(keep_branches)
    sessions = database.rows("SELECT branch_id, used_at FROM sessions")
    session_used_at = {branch_id: _time(used_at) for branch_id, used_at in sessions}
    tails = {tail.id: (tail, used_at) for tail, used_at in sound_tails(database)}
    branches_of: dict[bytes, list[int]] = defaultdict(list)
    newest: dict[int, StoredTail] = {}
    for tail_id, branch_id in database.rows("SELECT tail_id, branch_id FROM tail_uses"):
        if tail_id not in tails:
            continue
        tail, _ = tails[tail_id]
        branches_of[tail_id].append(branch_id)
        if branch_id not in newest or _age(tail) > _age(newest[branch_id]):
            newest[branch_id] = tail

    def ranked(tail: StoredTail, used_at: float) -> Ranked:
        branches = branches_of[tail.id]
        newest_of = {branch_id for branch_id in branches if newest[branch_id].id == tail.id}
        if newest_of & kept:
            return Ranked(tail, PROTECTED, used_at)
        if current := newest_of & session_used_at.keys():
            return Ranked(tail, NEWEST, max(session_used_at[branch_id] for branch_id in current))
        if session_used_at.keys() & branches:
            return Ranked(tail, OLDER, used_at)
        return Ranked(tail, LEFT_BEHIND if branches else UNUSED, used_at)

    order = [ranked(tail, used_at) for tail, used_at in tails.values()]
    return sorted(order, key=lambda ranked: (ranked.kind, ranked.used_at, ranked.tail.position))


def that_fit(order: Sequence[Ranked], pages: Mapping[bytes, PageRow], budget_bytes: float) -> list[StoredTail]:
    """The longest end of the order that fits the budget with its pages, and the protected tails."""
    reached, num_bytes = Reached(pages), 0
    for place in range(len(order) - 1, -1, -1):
        tail = order[place].tail
        num_bytes += tail.num_bytes + reached.add(tail.row)
        if num_bytes > budget_bytes and order[place].kind != PROTECTED:
            return [ranked.tail for ranked in order[place + 1 :]]
    return [ranked.tail for ranked in order]


class Reached:
    """The pages that some tails need."""

    def __init__(self, pages: Mapping[bytes, PageRow], tails: Iterable[StoredTail] = ()):
        self._pages = pages
        self._passed: dict[bytes, int] = {}  # page -> the lowest `first_number` of the tails that reach it
        for tail in tails:
            self.add(tail.row)

    def __contains__(self, page_id: bytes) -> bool:
        return page_id in self._passed

    def add(self, tail: TailRow) -> int:
        """Add the pages of a tail; returns the bytes of those that no earlier tail needed."""
        num_bytes = 0
        for page_id in tail.head_ids:
            page = self._pages.get(page_id)
            if page and page_id not in self._passed:
                self._passed[page_id] = page.number
                num_bytes += page.num_bytes
        page = self._pages.get(tail.last_page) if tail.last_page else None
        while page and page.number >= tail.first_number:
            if self._passed.get(page.id, page.number + 1) <= tail.first_number:
                break  # an earlier tail has added the rest of the chain
            num_bytes += 0 if page.id in self._passed else page.num_bytes
            self._passed[page.id] = tail.first_number
            page = self._pages.get(page.parent) if page.parent else None
        return num_bytes


def _time(value: object) -> float:
    """A time of use: it has no checksum, as it affects the order alone, and a damaged one may be of any type."""
    return value if isinstance(value, float) else 0.0


def _age(tail: StoredTail) -> tuple[int, float]:
    return tail.position, tail.created_at
