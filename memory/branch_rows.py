"""Reading the rows that are a branch's own, each checked against its checksum and its place.

Owns what counts as damage of a row, and the values that rows are read into. Must not know of ancestors: see `branches`.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.memory.db import Database, StoreError
from holdfast.memory.row_format import TOKEN_BYTES, from_blob, row_checksum, token_checksum

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


class DamagedLog(StoreError):
    """A session's rows are not what was written; `where` names the first one."""

    def __init__(self, database: Database, name: str, where: str):
        super().__init__(
            f"session {name} is damaged at {where}: restore {database.path} from a backup,"
            " or start a fresh session with --new"
        )
        self.where = where


class BranchReader:
    """Rows of single branches of a session. Every method raises StoreError for the first row that is damaged or
    missing."""

    def __init__(self, database: Database, name: str):
        """`name` is the session's, for messages."""
        self._database, self._name = database, name

    def branch(self, branch_id: int) -> Branch:
        """The row of a branch."""
        rows = self._database.rows(f"SELECT {BRANCH_COLUMNS} FROM branches WHERE id = ?", (branch_id,))
        branch = checked_branch(rows[0]) if rows else None
        if branch is None or branch.id != branch_id:
            raise self.damaged(f"branch {branch_id}")
        return branch

    def turns(self, branch: Branch, last: int) -> list[TurnInfo]:
        """Its own turns up to number `last`."""
        rows = self._database.rows(
            f"SELECT {TURN_COLUMNS} FROM turns WHERE branch_id = ? AND number <= ? ORDER BY number", (branch.id, last)
        )
        turns: list[TurnInfo] = []
        position = branch.start.position
        for number, (*values, checksum) in enumerate(rows, start=branch.start.turn + 1):
            if values[:2] != [branch.id, number] or checksum != row_checksum("turns", *values):
                raise self.damaged(f"turn {number}")
            turn = TurnInfo(*values[1:])
            if turn.start_position != position:
                raise self.damaged(f"turn {number}")
            turns.append(turn)
            position = turn.end_position
        if branch.start.turn + len(turns) != max(last, branch.start.turn):
            raise self.damaged(f"turn {branch.start.turn + len(turns) + 1}")
        return turns

    def events(self, branch_id: int, first: int, last: int) -> Iterator[LoggedEvent]:
        """Its own events from seq `first` to `last`, both included."""
        if first > last:
            return
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

    def events_of(self, branch_id: int, first: int, last: int, types: Sequence[str]) -> Iterator[LoggedEvent]:
        """Those of them that are of some types. A damaged index can hide one."""
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

    def ids(self, branch: Branch, end: int) -> "array[int]":
        """Its own tokens up to position `end` of the log."""
        ids, first = array("i"), branch.start.position
        rows = self._database.rows(
            "SELECT start, ids, checksum FROM tokens WHERE branch_id = ? AND start < ? ORDER BY start", (branch.id, end)
        )
        for start, blob, checksum in rows:
            is_sound = start == first + len(ids) and isinstance(blob, bytes) and len(blob) % TOKEN_BYTES == 0
            if not is_sound or checksum != token_checksum(branch.id, start, blob):
                raise self.damaged(f"token {first + len(ids)} of its token log")
            ids.extend(from_blob(blob))
        if first + len(ids) < end:
            raise self.damaged(f"token {first + len(ids)} of its token log")
        del ids[end - first :]
        return ids

    def damaged(self, where: str) -> DamagedLog:
        return DamagedLog(self._database, self._name, where)


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
