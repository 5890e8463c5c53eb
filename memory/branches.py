"""The log of a branch: its own rows after those of its ancestors, up to where each younger branch leaves the older.

Owns how the log is put together and where it may be left. A log only grows, and a fork or a rewind is a new
branch that goes on from a point of an older one. Must not write anything, nor know which session is open where.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

from holdfast.memory.branch_rows import Branch, BranchReader, LoggedEvent, Point, TurnInfo
from holdfast.memory.db import Database, StoreError


@dataclass(frozen=True)
class BranchInfo:
    """A branch as listed. It goes on from turn `parent_turn` and token `parent_position` of its parent, which may
    belong to another session. `num_turns` counts its own turns; `last_turn` and `num_tokens` include those of the
    parent."""

    id: int
    parent_id: int | None
    parent_turn: int
    parent_position: int
    num_turns: int
    last_turn: int
    num_tokens: int
    created_at: float
    is_current: bool


class History:
    """The log of one branch. `turns` is in memory; events and tokens are read when asked for.

    It follows the appends of a `SessionLog` (`grow`). Readers without the session's lock make a new History for each
    read.
    """

    def __init__(self, database: Database, name: str, branch_id: int):
        """`name` is the session's, for messages. Raises StoreError where a branch or turn is damaged or missing."""
        self._name, self._rows = name, BranchReader(database, name)
        with database.reading():
            self._lineage = [self._rows.branch(branch_id)]  # youngest first
            while (parent_id := self._lineage[-1].parent_id) is not None:
                parent = self._rows.branch(parent_id)
                if not _within(parent.start, self._lineage[-1].start) or parent.id >= self._lineage[-1].id:
                    raise self._rows.damaged(f"branch {self._lineage[-1].id}")
                self._lineage.append(parent)
            self.turns: list[TurnInfo] = []
            for branch, younger in self._segments():
                self._read_turns(branch, younger)

    @property
    def branch(self) -> Branch:
        return self._lineage[0]

    @property
    def end(self) -> Point:
        """Where the log ends now."""
        return self.end_of(self.turns[-1]) if self.turns else Point(0, 0, 0, False)

    def end_of(self, turn: TurnInfo) -> Point:
        return Point(turn.number, turn.end_seq, turn.end_position, turn.is_cut)

    def left_at(self, point: Point, branch_id: int) -> "History":
        """The log of a new branch that goes on from a point of this one; of the log nothing is read again."""
        history, branch = copy(self), self._rows.branch(branch_id)
        history._lineage = [branch, *(b for b in self._lineage if b.id <= (branch.parent_id or 0))]
        history.turns = self.turns[: point.turn]
        if point.is_cut:
            history._cut(branch)
        return history

    def grow(self, turn: TurnInfo) -> None:
        """Replace the last turn, or add one."""
        self.turns[turn.number - 1 :] = [turn]
        self._lineage[0] = replace(self.branch, last_turn=turn.number)

    def branches(self) -> dict[int, int]:
        """This branch and its ancestors, each with the last seq of it that belongs to this log."""
        return {b.id: younger.start.seq if younger else self.end.seq for b, younger in self._segments()}

    def shared_seq(self, other: "History") -> int:
        """The last event of this log that another one of the same session shares."""
        theirs = other.branches()
        return max((min(seq, theirs[branch]) for branch, seq in self.branches().items() if branch in theirs), default=0)

    def point(self, turn: int | None, position: int | None) -> Point:
        """The end of a turn, or a place among the tokens, or the end of the last closed turn. Raises StoreError."""
        assert turn is None or position is None, (turn, position)
        if position is not None:
            return self._point_at(position)
        last_closed = len(self.turns) - sum(t.state == "open" for t in self.turns[-1:])
        turn = last_closed if turn is None else turn
        if not 0 <= turn <= last_closed:
            raise StoreError(
                f"turn {turn} of session {self._name} is no point to go on from: take one from 0 to {last_closed}"
            )
        return self.end_of(self.turns[turn - 1]) if turn else Point(0, 0, 0, False)

    def owner(self, point: Point) -> int:
        """The id of the oldest branch whose log reaches the point: the parent of a branch that begins there."""
        for younger in self._lineage[:-1]:
            if not _within(point, younger.start):
                return younger.id
        return self._lineage[-1].id

    def events(self, first_seq: int, last_seq: int, types: Sequence[str] = ()) -> list[LoggedEvent]:
        """Events first_seq to last_seq, both included; of some types, the others unread, or all.

        Events of some types are found by an index: where it is damaged, one may be missing.
        """
        found: list[LoggedEvent] = []
        for branch, younger in self._segments():
            first = max(first_seq, branch.start.seq + 1)
            last = min(last_seq, younger.start.seq) if younger else last_seq
            if first <= last:
                rows = self._rows
                found += rows.events_of(branch.id, first, last, types) if types else rows.events(branch.id, first, last)
        return found

    def read_ids(self) -> "array[int]":
        """The token log."""
        ids = array("i")
        for branch, younger in self._segments():
            ids.extend(self._rows.ids(branch, younger.start.position if younger else self.end.position))
        return ids

    def _segments(self) -> list[tuple[Branch, Branch | None]]:
        """Each branch of the lineage, oldest first, with the next one, which leaves it at its `start`."""
        oldest_first = self._lineage[::-1]
        return list(zip(oldest_first, [*oldest_first[1:], None], strict=True))

    def _read_turns(self, branch: Branch, younger: Branch | None) -> None:
        until = younger.start if younger else None
        self.turns += self._rows.turns(branch, min(until.turn, branch.last_turn) if until else branch.last_turn)
        if until and len(self.turns) != until.turn:
            raise self._rows.damaged(f"turn {len(self.turns) + 1}")
        if younger and younger.start.is_cut:
            self._cut(younger)
        if younger and self.end != younger.start:
            raise self._rows.damaged(f"branch {younger.id}")

    def _cut(self, younger: Branch) -> None:
        """End the last turn at the start of a younger branch, as interrupted."""
        cut = replace(self.turns[-1], state="interrupted", ended_at=younger.created_at, is_cut=True)
        self.turns[-1] = replace(cut, end_position=younger.start.position, end_seq=younger.start.seq)

    def _point_at(self, position: int) -> Point:
        if not 0 <= position <= self.end.position:
            raise StoreError(
                f"session {self._name} has no token position {position}: take one from 0 to {self.end.position}"
            )
        number = bisect_left(self.turns, position, key=lambda t: t.start_position)  # of the last turn before it
        if number == 0:
            return Point(0, 0, 0, False)
        turn = self.turns[number - 1]
        if position == turn.end_position:
            return Point(turn.number, turn.end_seq, position, turn.is_cut or turn.state == "open")
        first_seq = self.turns[turn.number - 2].end_seq + 1 if turn.number > 1 else 1
        before = [e.seq for e in self.events(first_seq, turn.end_seq) if e.position <= position]
        return Point(turn.number, before[-1] if before else first_seq - 1, position, True)


def branch_info(history: History, current_id: int) -> BranchInfo:
    branch, end = history.branch, history.end
    return BranchInfo(
        id=branch.id,
        parent_id=branch.parent_id,
        parent_turn=branch.start.turn,
        parent_position=branch.start.position,
        num_turns=end.turn - branch.start.turn,
        last_turn=end.turn,
        num_tokens=end.position,
        created_at=branch.created_at,
        is_current=branch.id == current_id,
    )


def _within(point: Point, other: Point) -> bool:
    return point.turn <= other.turn and point.seq <= other.seq and point.position <= other.position
