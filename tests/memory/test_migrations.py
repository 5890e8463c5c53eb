"""Promises about older files: what version 1 holds is there, reads the same, and can be gone on with."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
from array import array
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.memory import Database, SessionStore, StoreError
from holdfast.memory.row_format import row_checksum
from holdfast.memory.schema import MIGRATIONS

VERSION_1 = """
CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, workspace TEXT NOT NULL,
  model TEXT NOT NULL, created_at REAL NOT NULL, used_at REAL NOT NULL) STRICT;
CREATE INDEX sessions_by_workspace ON sessions (workspace, used_at);
CREATE TABLE turns (session_id INTEGER NOT NULL REFERENCES sessions, number INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'interrupted')), started_at REAL NOT NULL,
  ended_at REAL, PRIMARY KEY (session_id, number)) STRICT;
CREATE TABLE events (session_id INTEGER NOT NULL, seq INTEGER NOT NULL, turn INTEGER NOT NULL,
  position INTEGER NOT NULL, type TEXT NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (session_id, seq),
  FOREIGN KEY (session_id, turn) REFERENCES turns (session_id, number)) STRICT;
CREATE TABLE tokens (session_id INTEGER NOT NULL REFERENCES sessions, start INTEGER NOT NULL,
  ids BLOB NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (session_id, start)) STRICT;
PRAGMA user_version = 1;
"""


class OldLog:
    """Writes a session as the build of version 1 did."""

    def __init__(self, connection: sqlite3.Connection, id: int, name: str, used_at: float):
        self.connection, self.id, self.num_tokens, self.num_events = connection, id, 0, 0
        connection.execute("INSERT INTO sessions VALUES (?, ?, '/w', 'm', 5.0, ?)", (id, name, used_at))

    def turn(self, number: int, state: str, ended_at: float | None = 2.5) -> None:
        row = (self.id, number, state, number + 0.25, ended_at)
        self.connection.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?)", row)

    def append(self, turn: int, texts: list[str], ids: list[int]) -> None:
        if ids:
            blob = array("i", ids).tobytes()
            checksum = hashlib.blake2b(b"%d %d " % (self.id, self.num_tokens) + blob, digest_size=8).digest()
            self.connection.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?)", (self.id, self.num_tokens, blob, checksum)
            )
            self.num_tokens += len(ids)
        for text in texts:
            self.num_events += 1
            payload = json.dumps({"text": text}, ensure_ascii=False)
            row = (self.id, self.num_events, turn, self.num_tokens, "text", payload)
            self.connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "holdfast.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(VERSION_1)
    OldLog(connection, 3, "empty", 7.0)
    log = OldLog(connection, 8, "work", 9.0)
    log.turn(1, "done")
    log.append(1, ["grüß dich"], [1, 2, 3])
    log.append(1, [], [4, 5])  # a tool result that was fed: tokens without events
    log.append(1, ["the lighthouse"], [6])
    log.append(1, [], [7])
    log.turn(2, "interrupted")
    log.append(2, ["second ask"], [8, 9])
    log.append(2, ["interrupted"], [])
    log.turn(3, "open", None)
    log.append(3, ["third ask"], [10, 11])
    log.append(3, [], [12])
    connection.close()
    return tmp_path


def test_a_version_1_file_reads_the_same_and_goes_on(old_home: Path) -> None:
    store = SessionStore(Database(old_home))
    assert [s.name for s in store.all()] == ["work", "empty"]
    session = store.find("work")
    assert session is not None and (session.id, session.created_at, session.used_at) == (8, 5.0, 9.0)
    log = store.open(session)
    assert log.ids.tolist() == list(range(1, 13)) and log.open_turn == 3
    seen = [(e.seq, e.turn, e.position, e.payload["text"]) for e in log.events()]
    assert seen == [
        (1, 1, 3, "grüß dich"),
        (2, 1, 6, "the lighthouse"),
        (3, 2, 9, "second ask"),
        (4, 2, 9, "interrupted"),
        (5, 3, 11, "third ask"),
    ]
    turns = [(t.state, t.started_at, t.ended_at, t.start_position, t.end_position) for t in store.turn_list(session)]
    assert turns == [("done", 1.25, 2.5, 0, 7), ("interrupted", 2.25, 2.5, 7, 9), ("open", 3.25, None, 9, 12)]
    assert [found.seq for found in log.search("lighthouse")] == [2]
    log.append([("text", {"text": "more"})], [13])
    log.end_turn("done")
    fork = store.open(store.fork(session, turn=1))
    assert fork.ids.tolist() == list(range(1, 8)) and fork.num_turns == 1
    empty = store.find("empty")
    assert empty is not None and store.open(empty).start_turn([], []) == 1


def test_sessions_of_an_older_file_stay_in_the_order_of_their_use(
    old_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.memory.db.MIGRATIONS", MIGRATIONS[:5])
        Database(old_home).close()
    connection = sqlite3.connect(old_home / "holdfast.db", isolation_level=None)
    values = (11, "future", "/w", "m", 5.0, 9e9, 99)
    connection.execute(
        "INSERT INTO sessions (id, name, workspace, model, created_at, used_at, branch_id, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, row_checksum("sessions", *values)),
    )
    connection.close()
    store = SessionStore(Database(old_home))
    assert [(s.name, s.use_number, s.inode) for s in store.all()] == [("future", 3, 0), ("work", 2, 0), ("empty", 1, 0)]
    assert store.create("/w", "m", "next").use_number == 4


def test_a_damaged_row_of_an_older_file_stays_damaged(old_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.memory.db.MIGRATIONS", MIGRATIONS[:5])
        Database(old_home).close()
    connection = sqlite3.connect(old_home / "holdfast.db", isolation_level=None)
    connection.execute("UPDATE sessions SET workspace = '/v' WHERE name = 'work'")
    connection.close()
    store = SessionStore(Database(old_home))
    assert [session.name for session in store.all()] == ["empty"]
    (problem,) = store.problems()
    assert problem.startswith("session 'work' is damaged")


def test_new_sessions_and_branches_do_not_take_old_ids(old_home: Path) -> None:
    created = SessionStore(Database(old_home)).create("/w", "m")
    assert created.id > 8 and created.branch > 8


def test_the_migrated_file_is_sound_and_private(old_home: Path) -> None:
    database = Database(old_home)
    assert [row[0] for row in database.rows("PRAGMA integrity_check")] == ["ok"]
    assert database.rows("PRAGMA foreign_key_check") == []
    assert database.rows("SELECT name FROM sqlite_schema WHERE name LIKE 'old_%'") == []


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        ("UPDATE tokens SET ids = x'00000000' WHERE start = 5", "token 5 of its token log"),
        ("DELETE FROM tokens WHERE start = 3", "token 3 of its token log"),
        ("DELETE FROM events WHERE seq = 2", "event 2 of its event log"),
        ("UPDATE events SET payload = '{' WHERE seq = 2", "event 2 of its event log"),
        ("DELETE FROM turns WHERE number = 2", "turn 2"),
    ],
)
def test_damage_of_a_version_1_file_is_found_after_it_too(old_home: Path, damage: str, where: str) -> None:
    connection = sqlite3.connect(old_home / "holdfast.db", isolation_level=None)
    assert connection.execute(damage).rowcount == 1
    connection.close()
    store = SessionStore(Database(old_home))
    session = store.find("work")
    assert session is not None
    with pytest.raises(StoreError, match=f"session work is damaged at {where}"):
        store.open(session).events()


def test_a_migration_that_fails_leaves_the_old_file(old_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.memory.db.MIGRATIONS", (*MIGRATIONS, ("fails", fails)))
        with pytest.raises(StoreError, match="cannot be used: disk I/O error"):
            Database(old_home)
    connection = sqlite3.connect(old_home / "holdfast.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert len(connection.execute("SELECT * FROM events").fetchall()) == 5
    assert not connection.execute("SELECT * FROM sqlite_schema WHERE name = '_sqlite_migrations'").fetchall()
    connection.close()
    Database(old_home).close()


KILLED = """
import os, signal, sys
from pathlib import Path
from holdfast.memory import Database, db
migrations, at = list(db.MIGRATIONS), int(sys.argv[2])
migrations.insert(at, ("dies", lambda connection: os.kill(os.getpid(), signal.SIGKILL)))
db.MIGRATIONS = tuple(migrations)
Database(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("at", range(1, len(MIGRATIONS) + 1))
def test_a_process_killed_between_two_migrations_leaves_the_old_file(old_home: Path, at: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(old_home), str(at)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with closing(sqlite3.connect(old_home / "holdfast.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert len(connection.execute("SELECT session_id FROM events").fetchall()) == 5
    test_a_version_1_file_reads_the_same_and_goes_on(old_home)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_migrations_are_applied_once_each_and_recorded_by_name(
    old_home: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """A file of a build before that record has the number alone, and one whose number was damaged has the record."""
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.memory.db.MIGRATIONS", MIGRATIONS[:version])
        Database(old_home).close()
    for damage in ("DROP TABLE IF EXISTS _sqlite_migrations", f"PRAGMA user_version = {version}"):
        with closing(sqlite3.connect(old_home / "holdfast.db", isolation_level=None)) as connection:
            connection.execute(damage)
        with closing(Database(old_home)) as database:
            names = [row[0] for row in database.rows("SELECT name FROM _sqlite_migrations ORDER BY id")]
            assert names == [name for name, _ in MIGRATIONS]
            assert database.rows("PRAGMA user_version")[0][0] == len(MIGRATIONS)
            assert [session.name for session in SessionStore(database).all()] == ["work", "empty"]


def test_a_start_with_a_file_of_this_schema_does_not_load_the_migrations(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from holdfast.memory import Database;"
        " Database(Path(sys.argv[1])).close()"
    )
    code += "; print('sqlite_utils' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert [subprocess.check_output(command, text=True).strip() for _ in range(2)] == ["True", "False"]
