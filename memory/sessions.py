"""The sessions of a data directory: create, find, open, fork, remove, and read one that is open in another process.

Owns names and leases. A lease is a file lock, which the system frees when its process ends, and a number that each
opening increments and each write checks. Must not know what an event means or what a token id stands for.
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from holdfast.memory.branch_rows import (
    BRANCH_COLUMNS,
    EVENT_COLUMNS,
    BranchReader,
    DamagedLog,
    LoggedEvent,
    Point,
    TurnInfo,
    checked_branch,
    checked_event,
)
from holdfast.memory.branches import BranchInfo, History, branch_info
from holdfast.memory.db import Database, StoreError
from holdfast.memory.high_water import HighWater
from holdfast.memory.high_water import read as read_high_water
from holdfast.memory.leases import Leases
from holdfast.memory.log_check import LogCheck
from holdfast.memory.log_rows import insert_branch
from holdfast.memory.names import NAME_PATTERN, NAME_RULE, name_from_prompt, name_from_workspace, name_of_fork
from holdfast.memory.overview import Overview, overview
from holdfast.memory.removal import remove_branch, without_session
from holdfast.memory.reserve import keep_reserve, making_room
from holdfast.memory.session_log import SessionInfo, SessionLog, next_use, own_branches, update_session
from holdfast.memory.snapshot_rows import drop_uses

SESSION_COLUMNS = "id, name, workspace, model, created_at, used_at, branch_id, use_number, inode, checksum"


class LostEnd(StoreError):
    """A session or the end of its log is missing, though it was acknowledged."""


class SessionStore:
    """All sessions of a data directory."""

    def __init__(self, database: Database):
        self.database = self._database = database
        self._leases = Leases(database.home)

    def create(
        self, workspace: str, model: str, name: str | None = None, owner: str = "", prompt: str = ""
    ) -> SessionInfo:
        """A new, empty session. The default name is words of its first prompt, or the workspace's last component with a
        number."""
        keep_reserve(self._database.home)
        with self._database.transaction() as connection:
            taken, prefix = self._names(), f"{owner}/" if owner else ""
            full = f"{prefix}{_checked(name)}" if name is not None else name_from_prompt(taken, prefix, prompt)
            full = full or name_from_workspace(taken, prefix, workspace)
            return self._insert(connection, workspace, model, full, None, Point(0, 0, 0, False))

    def fork(
        self,
        session: SessionInfo,
        turn: int | None = None,
        position: int | None = None,
        name: str | None = None,
        branch: int | None = None,
    ) -> SessionInfo:
        """A new session that goes on from a point of another one, which may be open in any process meanwhile.

        The point is the end of a turn (0: before the first), or a token position (inside a turn, the fork has that turn
        as interrupted), or by default the end of the last closed turn; on the session's current branch or a given one.
        """
        with self._database.transaction() as connection:
            history = self._history(session, branch)
            point = history.point(turn, position)
            parent_id = history.owner(point)
            prefix = f"{session.owner}/" if session.owner else ""
            full = name_of_fork(self._names(), session.name) if name is None else f"{prefix}{_checked(name)}"
            return self._insert(connection, session.workspace, session.model, full, parent_id, point)

    def find(self, name: str) -> SessionInfo | None:
        """The session of that name, or None. Raises StoreError if it is damaged or lost, or could be: a damaged row may
        have a damaged name."""
        sessions = self._read()
        for session, is_sound in sessions:
            if session.name == name and is_sound:
                return session
        for session, is_sound in sessions:
            if not is_sound and (session.name == name or session.owner == name.rpartition("/")[0]):
                raise self._damaged_row(session)
        for session_id, high_water in self._lost(sessions).items():
            if high_water.name in ("", name):
                raise self._gone(session_id, high_water)
        return None

    def latest(self, workspace: str, model: str | None = None, owner: str = "") -> SessionInfo | None:
        """The session of a workspace and owner, and of a model if given, that was used last; or None."""
        sessions = [s for s in self.all() if (s.workspace, s.owner) == (workspace, owner) and model in (None, s.model)]
        return sessions[0] if sessions else None

    def all(self) -> list[SessionInfo]:
        """All sessions except those with a damaged row, which `problems` names; the last used first, by `use_number`
        and not by the clock."""
        sound = [session for session, is_sound in self._read() if is_sound]
        return sorted(sound, key=lambda s: (s.use_number, s.id), reverse=True)

    def problems(self, owner: str | None = None) -> list[str]:
        """A line for each session whose row is damaged or lost, of one owner or of all. The owner of a lost session is
        known from its lock file."""
        sessions = self._read()
        found = [(session.owner, self._damaged_row(session)) for session, is_sound in sessions if not is_sound]
        for session_id, high_water in self._lost(sessions).items():
            found.append((high_water.name.rpartition("/")[0], self._gone(session_id, high_water)))
        return [str(error) for of_owner, error in found if owner is None or owner == of_owner]

    def unused(self, workspace: str, model: str, owner: str = "") -> SessionInfo | None:
        """A session of this workspace without turns and with a default name, to be used instead of a new one; or
        None."""
        rows = self._database.rows(
            "SELECT s.id FROM sessions s JOIN branches b ON b.session_id = s.id WHERE s.workspace = ? AND s.model = ?"
            " GROUP BY s.id HAVING COUNT(*) = 1 AND MAX(b.last_turn) = 0",
            (workspace, model),
        )
        ids = {row[0] for row in rows}
        first = name_from_workspace(set(), f"{owner}/" if owner else "", workspace)
        numbered = re.compile(re.escape(first.removesuffix("1")) + r"\d+")
        return next((s for s in self.all() if s.id in ids and s.owner == owner and numbered.fullmatch(s.name)), None)

    def move(self, session: SessionInfo, workspace: str) -> SessionInfo:
        """Change the workspace of a session that is not open, because its directory was moved."""
        lock_fd = self._leases.take(session.id, session.name)
        try:
            with self._database.transaction() as connection:
                session = replace(self._current(session), workspace=workspace, inode=_inode(workspace))
                update_session(connection, session)
                return session
        finally:
            os.close(lock_fd)

    def open(self, session: SessionInfo) -> SessionLog:
        """The session's log, locked for this process. Raises SessionInUse that names the process which has it open."""
        lock_fd = self._leases.take(session.id, session.name)
        try:
            _, high_water = read_high_water(lock_fd)
            with self._database.transaction() as connection:
                connection.execute("UPDATE sessions SET fence = fence + 1 WHERE id = ?", (session.id,))
                session = self._current(session)
                fence = connection.execute("SELECT fence FROM sessions WHERE id = ?", (session.id,)).fetchone()[0]
            self._check_end(session, high_water)
            return SessionLog(self._database, session, lock_fd, fence)
        except BaseException:
            os.close(lock_fd)
            raise

    def remove(self, session: SessionInfo) -> None:
        """Delete a session that is not open. Branches that a fork needs stay, without a session."""
        lock_fd = self._leases.take(session.id, session.name)
        try:
            session = self._current(session)
        except BaseException:
            os.close(lock_fd)
            raise
        with making_room(self.database.home):
            self._delete(session, lock_fd)

    def _delete(self, session: SessionInfo, lock_fd: int) -> None:
        self._leases.forget(session.id, lock_fd)  # before its row: a lock file without a row is a loss
        with self._database.transaction() as connection:
            own = [row[0] for row in self._database.rows("SELECT id FROM branches WHERE session_id = ?", (session.id,))]
            drop_uses(connection, own)
            connection.execute("DELETE FROM sessions WHERE id = ?", (session.id,))
            unneeded = self._unneeded_branches()
        for branch_id in unneeded:  # unreachable: what a crash leaves goes with the next session
            remove_branch(self._database, branch_id)

    def branches(self, session: SessionInfo) -> list[BranchInfo]:
        """All branches of a session, oldest first."""
        with self._database.reading():
            session = self._current(session)
            histories = [History(self._database, session.name, id_) for id_ in own_branches(self._database, session)]
        return [branch_info(history, session.branch) for history in histories]

    def holder(self, branch_id: int) -> SessionInfo | None:
        """The session that a branch belongs to; None when it was removed."""
        rows = self._database.rows("SELECT session_id FROM branches WHERE id = ?", (branch_id,))
        return next((s for s in self.all() if rows and s.id == rows[0][0]), None)

    def first_event(self, session: SessionInfo) -> LoggedEvent | None:
        """The first event of the current branch, without reading the rest. Raises StoreError if it is damaged."""
        reader = BranchReader(self._database, session.name)
        with self._database.reading():
            branch = reader.branch(session.branch)
            while branch.start.seq:  # the beginning lies in an ancestor
                assert branch.parent_id is not None
                branch = reader.branch(branch.parent_id)
            sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE branch_id = ? AND seq = 1"
            rows = self._database.rows(sql, (branch.id,))
        if not rows:
            return None
        if (event := checked_event(rows[0])) is None:
            raise reader.damaged("event 1 of its event log")
        return event

    def parents(self, session: SessionInfo) -> dict[int, tuple[int | None, int]]:
        """The parent of each branch of a session, and the token position where the branch leaves it."""
        with self._database.reading():
            rows = self._database.rows(f"SELECT {BRANCH_COLUMNS} FROM branches WHERE session_id = ?", (session.id,))
        checked = [branch for branch in map(checked_branch, rows) if branch is not None]
        if len(checked) != len(rows):
            raise DamagedLog(self._database, session.name, "its list of branches")
        return {branch.id: (branch.parent_id, branch.start.position) for branch in checked}

    def overview(self, session: SessionInfo) -> Overview:
        """The session in numbers, without reading its log."""
        return overview(self._database, session)

    def turn_list(self, session: SessionInfo, branch: int | None = None) -> list[TurnInfo]:
        """Every turn of the current or the given branch."""
        with self._database.reading():
            return self._history(session, branch).turns

    def events(self, session: SessionInfo, branch: int | None = None, turn: int | None = None) -> list[LoggedEvent]:
        """The event log of the current or the given branch, or one turn of it."""
        with self._database.reading():
            history = self._history(session, branch)
            if turn is None:
                return history.events(1, history.end.seq)
            if not 1 <= turn <= len(history.turns):
                last = len(history.turns)
                raise StoreError(
                    f"session {session.name} has no turn {turn}: "
                    + (f"take one from 1 to {last}" if last else "it is empty")
                )
            before = history.turns[turn - 2].end_seq if turn > 1 else 0
            return history.events(before + 1, history.turns[turn - 1].end_seq)

    def check(self, session: SessionInfo, logs: LogCheck | None = None) -> None:
        """Read all events and tokens of all branches of a session, except what `logs` has read before. Raises
        StoreError for the first damage."""
        logs = logs or LogCheck(self._database)
        for branch_id in own_branches(self._database, session):
            logs.check(session.name, branch_id)

    def check_end(self, session: SessionInfo) -> None:
        """Raises LostEnd if the log of a session ends before its high water."""
        before = self._leases.high_water(session.id)  # first: the log of one that is open grows meanwhile
        self._check_end(session, before)

    def has_lost(self) -> bool:
        """Whether the database lacks a session, or the end of a log, that a lock file has a high water of."""
        sessions = self._read()
        if self._lost(sessions):
            return True
        for session, is_sound in sessions:
            try:
                if is_sound:
                    self.check_end(session)
            except LostEnd:
                return True
            except StoreError:  # damage that hides where the log ends
                continue
        return False

    def _check_end(self, session: SessionInfo, high_water: HighWater | None) -> None:
        """Raises LostEnd if the log ends before this high water."""
        if high_water is None or not high_water.is_of(self._database.id, session.name, session.created_at):
            return
        if high_water.branch_id in own_branches(self._database, session):
            end = History(self._database, session.name, high_water.branch_id).end
        else:
            end = Point(0, 0, 0, False)
        if end.seq < high_water.seq or end.position < high_water.position:
            raise LostEnd(
                f"session {session.name} has lost its end:"
                f" {high_water.seq} events and {high_water.position} tokens were written,"
                f" {end.seq} and {end.position} are left: {self._way_out(session.id)}"
            )

    def _way_out(self, session_id: int) -> str:
        """What to do about a log that lost its end, or whose database was replaced by an older copy."""
        return (
            f"restore {self._database.path} and its -wal file from a backup,"
            f" or remove {self._leases.path(session_id)} to go"
            " on without them (after putting an older copy there: holdfast sessions verify --repair)"
        )

    def _insert(
        self,
        connection: sqlite3.Connection,
        workspace: str,
        model: str,
        name: str,
        parent_id: int | None,
        start: Point,
    ) -> SessionInfo:
        if name in self._names():
            raise StoreError(f"session {name} exists already: open it without --new, or choose another name")
        now, use_number = time.time(), next_use(connection)
        cursor = connection.execute(
            "INSERT INTO sessions (name, workspace, model, created_at, used_at) VALUES (?, ?, ?, ?, ?)",
            (name, workspace, model, now, now),
        )
        assert cursor.lastrowid is not None
        branch_id = insert_branch(connection, cursor.lastrowid, parent_id, start)
        session = SessionInfo(
            cursor.lastrowid, name, workspace, model, now, now, branch_id, use_number, _inode(workspace)
        )
        update_session(connection, session)
        return session

    def _names(self) -> set[str]:
        return {row[0] for row in self._database.rows("SELECT name FROM sessions NOT INDEXED")}

    def _read(self) -> list[tuple[SessionInfo, bool]]:
        """Every session and whether its row is sound.

        The whole table is read, not what an index points at, and must agree with the index of names: a damaged bit is
        in one of the two.
        """
        with self._database.reading():
            rows = self._database.rows(f"SELECT {SESSION_COLUMNS} FROM sessions NOT INDEXED ORDER BY id")
            by_name = self._database.rows("SELECT id, name FROM sessions INDEXED BY sqlite_autoindex_sessions_1")
        sessions = [_checked_session(row) for row in rows]
        names = {(session.id, session.name) for session, _ in sessions}
        if len(rows) != len(by_name) or names != set(map(tuple, by_name)):
            raise StoreError(
                f"the list of sessions in {self._database.path} is damaged: restore it from a backup,"
                " or set HOLDFAST_HOME to another directory"
            )
        return sessions

    def _lost(self, sessions: Iterable[tuple[SessionInfo, bool]]) -> dict[int, HighWater]:
        """Sessions of this database that have a lock file and no row, with their high water. Looks again for those that
        were opened or removed since `sessions` was read."""
        database_id = self._database.id
        lost = {id_: self._leases.high_water(id_) for id_ in self._leases.ids().difference(s.id for s, _ in sessions)}
        return {
            id_: high_water
            for id_, high_water in lost.items()
            if high_water is not None
            and high_water.database in ("", database_id)
            and not self._database.rows("SELECT 1 FROM sessions WHERE id = ?", (id_,))
            and self._leases.high_water(id_) is not None
        }

    def _gone(self, session_id: int, high_water: HighWater) -> LostEnd:
        name = f"session {high_water.name}" if high_water.name else "a session"
        return LostEnd(
            f"{name}, of {high_water.seq} events, is gone from {self._database.path}: {self._way_out(session_id)}"
        )

    def _damaged_row(self, session: SessionInfo) -> StoreError:
        return DamagedLog(self._database, ascii(session.name), f"row {session.id} of the list of sessions")

    def _current(self, session: SessionInfo) -> SessionInfo:
        """The session as it is now: another process may have used it since it was listed. Ignores damage of others."""
        rows = self._database.rows(f"SELECT {SESSION_COLUMNS} FROM sessions WHERE id = ?", (session.id,))
        found, is_sound = _checked_session(rows[0]) if rows else (None, False)
        if found is not None and is_sound and found.id == session.id:
            return found
        for other, is_sound in self._read():  # also where the tree that led to no row is damaged
            if other.id == session.id and not is_sound:
                raise self._damaged_row(other)
        if (high_water := self._lost([]).get(session.id)) is not None:
            raise self._gone(session.id, high_water)
        raise StoreError(f"session {session.name} was removed: start a fresh session with --new")

    def _history(self, session: SessionInfo, branch: int | None) -> History:
        session = self._current(session)
        own = own_branches(self._database, session)
        if branch is not None and branch not in own:
            listed = ", ".join(map(str, own))
            raise StoreError(f"session {session.name} has no branch {branch}: take one of {listed}")
        return History(self._database, session.name, session.branch if branch is None else branch)

    def _unneeded_branches(self) -> list[int]:
        """Branches that no session needs. Empty while a session's row is damaged: it may need any of them."""
        sessions = self._read()
        if not all(is_sound for _, is_sound in sessions):
            return []
        return without_session(self._database, {session.id for session, _ in sessions})


def _checked(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise StoreError(f"session name {name!a} cannot be used: take {NAME_RULE}")
    return name


def _inode(workspace: str) -> int:
    """The inode of a directory, in 63 bits for SQLite; 0 if it cannot be read."""
    try:
        return os.stat(workspace).st_ino & (2**63 - 1)
    except (OSError, ValueError):
        return 0


def _checked_session(row: Sequence[Any]) -> tuple[SessionInfo, bool]:
    """A row of SESSION_COLUMNS, and whether it is sound."""
    *values, checksum = row
    session = SessionInfo(*values)
    return session, checksum == session.checksum()
