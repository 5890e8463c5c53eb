"""The durable timelines: which sessions there are, and one session's event log and token log.

Owns the rule that a log only grows and that `append` returns when its rows are on disk; nothing of it is ever rewritten.
Must not know what an event means or what a token id stands for.
"""

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .db import Database, StoreError

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
TOKEN_BYTES = 4  # int32 little endian, on disk and in `SessionLog.ids`
CHECKSUM_BYTES = 8

Entry = tuple[str, Mapping[str, Any]]  # type and JSON payload of an event


@dataclass(frozen=True)
class SessionInfo:
    """A session as listed; `model` is the identity of the engine that wrote its tokens."""

    id: int
    name: str
    workspace: str
    model: str
    created_at: float
    used_at: float


@dataclass(frozen=True)
class LoggedEvent:
    """`seq` counts from 1 without gaps; `position` is the length of the token log when the event was appended."""

    seq: int
    turn: int
    position: int
    type: str
    payload: dict[str, Any]


class SessionStore:
    """All sessions of a data directory."""

    def __init__(self, database: Database):
        self._database = database

    def create(self, workspace: str, model: str, name: str | None = None) -> SessionInfo:
        """A new, empty session. Without a name it takes the workspace's last component and a number."""
        if name is not None and not re.fullmatch(NAME_PATTERN, name):
            raise StoreError(f"session name {name!a} cannot be used: take 1-64 letters, digits, '.', '_' or '-'")
        now = time.time()
        with self._database.transaction() as connection:
            name = name or _free_name(connection, workspace)
            if connection.execute("SELECT 1 FROM sessions WHERE name = ?", (name,)).fetchone():
                raise StoreError(f"session {name} exists already: open it without --new, or choose another name")
            connection.execute(
                "INSERT INTO sessions (name, workspace, model, created_at, used_at) VALUES (?, ?, ?, ?, ?)",
                (name, workspace, model, now, now),
            )
        created = self.find(name)
        assert created is not None, name
        return created

    def find(self, name: str) -> SessionInfo | None:
        """The session of that name."""
        return next(iter(self._select("WHERE name = ?", (name,))), None)

    def latest(self, workspace: str, model: str | None = None) -> SessionInfo | None:
        """The session of this workspace, and of this model if one is named, that was used last."""
        where = "WHERE workspace = ?1 AND model = COALESCE(?2, model) ORDER BY used_at DESC, id DESC LIMIT 1"
        return next(iter(self._select(where, (workspace, model))), None)

    def all(self) -> list[SessionInfo]:
        """All sessions, the one used last first."""
        return self._select("ORDER BY used_at DESC, id DESC", ())

    def open(self, session: SessionInfo) -> "SessionLog":
        """The session's log, locked for this process; StoreError names the process that has it open."""
        lock_fd = _lock(self._database.home / "locks", session)
        try:
            return SessionLog(self._database, session, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise

    def _select(self, where: str, values: Sequence[Any]) -> list[SessionInfo]:
        columns = "id, name, workspace, model, created_at, used_at"
        return [SessionInfo(*row) for row in self._database.rows(f"SELECT {columns} FROM sessions {where}", values)]


class SessionLog:
    """One locked session: `ids` is its token log, `events()` its event log, `open_turn` the turn under way (or None).

    What is in memory changes only after the same change is on disk.
    """

    def __init__(self, database: Database, session: SessionInfo, lock_fd: int):
        """Made by `SessionStore.open`. Raises StoreError when the token log fails its checksums."""
        self.session = session
        self._database = database
        self._lock_fd = lock_fd
        self.ids = self._read_ids()
        counted = "SELECT COALESCE(MAX(seq), 0), COALESCE(MAX(turn), 0), COALESCE(MAX(position), 0) FROM events"
        row = database.rows(f"{counted} WHERE session_id = ?", (session.id,))[0]
        self._num_events, self.num_turns, position = row
        if position > len(self.ids):
            raise self._damaged(f"token {len(self.ids)} of its token log")
        last = "SELECT number FROM turns WHERE session_id = ? AND state = 'open'"
        self.open_turn: int | None = next((row[0] for row in database.rows(last, (session.id,))), None)

    def start_turn(self, entries: Iterable[Entry], ids: Sequence[int]) -> int:
        """Open the next turn with its first events and tokens; returns its number."""
        assert self.open_turn is None, self.open_turn
        turn, now = self.num_turns + 1, time.time()
        with self._appending(turn, entries, ids) as connection:
            connection.execute("INSERT INTO turns VALUES (?, ?, 'open', ?, NULL)", (self.session.id, turn, now))
            connection.execute("UPDATE sessions SET used_at = ? WHERE id = ?", (now, self.session.id))
        self.num_turns = self.open_turn = turn
        return turn

    def append(self, entries: Iterable[Entry], ids: Sequence[int] = ()) -> None:
        """Add events and tokens to the open turn; the events' position is after the tokens. Durable on return."""
        assert self.open_turn is not None
        with self._appending(self.open_turn, entries, ids):
            pass

    def end_turn(self, state: str, entries: Iterable[Entry] = ()) -> None:
        """Close the open turn as `done`, `failed` or `interrupted`."""
        assert self.open_turn is not None
        with self._appending(self.open_turn, entries, ()) as connection:
            change = "UPDATE turns SET state = ?, ended_at = ? WHERE session_id = ? AND number = ?"
            connection.execute(change, (state, time.time(), self.session.id, self.open_turn))
        self.open_turn = None

    def events(self, min_position: int = 0) -> list[LoggedEvent]:
        """The event log in order, or its end: events at or after a position of the token log."""
        rows = self._database.rows(
            "SELECT seq, turn, position, type, payload FROM events WHERE session_id = ? AND position >= ? ORDER BY seq",
            (self.session.id, min_position),
        )
        first = self._num_events - len(rows) + 1 if min_position else 1
        for seq, row in enumerate(rows, start=first):
            if row["seq"] != seq:
                raise self._damaged(f"event {seq} of its event log")
        return [LoggedEvent(r["seq"], r["turn"], r["position"], r["type"], json.loads(r["payload"])) for r in rows]

    def turns(self) -> list[tuple[int, str]]:
        """(number, state) of every turn."""
        rows = self._database.rows(
            "SELECT number, state FROM turns WHERE session_id = ? ORDER BY number", (self.session.id,)
        )
        return [(row["number"], row["state"]) for row in rows]

    def close(self) -> None:
        """Let another process open the session."""
        os.close(self._lock_fd)

    @contextmanager
    def _appending(self, turn: int, entries: Iterable[Entry], ids: Sequence[int]) -> Iterator[sqlite3.Connection]:
        """One transaction that ends with the tokens and events; the block may add more statements before them."""
        start, new_ids = len(self.ids), array("i", ids)
        rows = [
            (self.session.id, seq, turn, start + len(new_ids), type_, json.dumps(payload, ensure_ascii=False))
            for seq, (type_, payload) in enumerate(entries, start=self._num_events + 1)
        ]
        with self._database.transaction() as connection:
            yield connection
            if new_ids:
                blob = _to_blob(new_ids)
                values = (self.session.id, start, blob, _checksum(self.session.id, start, blob))
                connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", values)
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
        self.ids.extend(new_ids)
        self._num_events += len(rows)

    def _read_ids(self) -> "array[int]":
        ids = array("i")
        rows = self._database.rows(
            "SELECT start, ids, checksum FROM tokens WHERE session_id = ? ORDER BY start", (self.session.id,)
        )
        for start, blob, checksum in rows:
            if start != len(ids) or len(blob) % TOKEN_BYTES or checksum != _checksum(self.session.id, start, blob):
                raise self._damaged(f"token {len(ids)} of its token log")
            ids.extend(_from_blob(blob))
        return ids

    def _damaged(self, where: str) -> StoreError:
        return StoreError(
            f"session {self.session.name} is damaged at {where}: restore {self._database.path} from a backup,"
            " or start a fresh session with --new"
        )


def _to_blob(ids: "array[int]") -> bytes:
    return (ids if sys.byteorder == "little" else _swapped(ids)).tobytes()


def _from_blob(blob: bytes) -> "array[int]":
    ids = array("i", blob)
    return ids if sys.byteorder == "little" else _swapped(ids)


def _swapped(ids: "array[int]") -> "array[int]":
    swapped = ids[:]
    swapped.byteswap()
    return swapped


def _checksum(session_id: int, start: int, blob: bytes) -> bytes:
    """Of the ids and of where they belong: a chunk moved elsewhere does not pass."""
    return hashlib.blake2b(b"%d %d " % (session_id, start) + blob, digest_size=CHECKSUM_BYTES).digest()


def _free_name(connection: sqlite3.Connection, workspace: str) -> str:
    """`project-1`, `project-2`, ... for a workspace /home/me/project."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(workspace).name).strip("-._")[:50] or "session"
    number = 1
    while connection.execute("SELECT 1 FROM sessions WHERE name = ?", (f"{stem}-{number}",)).fetchone():
        number += 1
    return f"{stem}-{number}"


def _lock(directory: Path, session: SessionInfo) -> int:
    """Descriptor that holds the session's lock file; the system frees it when this process ends, however it ends."""
    directory.mkdir(mode=0o700, exist_ok=True)
    lock_fd = os.open(directory / f"session-{session.id}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock_fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock_fd)
        raise StoreError(
            f"session {session.name} is open in another process (pid {holder}): use that one, or start a fresh session with --new"
        ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, b"%d\n" % os.getpid(), 0)
    return lock_fd
