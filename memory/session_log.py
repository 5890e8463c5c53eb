"""One session while it is open: its current branch as a log that is appended to, and the way to another branch.

Owns two rules: `append` returns when its rows are on disk, and a process whose lease is over writes nothing.
Must not know what an event means or what a token id stands for.
"""

import os
import sqlite3
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from holdfast.memory.branch_rows import DamagedLog, LoggedEvent, Point, TurnInfo
from holdfast.memory.branches import BranchInfo, History, branch_info
from holdfast.memory.db import Database, StoreError
from holdfast.memory.file_versions import (
    NO_CHANGE,
    ChangeSet,
    PathState,
    Settled,
    change_sets,
    insert_change_set,
    read_content,
    settle,
)
from holdfast.memory.high_water import HighWater
from holdfast.memory.high_water import write as write_high_water
from holdfast.memory.log_rows import Entry, append_rows, insert_branch, update_last_turn
from holdfast.memory.row_format import row_checksum
from holdfast.memory.search import Found, search_events


@dataclass(frozen=True)
class SessionInfo:
    """A session as listed; `model` is the identity of the engine that wrote its tokens, `branch` its current branch.

    A session of a server's user is named `USER/NAME`; without a user it belongs to the owner of the data directory.
    """

    id: int
    name: str
    workspace: str
    model: str
    created_at: float
    used_at: float
    branch: int
    use_number: int  # the highest is of the session that was used last
    inode: int  # of the workspace's directory; 0 where it is not known

    @property
    def owner(self) -> str:
        """The server's user whose session it is; empty for the owner of the data directory."""
        return self.name.rpartition("/")[0]

    def checksum(self) -> bytes:
        """Of its row."""
        columns = (self.id, self.name, self.workspace, self.model, self.created_at, self.used_at, self.branch)
        return row_checksum("sessions", *columns, self.use_number, self.inode)


class SessionLog:
    """One locked session: `ids` is its token log, `events()` its event log, `open_turn` the turn under way (or None).

    What is in memory changes only after the same change is on disk.
    """

    def __init__(self, database: Database, session: SessionInfo, lock_fd: int, fence: int):
        """Made by `SessionStore.open`. Raises StoreError when the log fails its checksums."""
        self._database, self._database_id = database, database.id
        self._lock_fd = lock_fd
        self._fence = fence
        self.session = session
        self._history, self.ids = self._read(session)
        self._note_end()

    def start_turn(self, entries: Iterable[Entry], ids: Sequence[int]) -> int:
        """Open the next turn with its first events and tokens; returns its number."""
        assert self.open_turn is None, self.open_turn
        now, end = time.time(), self._history.end
        turn = TurnInfo(end.turn + 1, "open", now, None, end.position, end.position, end.seq)
        with self._writing() as connection:
            session = replace(self.session, used_at=now, use_number=next_use(connection))
            update_last_turn(connection, self._history.branch, turn.number)
            update_session(connection, session)
            turn = append_rows(connection, session.branch, turn, ids, entries)
        self.session = session
        self._grow(turn, ids)
        return turn.number

    def append(self, entries: Iterable[Entry], ids: Sequence[int] = (), settled: Settled = NO_CHANGE) -> None:
        """Add events and tokens to the open turn; the events' position is after the tokens. Durable on return, together
        with what became of change sets."""
        assert self.open_turn is not None
        self._append(self._history.turns[-1], entries, ids, settled)

    def end_turn(self, state: str, entries: Iterable[Entry] = (), settled: Settled = NO_CHANGE) -> None:
        """Close the open turn as `done`, `failed` or `interrupted`."""
        assert self.open_turn is not None
        self._append(replace(self._history.turns[-1], state=state, ended_at=time.time()), entries, (), settled)

    def events(self, min_position: int = 0, types: Sequence[str] = ()) -> list[LoggedEvent]:
        """The event log in order, or its end: events at or after a position of the token log; of some types, or all."""
        num_before = bisect_left(self._history.turns, min_position, key=lambda turn: turn.end_position)
        first = self._history.turns[num_before - 1].end_seq + 1 if num_before else 1
        with self._database.reading():
            events = self._history.events(first, self._history.end.seq, types)
        return [event for event in events if event.position >= min_position]

    def turns(self) -> list[tuple[int, str]]:
        """(number, state) of every turn."""
        return [(turn.number, turn.state) for turn in self._history.turns]

    def turn_list(self) -> list[TurnInfo]:
        """Every turn, with the positions it covers."""
        return list(self._history.turns)

    @property
    def num_turns(self) -> int:
        return len(self._history.turns)

    @property
    def open_turn(self) -> int | None:
        end = self._history.turns[-1:]
        return end[0].number if end and end[0].state == "open" else None

    def search(self, query: str, limit: int = 10, max_position: int | None = None) -> list[Found]:
        """Events of this branch that contain words of the query, best first, up to a position of the token log."""
        return search_events(self._database, self._history, query, limit, max_position)

    def begin_change(
        self,
        kind: str,
        files: Sequence[tuple[PathState, PathState]],
        undone: Sequence[int] = (),
        redone: Sequence[int] = (),
    ) -> int:
        """Record files as they are and as they are about to be; durable on return. Gives the id of the change set."""
        end = self._history.end
        with self._writing() as connection:
            place = (self.session.branch, end.turn, end.seq)
            return insert_change_set(connection, place, kind, files, undone, redone)

    def settle(self, settled: Settled) -> None:
        """What became of change sets that were begun, where nothing else is logged with it."""
        with self._writing() as connection:
            settle(connection, settled)

    def change_sets(self) -> list[ChangeSet]:
        """Those of all branches of the session and of what it was forked from, in order."""
        own = own_branches(self._database, self.session)
        return change_sets(self._database, sorted({*own, *self._history.branches()}))

    def begun_changes(self) -> list[ChangeSet]:
        """Those of the session's own branches that are not settled: of a call under way, or a killed process."""
        own = own_branches(self._database, self.session)
        return [change for change in change_sets(self._database, own) if not change.is_done]

    def content(self, content: bytes) -> bytes | None:
        """Contents of a file version by digest; None where they are not kept any more, or damaged."""
        return read_content(self._database, content)

    def reach(self, turn: int | None = None, position: int | None = None, branch: int | None = None) -> dict[int, int]:
        """Each branch that a place lies on with the last event of it before the place, see `rewind` and `switch`;
        without a place, of the current end."""
        if branch is not None:
            return self._own_history(branch).branches()
        if turn is None and position is None:
            return self._history.branches()
        last = self._history.point(turn, position).seq
        return {id_: min(seq, last) for id_, seq in self._history.branches().items()}

    def rewind(
        self,
        turn: int | None = None,
        position: int | None = None,
        types: Sequence[str] = (),
        change: int | None = None,
    ) -> list[LoggedEvent]:
        """Go on from the end of an earlier turn or from a token position, on a new branch; the old one stays. Returns
        the events that are left behind there, of some types or all.

        A turn that the position cuts is interrupted on the new branch. No turn may be open. A `change` that was begun
        is done with it, and lies on the new branch.
        """
        assert self.open_turn is None, self.open_turn
        point = self._history.point(turn, position)
        left = self._history.events(point.seq + 1, self._history.end.seq, types)  # no writer waits for this
        self._begin_branch(point, change)
        return left

    def _begin_branch(self, point: Point, change: int | None = None) -> None:
        with self._writing() as connection:
            branch_id = insert_branch(connection, self.session.id, self._history.owner(point), point)
            session = replace(self.session, branch=branch_id)
            update_session(connection, session)
            if change is not None:
                settle(connection, Settled(done=(change,)), (branch_id, point.turn, point.seq))
            history = self._history.left_at(point, branch_id)
        self.session, self._history, self.ids = session, history, self.ids[: point.position]
        self._note_end()

    def empty_turn(self, last_seq: int) -> None:
        """Drop the tokens of the last, interrupted turn and its events after `last_seq`, on a new branch; the old
        branch keeps them."""
        turn = self._history.turns[-1]
        assert turn.state == "interrupted", turn
        self._begin_branch(Point(turn.number, last_seq, turn.start_position, is_cut=True))

    def switch(self, branch_id: int, types: Sequence[str] = (), change: int | None = None) -> list[LoggedEvent]:
        """Go on where another branch of this session ended. No turn may be open on the current one. Returns the events
        of the current one that the other does not share, of some types or all. For `change` see `rewind`."""
        assert self.open_turn is None, self.open_turn
        with self._writing() as connection:
            self._check_own(branch_id)
            session = replace(self.session, branch=branch_id)
            history, ids = self._read(session)  # in the transaction: a damaged branch does not become the current one
            left = self._history.events(self._history.shared_seq(history) + 1, self._history.end.seq, types)
            update_session(connection, session)
            if change is not None:
                settle(connection, Settled(done=(change,)), (branch_id, history.end.turn, history.end.seq))
        self.session, self._history, self.ids = session, history, ids
        self._note_end()
        return left

    def branches(self) -> list[tuple[BranchInfo, list[LoggedEvent]]]:
        """All branches of the session, oldest first, each with the events that are its own."""
        with self._database.reading():
            histories = [
                History(self._database, self.session.name, id_) for id_ in own_branches(self._database, self.session)
            ]
            return [
                (
                    branch_info(history, self.session.branch),
                    history.events(history.branch.start.seq + 1, history.end.seq),
                )
                for history in histories
            ]

    def close(self) -> None:
        """Release the lock, so that another process can open the session."""
        os.close(self._lock_fd)

    def _note_end(self) -> None:
        end = self._history.end
        session = self.session
        of = (self._database_id, session.name, session.created_at)
        write_high_water(self._lock_fd, HighWater(session.branch, end.seq, end.position, *of))

    def _own_history(self, branch_id: int) -> History:
        with self._database.reading():
            self._check_own(branch_id)
            return History(self._database, self.session.name, branch_id)

    def _check_own(self, branch_id: int) -> None:
        own = own_branches(self._database, self.session)
        if branch_id not in own:
            listed = ", ".join(map(str, own))
            raise StoreError(f"session {self.session.name} has no branch {branch_id}: take one of {listed}")

    def _read(self, session: SessionInfo) -> tuple[History, "array[int]"]:
        with self._database.reading():
            history = History(self._database, session.name, session.branch)
            return history, history.read_ids()

    def _append(self, turn: TurnInfo, entries: Iterable[Entry], ids: Sequence[int], settled: Settled) -> None:
        with self._writing() as connection:
            turn = append_rows(connection, self.session.branch, turn, ids, entries)
            settle(connection, settled)
        self._grow(turn, ids)

    def _grow(self, turn: TurnInfo, ids: Sequence[int]) -> None:
        """Follow in memory what was committed."""
        self.ids.extend(ids)
        self._history.grow(turn)
        self._note_end()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction. Raises StoreError if another process has opened or removed the session since."""
        with self._database.transaction() as connection:
            row = connection.execute("SELECT fence FROM sessions WHERE id = ?", (self.session.id,)).fetchone()
            if row is None or row[0] != self._fence:
                raise StoreError(
                    f"session {self.session.name} was opened or removed by another process since this one opened it:"
                    " nothing more is written here; go on there, or open it again"
                )
            yield connection


def own_branches(database: Database, session: SessionInfo) -> list[int]:
    """Ids of a session's branches, oldest first. Read by index and by table, which must agree: one of them may be
    damaged."""
    with database.reading():
        by_index = database.rows("SELECT id FROM branches WHERE session_id = ? ORDER BY id", (session.id,))
        in_table = database.rows("SELECT id FROM branches NOT INDEXED WHERE session_id = ? ORDER BY id", (session.id,))
    ids = [row[0] for row in by_index]
    if ids != [row[0] for row in in_table] or session.branch not in ids:
        raise DamagedLog(database, session.name, "its list of branches")
    return ids


def next_use(connection: sqlite3.Connection) -> int:
    """The next `use_number`."""
    return int(connection.execute("SELECT COALESCE(MAX(use_number), 0) + 1 FROM sessions").fetchone()[0])


def update_session(connection: sqlite3.Connection, session: SessionInfo) -> None:
    """Write the changeable columns of a session's row."""
    connection.execute(
        "UPDATE sessions SET workspace = ?, used_at = ?, branch_id = ?,"
        " use_number = ?, inode = ?, checksum = ? WHERE id = ?",
        (
            session.workspace,
            session.used_at,
            session.branch,
            session.use_number,
            session.inode,
            session.checksum(),
            session.id,
        ),
    )
