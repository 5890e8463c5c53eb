"""Stored responses ("answers"): each is a branch with one turn, whose parent is the branch of the answer before it.

Two answers to the same one are two branches, and nothing is rewritten: no lock is needed, and any process may add. Owns
the table `responses` and how an answer becomes a branch. Must not know the content of a body, nor who asked for it.
"""

import hashlib
import sqlite3
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.memory.branch_rows import DamagedLog, Point, TurnInfo
from holdfast.memory.branches import History
from holdfast.memory.db import Database, StoreError
from holdfast.memory.log_check import LogCheck
from holdfast.memory.log_rows import append_rows, delete_branch, insert_branch
from holdfast.memory.removal import without_answer
from holdfast.memory.row_format import row_checksum
from holdfast.memory.session_log import SessionInfo
from holdfast.memory.sessions import SessionStore
from holdfast.memory.snapshot_rows import drop_uses

PREFIX = "responses-"  # of the names of sessions that contain answers
COLUMNS = "id, owner, session_id, branch_id, fingerprint, created_at, body, checksum"


@dataclass(frozen=True)
class StoredResponse:
    """An answer of `owner`. It is the last turn of branch `branch_id`, 0 while it has no log. `fingerprint` is a hash
    of the conversation, to find the answer by; empty for none."""

    id: str
    owner: str
    session_id: int
    branch_id: int
    fingerprint: bytes
    created_at: float
    body: bytes

    def checksum(self) -> bytes:
        """Of its row."""
        columns = (self.id, self.owner, self.session_id, self.branch_id, self.fingerprint, self.created_at)
        return row_checksum("responses", *columns, hashlib.blake2b(self.body, digest_size=16).digest())


class ResponseStore:
    """All answers of a data directory. Any thread may use it."""

    def __init__(self, database: Database, sessions: SessionStore):
        self._database, self._sessions = database, sessions

    def session(self, owner: str, model: str) -> SessionInfo:
        """The session of an owner's answers by a model, created if there is none."""
        name = f"{PREFIX}{owner}-{model[:8]}"
        if found := self._sessions.find(name):
            return found
        try:
            return self._sessions.create("", model, name)
        except StoreError:
            if found := self._sessions.find(name):  # another process was faster
                return found
            raise

    def sessions_of(self, owner: str) -> list[int]:
        """Ids of the sessions of an owner's answers, of every model."""
        rows = self._database.rows("SELECT id, name FROM sessions WHERE workspace = ''")
        return [id_ for id_, name in rows if _owner(name) == owner]

    def count(self, session: SessionInfo) -> int:
        """The number of answers in a session: rows with a log, or with a content to be found by."""
        sql = "SELECT COUNT(*) FROM responses WHERE session_id = ? AND (branch_id != 0 OR fingerprint != x'')"
        return int(self._database.rows(sql, (session.id,))[0][0])

    def put(self, response: StoredResponse, ids: Sequence[int], parent: int, known: int) -> StoredResponse:
        """Store an answer and its log in one transaction, durable on return; returns it with its branch.

        The first `known` of `ids` are the log of branch `parent` (0: none). If that branch was deleted meanwhile, all
        of `ids` are stored. An answer with the same id is replaced. Raises StoreError if the session was removed.
        """
        with self._database.transaction() as connection:
            if not self._database.rows("SELECT 1 FROM sessions WHERE id = ?", (response.session_id,)):
                raise StoreError("the session that holds these answers was removed: start the server again")
            start = self._end(parent) if parent else None
            if start is None or start.position != known:
                parent, start = 0, Point(0, 0, 0, False)
            branch_id = insert_branch(connection, response.session_id, parent or None, start, num_turns=1)
            now = time.time()
            turn = TurnInfo(start.turn + 1, "done", now, now, start.position, start.position, start.seq)
            append_rows(connection, branch_id, turn, ids[start.position :])
            response = replace(response, branch_id=branch_id)
            self._insert(connection, response)
        return response

    def put_body(self, response: StoredResponse) -> None:
        """Store an answer that has no log yet, or another body that its owner keeps. Durable on return."""
        with self._database.transaction() as connection:
            self._insert(connection, response)

    def get(self, id: str, owner: str) -> StoredResponse | None:
        """The answer with this id and owner, or None. Raises StoreError if it is damaged."""
        return self._one("id = ? AND owner = ?", id, owner)

    def all_ids(self) -> list[str]:
        """The ids of all answers of all owners."""
        return [row[0] for row in self._database.rows("SELECT id FROM responses NOT INDEXED ORDER BY rowid")]

    def check(self, id: str, logs: LogCheck) -> None:
        """Read an answer and its log, except the part that `logs` has read before. Raises StoreError if something is
        damaged or missing."""
        response = self._one("id = ?", id)
        if response is not None and response.branch_id:
            logs.check("of responses", response.branch_id)

    def latest(self, session_id: int, fingerprint: bytes) -> StoredResponse | None:
        """The last answer of a session with this fingerprint, or None. Raises StoreError if it is damaged."""
        return self._one("session_id = ? AND fingerprint = ? ORDER BY rowid DESC LIMIT 1", session_id, fingerprint)

    def ids(self, branch_id: int) -> "array[int]":
        """The token log of an answer. Raises StoreError if it is damaged or gone."""
        with self._database.reading():
            return History(self._database, "of responses", branch_id).read_ids()

    def remove(self, response: StoredResponse) -> list[bytes]:
        """Delete an answer and the branches that nothing else needs; returns the tails that these used."""
        tails: list[bytes] = []
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM responses WHERE id = ?", (response.id,))
            for id_ in without_answer(self._database, response.branch_id):
                tails += drop_uses(connection, [id_])
                delete_branch(connection, id_)
        return tails

    def _end(self, branch_id: int) -> Point | None:
        rows = self._database.rows(
            "SELECT number, end_seq, end_position FROM turns WHERE branch_id = ? ORDER BY number DESC LIMIT 1",
            (branch_id,),
        )
        return Point(rows[0][0], rows[0][1], rows[0][2], False) if rows else None

    def _insert(self, connection: sqlite3.Connection, response: StoredResponse) -> None:
        values = (response.id, response.owner, response.session_id, response.branch_id, response.fingerprint)
        connection.execute(
            f"INSERT OR REPLACE INTO responses ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, response.created_at, response.body, response.checksum()),
        )

    def _one(self, where: str, *values: Any) -> StoredResponse | None:
        rows = self._database.rows(f"SELECT {COLUMNS} FROM responses WHERE {where}", values)
        if not rows:
            return None
        *columns, checksum = rows[0]
        response = StoredResponse(*columns)
        if checksum != response.checksum():
            raise DamagedLog(self._database, "of responses", f"response {response.id}")
        return response


def owner_of(session: SessionInfo) -> str | None:
    """The owner of the answers in a session; None for a session of turns."""
    return None if session.workspace else _owner(session.name)


def _owner(name: str) -> str | None:
    return name.removeprefix(PREFIX).rpartition("-")[0] if name.startswith(PREFIX) else None
