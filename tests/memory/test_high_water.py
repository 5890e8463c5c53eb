"""Promises of what is said beside the database: a lost end is missed, and nothing else raises an alarm."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.memory import Database, SessionStore, StoreError


def say(home: Path, names: Iterable[str], num_turns: int = 1) -> None:
    """Turns in sessions, which are made where they are missing; then the database is one whole file."""
    with closing(Database(home)) as database:
        store = SessionStore(database)
        for name in names:
            log = store.open(store.find(name) or store.create("/w", "m", name))
            for _ in range(num_turns):
                log.start_turn([("user", {"text": name})], [1, 2])
                log.end_turn("done")
            log.close()


def put_back(home: Path, copy: Path) -> None:
    for path in home.glob("holdfast.db*"):
        path.unlink()
    shutil.copy(copy, home / "holdfast.db")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A home whose database was put back to a state before most of what its lock files speak of."""
    home = tmp_path / "home"
    say(home, ["first", "second"])
    copy = shutil.copy(home / "holdfast.db", tmp_path / "copy")
    say(home, ["second", *(f"later-{n}" for n in range(38))], num_turns=3)
    put_back(home, Path(copy))
    return home


def test_an_older_database_beside_newer_lock_files_lists_and_takes_new_sessions(older: Path) -> None:
    with closing(Database(older)) as database:
        store = SessionStore(database)
        assert [session.name for session in store.all()] == ["second", "first"]
        for number in range(40):  # they get the numbers of those that are not there any more
            log = store.open(store.create("/w", "m", f"new-{number}"))
            assert log.start_turn([], [7]) == 1
            log.close()
        store.open(store.find("first") or pytest.fail("gone")).close()


def test_what_an_older_database_lacks_is_named_with_the_way_out(older: Path) -> None:
    with closing(Database(older)) as database:
        store = SessionStore(database)
        assert len(store.problems()) == 38 and all("is gone from" in line for line in store.problems())
        second = store.find("second")
        assert second is not None
        with pytest.raises(StoreError, match=r"second has lost its end: 4 events .* 1 and 2 are left: restore"):
            store.open(second)
        with pytest.raises(StoreError, match=r"session later-7, of 3 events, is gone from .* verify --repair"):
            store.find("later-7")
        assert store.find("never-there") is None
        database.renew_id()  # what `verify --repair` does
        store.open(second).close()
        assert store.problems() == [] and store.find("later-7") is None


def test_a_removed_session_stays_removed_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the lock file only what was synced before the row went is sure to be there."""
    home = tmp_path / "home"
    say(home, ["kept", "gone"])
    durable = {path: path.read_bytes() for path in (home / "locks").iterdir()}
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path in durable:
            assert len(SessionStore(Database(home)).all()) == 2, "the row went first"
            durable[path] = path.read_bytes()

    with closing(Database(home)) as database:
        store = SessionStore(database)
        gone = store.find("gone")
        assert gone is not None
        monkeypatch.setattr(os, "fsync", recorded)
        store.remove(gone)
    for path, content in durable.items():
        path.write_bytes(content)
    with closing(Database(home)) as database:
        store = SessionStore(database)
        assert [session.name for session in store.all()] == ["kept"] and store.problems() == []
        assert store.find("gone") is None


def test_a_new_home_is_synced_up_to_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    Database(tmp_path / "a" / "home").close()
    assert {str(tmp_path), str(tmp_path / "a")} <= set(synced)


def test_a_witness_of_an_older_build_counts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    say(home, ["one"])
    copy = shutil.copy(home / "holdfast.db", tmp_path / "copy")
    say(home, ["one"])
    (lock,) = (home / "locks").iterdir()
    line = "17 1 2 4"
    lock.write_text(f"{line} {hashlib.blake2b(line.encode(), digest_size=8).hexdigest()}".ljust(127) + "\n")
    say(home, [])
    put_back(home, Path(copy))
    with closing(Database(home)) as database:
        store = SessionStore(database)
        with pytest.raises(StoreError, match="has lost its end: 2 events and 4 tokens"):
            store.open(store.all()[0])
