"""Promises about file versions: what was recorded is there with what the log says of it, and goes with its session."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.memory import (
    BlobStore,
    Database,
    SessionLog,
    SessionStore,
    Settled,
    SnapshotStore,
    StoreError,
    back_up,
    check_records,
    repair_indexes,
    restore,
)
from holdfast.memory.file_versions import bytes_of_contents, content_id
from holdfast.memory.responses import ResponseStore
from tests.memory.stored_state import File, save

OLD, NEW = File("a.py", "file", 0o644, b"fox = 1\n"), File("a.py", "file", 0o755, b"fox = 2\n")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with closing(Database(tmp_path / "home")) as database:
        yield SessionStore(database)


def opened(store: SessionStore, name: str = "work") -> SessionLog:
    session = store.find(name)
    return store.open(session or store.create("/w", "m", name))


def turn_with(log: SessionLog, *files: tuple[File, File]) -> int:
    """A turn whose only call changes these files; the id of its change set."""
    log.start_turn([("user", {"text": "go on"})], [1, 2])
    change = log.begin_change("call", files)
    log.append([("tool_result", {"output": "done"})], [], Settled(done=(change,)))
    log.end_turn("done")
    return change


def test_a_change_set_has_both_versions_of_its_files(store: SessionStore) -> None:
    log = opened(store)
    turn_with(log, (OLD, NEW), (File("b"), File("b", "link", 0o777, b"a.py")))
    (change,) = log.change_sets()
    assert change.is_done and (change.turn, change.seq) == (1, 1)
    (path, before, after), (_, absent, link) = change.files
    assert (path, before.mode, after.mode) == ("a.py", 0o644, 0o755)
    assert (absent.kind, link.kind) == ("absent", "link")
    assert [log.content(version.content) for version in (before, after, link)] == [OLD.data, NEW.data, b"a.py"]


def test_the_same_contents_are_kept_once(store: SessionStore) -> None:
    log = opened(store)
    big = [File("a", "file", 0o644, os.urandom(100_000)) for _ in range(2)]
    for _ in range(10):
        turn_with(log, (big[0], big[1]))
        turn_with(log, (big[1], big[0]))
    assert bytes_of_contents(store.database) < 201_000


def _record_and_die(home: Path, point: str) -> None:
    log = opened(SessionStore(Database(home)))
    log.start_turn([("user", {"text": "go on"})], [1, 2])
    change = log.begin_change("call", [(OLD, NEW)])
    if point == "after result":
        log.append([("tool_result", {"output": "done"})], [], Settled(done=(change,)))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("point", ["before result", "after result"])
def test_a_change_is_done_when_its_result_is_logged(tmp_path: Path, point: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=_record_and_die, args=(tmp_path, point))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    log = opened(SessionStore(Database(tmp_path)))
    (change,) = log.change_sets()
    results = log.events(types=("tool_result",))
    assert change.is_done == bool(results) == (point == "after result")


def test_a_full_disk_records_nothing(store: SessionStore) -> None:
    log = opened(store)
    pages = store.database.rows("PRAGMA page_count")[0][0]
    store.database.rows(f"PRAGMA max_page_count = {pages + 20}")
    big = File("a.py", "file", 0o644, os.urandom(500_000))
    with pytest.raises(StoreError, match="full") as e:
        log.begin_change("call", [(OLD, big)])
    assert "\n" not in str(e.value)
    assert log.change_sets() == [] and bytes_of_contents(store.database) == 0


def test_versions_go_with_the_last_session_that_needs_them(store: SessionStore) -> None:
    log = opened(store)
    turn_with(log, (OLD, NEW))
    turn_with(log, (NEW, File("a.py")))
    fork = store.fork(log.session, turn=1, name="fork")
    log.close()
    store.remove(log.session)
    forked = store.open(fork)
    assert [change.turn for change in forked.change_sets()][:1] == [1]
    assert forked.content(content_id(OLD.data)) == OLD.data
    forked.close()
    store.remove(fork)
    assert bytes_of_contents(store.database) == 0
    assert store.database.rows("SELECT COUNT(*) FROM file_versions")[0][0] == 0


def test_versions_count_into_the_budget_and_the_oldest_go_first(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database:
        store = SessionStore(database)
        snapshots = SnapshotStore(database, BlobStore(tmp_path), budget_bytes=100_000)
        log = opened(store)
        files = [File("a", "file", 0o644, os.urandom(9_000)) for _ in range(20)]
        for old, new in itertools.pairwise(files):
            turn_with(log, (old, new))
        assert snapshots.usage().bytes > 180_000
        assert snapshots.bytes_needed([log.session.id]) > 180_000
        save(snapshots, "a", 1, log.session.branch)
        assert snapshots.usage().bytes <= 100_000
        kept = [log.content(content_id(file.data)) is not None for file in files]
        assert kept == sorted(kept) and 1 <= sum(kept) <= 3
        assert list(check_records(database, store, ResponseStore(database, store))) == []
        snapshots.close()


def test_a_backup_has_them(store: SessionStore, tmp_path: Path) -> None:
    log = opened(store)
    turn_with(log, (OLD, NEW))
    back_up(tmp_path / "home", tmp_path / "backup")
    restore(tmp_path / "other", tmp_path / "backup")
    restored = opened(SessionStore(Database(tmp_path / "other")))
    assert restored.change_sets() == log.change_sets()
    assert restored.content(content_id(OLD.data)) == OLD.data


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE file_contents SET data = x'00' WHERE size = 8",
        "UPDATE file_versions SET path = 'b.py'",
        "UPDATE change_sets SET turn = 7",
    ],
)
def test_damage_is_named_and_forgotten(store: SessionStore, damage: str) -> None:
    log = opened(store)
    turn_with(log, (OLD, NEW))
    store.database.rows(damage)
    responses = ResponseStore(store.database, store)
    assert len(list(check_records(store.database, store, responses))) >= 1
    repair_indexes(store.database)
    assert list(check_records(store.database, store, responses)) == []
    assert all(log.content(new.content) is None for change in log.change_sets() for _, _, new in change.files)


def test_a_rewind_takes_its_change_set_to_the_new_branch(store: SessionStore) -> None:
    log = opened(store)
    for _ in range(3):
        turn_with(log, (OLD, NEW))
    change = log.begin_change("rewind", [(NEW, OLD)], undone=(2, 3))
    log.rewind(1, change=change)
    *_, restored = log.change_sets()
    assert restored.branch_id == log.session.branch and restored.undone == (2, 3) and restored.is_done
    assert (restored.turn, restored.seq) == (1, log.reach()[log.session.branch])
