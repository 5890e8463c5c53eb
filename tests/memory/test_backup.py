"""Promises of backups: one moment of everything, made while turns run, and put back whole or not at all."""

import multiprocessing
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.memory import BlobStore, Database, SessionStore, SnapshotStore, StoreError, back_up, blobs, restore
from tests.memory.stored_state import files, is_as_saved, kill_at, load, open_store, save, tail_row
from tests.memory.test_sessions import WRITER

FORK = multiprocessing.get_context("fork")


def make_home(home: Path) -> None:
    with closing(Database(home)) as database:
        store = SessionStore(database)
        log = store.open(store.create("/w", "m", "work"))
        log.start_turn([("user", {"text": "go"})], [1, 2])
        log.end_turn("done")
        log.close()
    snapshots = open_store(home)
    save(snapshots, "a", 3, log.session.branch)
    snapshots.close()


def check(home: Path) -> None:
    """It holds what `make_home` made, whole."""
    with closing(Database(home)) as database, closing(SnapshotStore(database, BlobStore(home))) as snapshots:
        store = SessionStore(database)
        session = store.find("work")
        assert session is not None and store.problems() == []
        log = store.open(session)
        assert log.ids.tolist() == [1, 2]
        log.close()
        loaded = load(snapshots, [tail_row("a", 3).id])
        assert loaded is not None and is_as_saved(*loaded)
        assert snapshots.verify().damaged == []


def test_a_backup_is_one_private_file_that_puts_everything_back(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    copied = back_up(tmp_path / "home", tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    assert restore(tmp_path / "new" / "home", tmp_path / "backup") == copied and copied.num_files == 4
    check(tmp_path / "new" / "home")
    check(tmp_path / "home")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "home", "new"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    back_up(tmp_path / "home", tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    with pytest.raises(StoreError, match="backup exists already: choose another name"):
        back_up(tmp_path / "home", tmp_path / "backup")
    assert (tmp_path / "backup").read_bytes() == content
    with pytest.raises(StoreError, match="has a database already: add --replace"):
        restore(tmp_path / "home", tmp_path / "backup")


def test_a_replaced_database_is_kept_and_its_lock_files_raise_no_alarm(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_home(home)
    back_up(home, tmp_path / "backup")
    with closing(Database(home)) as database:
        store = SessionStore(database)
        for name in ("work", "later"):
            log = store.open(store.find(name) or store.create("/w", "m", name))
            log.start_turn([], [9])
            log.close()
        with pytest.raises(StoreError, match="in use by another process: end it first"):
            restore(home, tmp_path / "backup", replace=True)
    restore(home, tmp_path / "backup", replace=True)
    check(home)
    shutil.copytree(home, tmp_path / "kept")
    (tmp_path / "kept" / "holdfast.db.replaced-1").replace(tmp_path / "kept" / "holdfast.db")
    with closing(Database(tmp_path / "kept")) as database:
        assert {session.name for session in SessionStore(database).all()} == {"work", "later"}


def test_a_damaged_database_can_be_replaced(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    back_up(tmp_path / "home", tmp_path / "backup")
    (tmp_path / "home" / "holdfast.db").write_bytes(b"\xa5" * 10_000)
    restore(tmp_path / "home", tmp_path / "backup", replace=True)
    check(tmp_path / "home")
    assert (tmp_path / "home" / "holdfast.db.replaced-1").read_bytes() == b"\xa5" * 10_000


def test_state_that_is_gone_or_damaged_is_left_out(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    next(files(tmp_path / "home")).unlink()
    assert back_up(tmp_path / "home", tmp_path / "backup").num_left_out == 1
    restore(tmp_path / "new", tmp_path / "backup")
    with closing(open_store(tmp_path / "new")) as snapshots:
        assert snapshots.verify().damaged == []


@pytest.mark.parametrize("content", [b"", b"not a backup" * 100, None])
def test_a_file_that_is_no_whole_backup_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    make_home(tmp_path / "home")
    back_up(tmp_path / "home", tmp_path / "backup")
    whole = (tmp_path / "backup").read_bytes()
    (tmp_path / "backup").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(StoreError, match=r"is no (whole )?backup"):
        restore(tmp_path / "new", tmp_path / "backup")
    assert not (tmp_path / "new").exists()


def test_backups_made_while_turns_run_hold_all_that_was_acknowledged_before(tmp_path: Path) -> None:
    home = tmp_path / "home"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(home)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        for number in range(3):
            for _ in range(5):
                acknowledged = int(writer.stdout.readline())
            back_up(home, tmp_path / f"backup-{number}")
            restore(tmp_path / f"new-{number}", tmp_path / f"backup-{number}")
            with closing(Database(tmp_path / f"new-{number}")) as database:
                store = SessionStore(database)
                session = store.find("work")
                assert session is not None
                log = store.open(session)
                seen = [event.payload["n"] for event in log.events()[1:]]
                assert seen == list(range(len(seen))) and len(seen) > acknowledged
                assert log.ids.tolist() == [1, 2, *(n for n in seen for _ in range(2))]
                log.close()
    finally:
        writer.kill()
        writer.communicate()


def _die_in_backup(home: Path, target: Path, point: str) -> None:
    blobs.crash_point = kill_at(point)
    back_up(home, target)


def _die_in_restore(home: Path, source: Path, point: str) -> None:
    blobs.crash_point = kill_at(point)
    restore(home, source, replace=True)


def killed(target: object, *args: object) -> None:
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("point", ["after file of backup", "before link of backup"])
def test_a_backup_that_is_killed_leaves_no_file_and_can_be_made_again(tmp_path: Path, point: str) -> None:
    make_home(tmp_path / "home")
    killed(_die_in_backup, tmp_path / "home", tmp_path / "backup", point)
    assert not (tmp_path / "backup").exists()
    check(tmp_path / "home")
    back_up(tmp_path / "home", tmp_path / "backup")
    restore(tmp_path / "new", tmp_path / "backup")
    check(tmp_path / "new")


@pytest.mark.parametrize("point", ["after file of restore", "before rename of database"])
def test_a_restore_that_is_killed_leaves_what_was_there(tmp_path: Path, point: str) -> None:
    make_home(tmp_path / "home")
    back_up(tmp_path / "home", tmp_path / "backup")
    with closing(Database(tmp_path / "there")) as database:
        SessionStore(database).create("/w", "m", "there")
    killed(_die_in_restore, tmp_path / "there", tmp_path / "backup", point)
    with closing(Database(tmp_path / "there")) as database:
        assert [session.name for session in SessionStore(database).all()] == ["there"]
    restore(tmp_path / "there", tmp_path / "backup", replace=True)
    check(tmp_path / "there")
