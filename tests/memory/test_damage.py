"""Promises about flipped bits: anywhere in the database or in a file, they give one clear line or change nothing.

`bit_flips(home, seed, count)` is the whole check; a long run calls it with a larger count.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.memory import BlobStore, Database, SessionStore, Settled, SnapshotStore, StoreError
from tests.memory.stored_state import File, content, files, is_as_saved, load, page, save, tail_id, tail_row

WORDS = ["the", "lighthouse", "keeper", "counts", "ships", "at", "harbour", "while", "nothing", "happens"]


def make_home(home: Path) -> None:
    """Two sessions and a fork, rewound and switched, with stored state: a row of everything."""
    rng = random.Random(0)
    database = Database(home)
    store = SessionStore(database)
    snapshots = SnapshotStore(database, BlobStore(home))
    for name in ("work", "other"):
        log = store.open(store.create("/w", "m", name))
        for turn in range(1, 9):
            log.start_turn(
                [("user", {"text": " ".join(rng.choices(WORDS, k=60))})], [rng.randrange(9999) for _ in range(50)]
            )
            log.append([("text", {"text": " ".join(rng.choices(WORDS, k=30))})], [turn])
            written = [File("a.py", "file", 0o644, rng.randbytes(300)) for _ in range(2)]
            change = log.begin_change("call", [(written[0], written[1])])
            log.append([("tool_result", {"output": "edited"})], [], Settled(done=(change,)))
            log.end_turn("done", [("turn_done", {})])
            if turn == 5:
                log.rewind(position=170)
        save(snapshots, name, 3, log.session.branch)
        log.close()
    fork = store.fork(log.session, turn=3, name="fork")
    log = store.open(fork)
    log.start_turn([("user", {"text": "forked"})], [1, 2, 3])
    save(snapshots, "other", 2, fork.branch)
    log.close()
    snapshots.close()
    database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def observations(home: Path) -> dict[str, Callable[[], Any]]:
    """Everything that can be read of a home, by name. Each gives what was written, or raises StoreError."""
    database = Database(home)
    store = SessionStore(database)

    def named(name: str) -> Any:
        session = store.find(name)
        assert session is not None, f"{name} is gone"
        return session

    def ids(name: str) -> Any:
        log = store.open(named(name))
        try:
            return log.ids.tolist(), log.turns(), [event.payload for event in log.events(min_position=100)]
        finally:
            log.close()

    def versions(name: str) -> Any:
        log = store.open(named(name))
        try:
            sets = log.change_sets()
            contents = [log.content(new.content) for change in sets for _, _, new in change.files]
            if None in contents:
                raise StoreError("contents are not there any more")
            return sets, contents
        finally:
            log.close()

    def unharmed(value: Any) -> Any:
        """What lists give leaves out damaged sessions, which are named apart."""
        if problems := store.problems():
            raise StoreError(problems[0])
        return value

    found: dict[str, Callable[[], Any]] = {
        "all": lambda: unharmed(store.all()),
        "latest": lambda: unharmed(store.latest("/w", "m")),
    }
    for name in ("work", "other", "fork"):
        found[f"find {name}"] = lambda name=name: store.find(name)
        found[f"branches {name}"] = lambda name=name: store.branches(named(name))
        found[f"turns {name}"] = lambda name=name: store.turn_list(named(name))
        found[f"events {name}"] = lambda name=name: store.events(named(name))
        found[f"ids {name}"] = lambda name=name: ids(name)
        found[f"versions {name}"] = lambda name=name: versions(name)
    found["absent"] = lambda: store.find("absent")
    return found


def check_same(home: Path, expected: dict[str, Any]) -> int:
    """How many of the observations raise StoreError; all others must be as expected."""
    num_damaged = 0
    try:
        seen = observations(home)
    except StoreError:
        return len(expected)
    for name, observe in seen.items():
        try:
            value = observe()
        except StoreError as e:
            assert "\n" not in str(e)
            num_damaged += 1
        else:
            assert value == expected[name], name
    return num_damaged


def check_searches(home: Path, texts: set[str]) -> None:
    try:
        store = SessionStore(Database(home))
        for name in ("work", "fork"):
            session = store.find(name)
            if session is not None:
                log = store.open(session)
                try:
                    hits = log.search("lighthouse harbour forked", limit=5)
                    assert all(any(hit.snippet.strip("…") in text for text in texts) for hit in hits)
                finally:
                    log.close()
    except StoreError:
        pass


def check_loads(home: Path) -> None:
    """Loads give what was saved or nothing; after a repair, a new save loads."""
    try:
        database = Database(home)
        store = SnapshotStore(database, BlobStore(home))
        for chain in ("work", "other"):
            loaded = load(store, [tail_row(chain, 3).id, tail_row(chain, 2).id, tail_id("absent", 1)])
            assert loaded is None or is_as_saved(*loaded)
        store.verify(repair=True)
        assert store.verify().damaged == []
        row = tail_row("new", 2)
        store.add(row, content(row.id, 5000), [page("new", 0), page("new", 1)], 1)
        loaded = load(store, [row.id])
        assert loaded is not None and is_as_saved(*loaded)
    except StoreError:
        pass


def check_writes(home: Path, expected: dict[str, Any]) -> None:
    """What is appended to a damaged file is read back after what was there, or one line says why not."""
    try:
        store = SessionStore(Database(home))
        session = store.find("work")
        assert session is not None
        log = store.open(session)
        try:
            old_ids = expected["ids work"][0]
            assert log.ids.tolist() == old_ids
            turn = log.start_turn([("user", {"text": "after"})], [5, 6, 7])
            log.end_turn("done")
            assert turn == len(expected["turns work"]) + 1
        finally:
            log.close()
        again = SessionStore(Database(home))
        session = again.find("work")
        assert session is not None
        events = again.events(session)
        assert events[:-1] == expected["events work"] and events[-1].payload == {"text": "after"}
        log = again.open(session)
        assert log.ids.tolist() == [*old_ids, 5, 6, 7]
        log.close()
    except StoreError:
        pass


def bit_flips(home: Path, seed: int, count: int) -> int:
    """Flip one bit at a time in copies of a home and look at everything; how many flips were noticed."""
    make_home(home / "sound")
    data = (home / "sound" / "holdfast.db").read_bytes()
    expected = {name: observe() for name, observe in observations(home / "sound").items()}
    texts = {
        event.payload.get("text", "") for name in ("work", "other", "fork") for event in expected[f"events {name}"]
    }
    rng = random.Random(seed)
    num_noticed = 0
    for number in range(count):
        copy = home / "copy"
        shutil.copytree(home / "sound" / "blobs", copy / "blobs")
        bit = rng.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            (copy / "holdfast.db").write_bytes(flipped)
            num_noticed += bool(check_same(copy, expected))
            (check_searches(copy, texts), check_loads(copy)) if number % 2 else check_writes(copy, expected)
        except BaseException as e:
            e.add_note(f"bit {bit} of {len(data) * 8} flipped, seed {seed}")
            raise
        shutil.rmtree(copy)
    return num_noticed


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_the_database_is_an_error_or_nothing(tmp_path: Path, seed: int) -> None:
    assert bit_flips(tmp_path, seed, 60) > 2


@pytest.mark.parametrize("seed", range(4))
def test_a_database_that_lost_its_end_is_an_error_or_nothing(tmp_path: Path, seed: int) -> None:
    make_home(tmp_path / "sound")
    data = (tmp_path / "sound" / "holdfast.db").read_bytes()
    expected = {name: observe() for name, observe in observations(tmp_path / "sound").items()}
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "holdfast.db").write_bytes(data[: random.Random(seed).randrange(1, len(data))])
    assert check_same(tmp_path / "copy", expected) > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_or_a_lost_end_of_a_file_is_never_loaded(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    database = Database(tmp_path)
    store = SnapshotStore(database, BlobStore(tmp_path))
    rows = [save(store, "a", count) for count in (1, 3, 5)]
    for _ in range(60):
        path = rng.choice(sorted(files(tmp_path)))
        data = bytearray(path.read_bytes())
        if rng.random() < 0.8:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        loaded = load(store, [row.id for row in reversed(rows)])
        assert loaded is None or is_as_saved(*loaded)
        num_damaged = len(store.verify(repair=True).damaged)
        assert num_damaged <= 1 and store.verify().damaged == []
        rows = [save(store, "a", count) for count in (1, 3, 5)]
        loaded = load(store, [rows[2].id])
        assert loaded is not None and loaded[0].row == rows[2] and is_as_saved(*loaded)


def test_a_check_reads_all_branches_and_names_what_is_damaged(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database:
        store = SessionStore(database)
        log = store.open(store.create("/w", "m", "one"))
        for text in ("first", "second"):
            log.start_turn([("user", {"text": text})], range(5))
            log.end_turn("done")
        log.rewind(1)  # what is damaged below lies on the branch that was left
        session = log.session
        log.close()
        store.check(session)
        with database.transaction() as connection:
            connection.execute("UPDATE tokens SET ids = zeroblob(20) WHERE start = 5")
        with pytest.raises(StoreError, match="session one is damaged at token 5"):
            store.check(session)


def test_a_damaged_session_does_not_keep_the_others_from_their_work(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database:
        store = SessionStore(database)
        one, other = store.create("/w", "m", "one"), store.create("/w", "m", "other")
        with database.transaction() as connection:
            connection.execute("UPDATE sessions SET model = 'x' WHERE id = ?", (one.id,))
        found = store.find("other")
        assert found == other
        log = store.open(other)
        log.start_turn([("user", {"text": "hello"})], [1, 2])
        log.close()
        for lookup in (lambda: store.find("one"), lambda: store.open(one), lambda: store.branches(one)):
            with pytest.raises(StoreError, match="session 'one' is damaged"):
                lookup()
        assert [session.name for session in store.all()] == ["other"]
        assert ["session 'one' is damaged at row 1" in line for line in store.problems()] == [True]
        assert store.problems("stranger") == []  # a stranger's damage is not theirs to know
        store.remove(log.session)
        assert store.all() == []
