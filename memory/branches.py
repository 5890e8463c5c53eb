"""Reading a branch: its own rows after those of its ancestors, each row checked against its checksum and its place.

Owns how a branch's log is put together and what counts as damage. A log only grows, and a fork or a rewind is a new
branch that goes on from a point of an older one. Must not write anything, nor know which session is open where.
"""

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from .db import Database, StoreError
from .rows import TOKEN_BYTES, from_blob, row_checksum, token_checksum

BRANCH_COLUMNS = (
    "id, session_id, parent_id, parent_turn, parent_seq, parent_position, parent_cut, last_turn, created_at, checksum"
)
EVENT_COLUMNS = "branch_id, seq, turn, position, type, payload, checksum"
TURN_COLUMNS = "branch_id, number, state, started_at, ended_at, start_position, end_position, end_seq, checksum"


@dataclass(frozen=True)
class LoggedEvent:
    """`seq` counts from 1 without gaps; `position` is the length of the token log when the event was appended."""

    seq: int
    turn: int
    position: int
    type: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class TurnInfo:
    """A turn as a branch sees it: its tokens are start_position up to end_position, its last event is `end_seq`.

    `is_cut`: a fork or rewind inside the turn ended it here, as interrupted; the branch it came from holds more of it.
    """

    number: int
    state: str
    started_at: float
    ended_at: float | None
    start_position: int
    end_position: int
    end_seq: int
    is_cut: bool = False


@dataclass(frozen=True)
class Point:
    """A place in a log: after so many turns, events and tokens. `is_cut`: inside its last turn."""

    turn: int
    seq: int
    position: int
    is_cut: bool


@dataclass(frozen=True)
class Branch:
    """A row of `branches`; its log goes on from `start` of its parent's log."""

    id: int
    session_id: int
    parent_id: int | None
    start: Point
    last_turn: int
    created_at: float

    def values(self) -> tuple[Any, ...]:
        """The row, its checksum included."""
        start = self.start
        point = (start.turn, start.seq, start.position, int(start.is_cut))
        values = (self.id, self.session_id, self.parent_id, *point, self.last_turn, self.created_at)
        return (*values, row_checksum("branches", *values))


@dataclass(frozen=True)
class BranchInfo:
    """A branch as listed. It goes on from turn `parent_turn` and token `parent_position` of its parent, which may belong
    to another session; `num_turns` are its own, `last_turn` and `num_tokens` count the parent's too."""

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

    A `SessionLog` that appends replaces `turns` itself; whoever reads without the session's lock makes a new History.
    """

    def __init__(self, database: Database, name: str, branch_id: int):
        """`name` is the session's, for messages. Raises StoreError where a branch or turn is damaged or missing."""
        self._database = database
        self._name = name
        with database.reading():
            self._lineage = [self.read_branch(branch_id)]  # youngest first
            while (parent_id := self._lineage[-1].parent_id) is not None:
                parent = self.read_branch(parent_id)
                if not _within(parent.start, self._lineage[-1].start) or parent.id >= self._lineage[-1].id:
                    raise self.damaged(f"branch {self._lineage[-1].id}")
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

    def left_at(self, point: Point, branch: Branch) -> "History":
        """The log of a new branch that goes on from a point of this one; nothing is read again."""
        history = copy(self)
        history._lineage = [branch, *(b for b in self._lineage if b.id <= (branch.parent_id or 0))]
        history.turns = self.turns[: point.turn]
        if point.is_cut:
            history._cut(branch)
        return history

    def grow(self, turn: TurnInfo) -> None:
        """Take note that the last turn is now this one, or that it is a new one."""
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
        """The id of the oldest branch that holds everything before a point: where a new branch is to hang."""
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
                read = (
                    self._read_events_of(branch.id, first, last, types)
                    if types
                    else self._read_events(branch.id, first, last)
                )
                found += read
        return found

    def read_ids(self) -> "array[int]":
        """The token log."""
        ids = array("i")
        for branch, younger in self._segments():
            end = younger.start.position if younger else self.end.position
            rows = self._database.rows(
                "SELECT start, ids, checksum FROM tokens WHERE branch_id = ? AND start < ? ORDER BY start",
                (branch.id, end),
            )
            for start, blob, checksum in rows:
                is_sound = start == len(ids) and isinstance(blob, bytes) and len(blob) % TOKEN_BYTES == 0
                if not is_sound or checksum != token_checksum(branch.id, start, blob):
                    raise self.damaged(f"token {len(ids)} of its token log")
                ids.extend(from_blob(blob))
            if len(ids) < end:
                raise self.damaged(f"token {len(ids)} of its token log")
            del ids[end:]
        return ids

    def damaged(self, where: str) -> StoreError:
        return damaged(self._database, self._name, where)

    def _segments(self) -> list[tuple[Branch, Branch | None]]:
        """Each branch of the lineage, oldest first, with the next one, which leaves it at its `start`."""
        oldest_first = self._lineage[::-1]
        return list(zip(oldest_first, [*oldest_first[1:], None], strict=True))

    def read_branch(self, branch_id: int) -> Branch:
        """A branch of the file. Raises StoreError where it is damaged or missing."""
        rows = self._database.rows(f"SELECT {BRANCH_COLUMNS} FROM branches WHERE id = ?", (branch_id,))
        branch = checked_branch(rows[0]) if rows else None
        if branch is None or branch.id != branch_id:
            raise self.damaged(f"branch {branch_id}")
        return branch

    def _read_turns(self, branch: Branch, younger: Branch | None) -> None:
        until = younger.start if younger else None
        last = min(until.turn, branch.last_turn) if until else branch.last_turn
        rows = self._database.rows(
            f"SELECT {TURN_COLUMNS} FROM turns WHERE branch_id = ? AND number <= ? ORDER BY number",
            (branch.id, last),
        )
        for number, (*values, checksum) in enumerate(rows, start=branch.start.turn + 1):
            if values[:2] != [branch.id, number] or checksum != row_checksum("turns", *values):
                raise self.damaged(f"turn {number}")
            turn = TurnInfo(*values[1:])
            if turn.start_position != self.end.position:
                raise self.damaged(f"turn {number}")
            self.turns.append(turn)
        if len(self.turns) != max(last, branch.start.turn) or (until and len(self.turns) != until.turn):
            raise self.damaged(f"turn {len(self.turns) + 1}")
        if younger and younger.start.is_cut:
            self._cut(younger)
        if younger and self.end != younger.start:
            raise self.damaged(f"branch {younger.id}")

    def _cut(self, younger: Branch) -> None:
        """The last turn ends where a younger branch goes on from."""
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

    def _read_events(self, branch_id: int, first: int, last: int) -> Iterator[LoggedEvent]:
        rows = self._database.rows(
            f"SELECT {EVENT_COLUMNS} FROM events WHERE branch_id = ? AND seq BETWEEN ? AND ? ORDER BY seq",
            (branch_id, first, last),
        )
        for seq, row in enumerate(rows, start=first):
            event = checked_event(row)
            if event is None or (row["branch_id"], event.seq) != (branch_id, seq):
                raise self.damaged(f"event {seq} of its event log")
            yield event
        if len(rows) != last - first + 1:
            raise self.damaged(f"event {first + len(rows)} of its event log")

    def _read_events_of(self, branch_id: int, first: int, last: int, types: Sequence[str]) -> Iterator[LoggedEvent]:
        rows = self._database.rows(
            f"SELECT {EVENT_COLUMNS} FROM events INDEXED BY events_by_type WHERE branch_id = ?"
            f" AND type IN ({', '.join('?' * len(types))}) AND seq BETWEEN ? AND ? ORDER BY seq",
            (branch_id, *types, first, last),
        )
        for row in rows:
            event = checked_event(row)
            if event is None or row["branch_id"] != branch_id or event.type not in types:
                raise self.damaged(f"event {row['seq']} of its event log")
            yield event


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


def checked_branch(row: Sequence[Any]) -> Branch | None:
    """A row of BRANCH_COLUMNS; None when it is damaged."""
    *values, checksum = row
    if checksum != row_checksum("branches", *values):
        return None
    id_, session_id, parent_id, turn, seq, position, is_cut, last_turn, created_at = values
    return Branch(id_, session_id, parent_id, Point(turn, seq, position, bool(is_cut)), last_turn, created_at)


def checked_event(row: Sequence[Any]) -> LoggedEvent | None:
    """A row of `events` from branch_id to checksum; None when it is damaged."""
    *values, checksum = row
    if checksum != row_checksum("events", *values):
        return None
    _, seq, turn, position, type_, payload = values
    try:
        return LoggedEvent(seq, turn, position, type_, json.loads(payload))
    except ValueError:  # damaged before rows had checksums
        return None


def damaged(database: Database, name: str, where: str) -> StoreError:
    """The one line about a session whose rows are not what was written."""
    return StoreError(
        f"session {name} is damaged at {where}: restore {database.path} from a backup,"
        " or start a fresh session with --new"
    )


def _within(point: Point, other: Point) -> bool:
    return point.turn <= other.turn and point.seq <= other.seq and point.position <= other.position
