"""Promises of the data directory's file: private, migrated in order, and one clear line when it cannot be used."""

import multiprocessing
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import holdfast.memory
from holdfast.memory import BlobStore, Database, SessionStore, SnapshotStore, StoreError
from holdfast.memory.schema import MIGRATIONS


def test_a_new_home_is_private_to_its_owner(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    database = Database(home)
    SessionStore(database).create("/w", "m")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [home, *home.iterdir()]}
    files = ("holdfast.db", "holdfast.db-wal", "holdfast.db-shm", "writer", "reserve")
    assert modes == {"home": 0o700, **dict.fromkeys(files, 0o600)}
    database.close()


def test_commits_are_synced_and_readers_do_not_block_them(tmp_path: Path) -> None:
    database = Database(tmp_path)
    settings = [database.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert settings == ["wal", 2, 1]


def test_a_process_that_ends_does_not_take_what_another_writes_with_it(tmp_path: Path) -> None:
    """A process has several connections to the file, `SnapshotStore`'s among them; SQLite's locks must hold."""
    code = "import sys; from pathlib import Path; from holdfast.memory import Database, SessionStore\n"
    code += "database = Database(Path(sys.argv[1])); print(len(SessionStore(database).all())); database.close()"
    store = SessionStore(Database(tmp_path))
    another = Database(tmp_path)
    for num_sessions in range(1, 4):
        store.create("/w", "m")
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert int(done.stdout) == num_sessions
        assert (tmp_path / "holdfast.db-wal").exists()
    assert len(SessionStore(another).all()) == 3


def test_each_table_of_logs_and_of_uses_is_written_by_one_module() -> None:
    writes = r"(?:INSERT (?:OR \w+ )?INTO|UPDATE|DELETE FROM) (branches|turns|events|tokens|tail_uses)\b"
    found = {
        (table, path.name)
        for path in Path(holdfast.memory.__file__).parent.glob("*.py")
        if path.name != "schema.py"
        for table in re.findall(writes, path.read_text())
    }
    log = {(table, "log_rows.py") for table in ("branches", "turns", "events", "tokens")}
    assert found == {*log, ("tail_uses", "snapshot_rows.py")}


def test_an_open_file_of_this_version_stays_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        database = Database(tmp_path)
        assert database.rows("PRAGMA user_version")[0][0] == len(MIGRATIONS)
        database.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "holdfast.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=r"newer holdfast \(schema 99, this build reads \d+\): update holdfast"):
        Database(tmp_path)


@pytest.mark.parametrize("content", [b"not a database, whatever its name says", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_gives_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "holdfast.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"holdfast.db (is damaged|cannot be used)") as caught:
        Database(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "holdfast.db").read_bytes() == content


def test_damaged_pages_give_one_line(tmp_path: Path) -> None:
    database = Database(tmp_path)
    store = SessionStore(database)
    for _ in range(200):
        store.create("/w", "m")
    database.close()
    data = bytearray((tmp_path / "holdfast.db").read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    (tmp_path / "holdfast.db").write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        SessionStore(Database(tmp_path)).all()


def test_a_home_that_is_a_file_raises_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Database(tmp_path / "file" / "home")


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute(
            "INSERT INTO sessions (name, workspace, model, created_at, used_at) VALUES ('a', '/w', 'm', 0, 0)"
        )
        raise ZeroDivisionError
    assert SessionStore(database).all() == []


def _create_one(home: Path) -> None:
    SessionStore(Database(home)).create("/w", "m")


def test_processes_that_open_a_new_home_at_once_all_succeed(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_create_one, args=(tmp_path / "home",)) for _ in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 12
    assert len(SessionStore(Database(tmp_path / "home")).all()) == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda home: os.rename(home / "holdfast.db", home / "elsewhere"),
        lambda home: os.replace(shutil.copy(home / "holdfast.db", home / "copy"), home / "holdfast.db"),
        lambda home: (home / "holdfast.db-wal").unlink(),
        lambda home: os.rename(home, home.with_name("moved")),
    ],
    ids=["moved", "replaced", "log deleted", "directory moved"],
)
def test_nothing_is_acknowledged_into_a_file_that_lost_its_name(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    home = tmp_path / "home"
    database = Database(home)
    store = SessionStore(database)
    log = store.open(store.create("/w", "m"))
    log.start_turn([], [1])
    change(home)
    with pytest.raises(StoreError, match=r"holdfast\.db or its -wal file was moved, replaced or deleted"):
        log.append([], [2])
    assert log.ids.tolist() == [1]
    there = home.exists()
    with pytest.raises(StoreError, match="was moved"):
        SnapshotStore(database, BlobStore(home) if there else BlobStore(tmp_path / "other"))
    assert home.exists() == there


def _write_until_told(home: Path, number: int) -> None:
    store = SessionStore(Database(home))
    log = store.open(store.create("/w", "m", f"s{number}"))
    log.start_turn([], [])
    for n in range(150):
        log.append([("text", {"text": "x" * 3000, "n": n})], [n])


def test_processes_that_write_and_checkpoint_together_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.memory.db.WAL_BYTES", 100_000)  # every few commits of each
    Database(tmp_path).close()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_write_until_told, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    database = Database(tmp_path)
    assert database.rows("PRAGMA integrity_check")[0][0] == "ok"
    store = SessionStore(database)
    for session in store.all():
        assert [event.payload["n"] for event in store.events(session)] == list(range(150))


def test_a_checkpoint_and_a_writer_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite makes none by itself, and ours holds what every writer waits for."""
    monkeypatch.setattr("holdfast.memory.db.WAL_BYTES", 0)
    monkeypatch.setattr("holdfast.memory.db.BUSY_TIMEOUT_S", 0.05)
    database, other = Database(tmp_path), Database(tmp_path)
    assert database.rows("PRAGMA wal_autocheckpoint")[0][0] == 0
    statements: list[str] = []

    def trace(statement: str) -> None:
        statements.append(statement)
        if "checkpoint" in statement:
            with pytest.raises(StoreError, match=rf"in use by process {os.getpid()} for"), other.transaction():
                pass

    database._connection.set_trace_callback(trace)
    SessionStore(database).create("/w", "m")
    assert "PRAGMA wal_checkpoint(TRUNCATE)" in statements
    assert (tmp_path / "holdfast.db-wal").stat().st_size == 0
    other.close()


HOLDER = """
import os, signal, sys
from pathlib import Path
from holdfast.memory import Database
database = Database(Path(sys.argv[1]))
with database.transaction():
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_stopped_process_that_writes_is_named_and_waited_for_no_longer_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        os.waitpid(holder.pid, os.WUNTRACED)
        monkeypatch.setattr("holdfast.memory.db.BUSY_TIMEOUT_S", 0.2)
        with pytest.raises(StoreError, match=rf"in use by process {holder.pid} \(stopped: continue or end it\) for"):
            SessionStore(database).create("/w", "m")
        assert SessionStore(database).all() == []  # readers go on
    finally:
        holder.kill()
        holder.communicate()
    SessionStore(database).create("/w", "m")  # its lock went with it
