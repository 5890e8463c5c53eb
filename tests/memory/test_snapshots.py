"""Promises of the snapshot store: what is found loads as it was saved, and damage is never given out."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.memory import (
    BlobStore,
    DamagedBlob,
    Database,
    PageData,
    Saved,
    SessionStore,
    SnapshotStore,
    StoreError,
    TailRow,
    blobs,
)
from holdfast.memory.blobs import PAGES, TAILS
from holdfast.memory.upkeep import remove_unnamed
from tests.memory.stored_state import (
    PAGE_BYTES,
    TAIL_BYTES,
    content,
    drop_uses_of,
    files,
    is_as_saved,
    load,
    open_store,
    page,
    page_id,
    save,
    tail_id,
    tail_row,
)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return open_store(tmp_path)


def test_the_first_candidate_that_is_stored_is_loaded_as_saved(store: SnapshotStore) -> None:
    short, long = save(store, "a", 2), save(store, "a", 5)
    unknown = [tail_id("x", number) for number in range(3000)]
    loaded = load(store, [*unknown, long.id, short.id])
    assert loaded is not None and is_as_saved(*loaded)
    tail = loaded[0]
    assert tail.position == long.position and tail.page_ids == [page_id("a", number) for number in range(5)]
    assert store.find([*unknown, short.id, long.id]).page_ids == tail.page_ids[:2]  # type: ignore[union-attr]
    assert store.find(unknown) is None and store.find([]) is None


def test_another_process_finds_it(store: SnapshotStore, tmp_path: Path) -> None:
    row = save(store, "a", 3)
    code = f"""
from tests.memory.stored_state import *
print(is_as_saved(*load(open_store(Path({str(tmp_path)!r})), [bytes.fromhex({row.id.hex()!r})])))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_pages_are_stored_once(store: SnapshotStore) -> None:
    made = []

    def pages(first: int, last: int):  # type: ignore[no-untyped-def]
        for number in range(first, last):
            made.append(number)
            yield page("a", number)

    three, five = tail_row("a", 3), tail_row("a", 5)
    assert store.add(three, content(three.id, TAIL_BYTES), pages(0, 3), 1) == Saved(3 * PAGE_BYTES + TAIL_BYTES, 3)
    assert store.missing_pages([page_id("a", n) for n in range(5)]) == {page_id("a", 3), page_id("a", 4)}
    assert store.add(five, content(five.id, TAIL_BYTES), pages(0, 5), 1) == Saved(2 * PAGE_BYTES + TAIL_BYTES, 2)
    made.clear()
    assert store.add(five, content(five.id, TAIL_BYTES), pages(0, 5), 2) == Saved(0, 0)
    assert made == []  # a stored tail has all its pages: none is made
    assert store.usage().pages == 5 and store.usage().bytes == 5 * PAGE_BYTES + 2 * TAIL_BYTES


def test_a_page_is_made_only_when_the_one_before_is_on_disk(store: SnapshotStore, tmp_path: Path) -> None:
    def pages():  # type: ignore[no-untyped-def]
        for number in range(4):
            assert len(list(files(tmp_path))) == number
            yield page("a", number)

    row = tail_row("a", 4)
    store.add(row, b"tail", pages(), 1)


def test_a_tail_without_pages_and_one_with_moved_and_dropped_pages(store: SnapshotStore) -> None:
    start = tail_row("a", 0)
    store.add(start, content(start.id, TAIL_BYTES), [], 1)
    assert load(store, [start.id])[0].page_ids == []  # type: ignore[index]
    save(store, "head", 2)
    save(store, "a", 6)
    head = page_id("head", 0) + page_id("head", 1)
    rolled = tail_row("a", 8, first_number=4, head=head)
    store.add(rolled, content(rolled.id, TAIL_BYTES), [page("a", 6), page("a", 7)], 1)
    loaded = load(store, [rolled.id])
    assert loaded is not None and is_as_saved(*loaded)
    assert loaded[0].page_ids == [page_id("head", 0), page_id("head", 1), *(page_id("a", n) for n in range(4, 8))]


def test_finding_a_tail_costs_as_much_as_it_has_pages(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    costs, steps = [], [0]
    for chain, num_pages in (("a", 1024), ("b", 4096)):
        row = tail_row(chain, num_pages)
        parents = [None, *(page_id(chain, number) for number in range(num_pages))]
        pages = (PageData(page_id(chain, n), parents[n], n, b"page") for n in range(num_pages))
        store.add(row, b"tail", pages, 1)
        candidates = [*(tail_id("x", number) for number in range(num_pages)), row.id]
        steps[0] = 0
        store._database._connection.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 100)
        tail = store.find(candidates)
        store._database._connection.set_progress_handler(None, 0)
        assert tail is not None and len(tail.pages) == num_pages
        costs.append(steps[0])
    assert costs[1] < 6 * costs[0]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_damaged_page_takes_the_tails_that_need_it_and_no_others(store: SnapshotStore, number: int) -> None:
    rows = [save(store, "a", count) for count in (1, 3, 5)]
    other = save(store, "b", 5)
    store._blobs.path(PAGES, page_id("a", number)).write_bytes(b"?" * PAGE_BYTES)
    tail = store.find([rows[2].id])
    assert tail is not None
    with pytest.raises(DamagedBlob) as caught:
        list(store.read_pages(tail))
    assert (caught.value.kind, caught.value.id) == (PAGES, page_id("a", number))
    lost = [row for row, count in zip(rows, (1, 3, 5)) if count > number]
    assert store.forget_damaged(PAGES, page_id("a", number)) == len(lost)
    assert store.forget_damaged(PAGES, page_id("a", number)) == 0
    loaded = load(store, [rows[2].id, rows[1].id, rows[0].id])
    expected = [row for row in rows if row not in lost]
    if expected:
        assert loaded is not None and loaded[0].row == expected[-1] and is_as_saved(*loaded)
    else:
        assert loaded is None
    assert load(store, [other.id]) is not None
    again = save(store, "a", 5)
    loaded = load(store, [again.id])
    assert loaded is not None and is_as_saved(*loaded)


def test_damage_in_a_moved_head_or_in_a_dropped_page_is_told_apart(store: SnapshotStore) -> None:
    save(store, "head", 1)
    whole = save(store, "a", 6)
    rolled = tail_row("a", 6, first_number=4, head=page_id("head", 0))
    rolled = type(rolled)(tail_id("rolled", 0), rolled.last_page, 4, rolled.head, rolled.position)
    store.add(rolled, content(rolled.id, TAIL_BYTES), [], 1)
    assert store.forget_damaged(PAGES, page_id("a", 1)) == 1  # only of the tail that still needs page 1
    assert store.find([whole.id]) is None and store.find([rolled.id]) is not None
    assert store.forget_damaged(PAGES, page_id("head", 0)) == 2
    assert store.find([rolled.id]) is None


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM pages WHERE number = 1",
        "UPDATE pages SET bytes = bytes + 1 WHERE number = 1",
        "UPDATE pages SET parent = id WHERE number = 1",
        "UPDATE pages SET parent = NULL WHERE number = 1",
        "UPDATE pages SET number = 7 WHERE number = 1",
        "UPDATE tails SET first_number = 1 WHERE position > 700",
        "UPDATE tails SET position = 800 WHERE position > 700",
    ],
)
def test_damaged_rows_are_noted_and_an_earlier_tail_is_found(store: SnapshotStore, tmp_path: Path, damage: str) -> None:
    short, long = save(store, "a", 1), save(store, "a", 3)
    database = Database(tmp_path)
    database.rows(damage)
    tail = store.find([long.id, short.id])
    assert tail is not None and tail.row == short
    assert len(store.notes) == 1 and "is damaged (" in store.notes[0] and "\n" not in store.notes[0]
    assert store.verify().damaged == []
    again = save(store, "a", 3)
    loaded = load(store, [again.id])
    assert loaded is not None and is_as_saved(*loaded)


def test_a_save_on_a_damaged_row_fails_once_and_is_right_the_next_time(store: SnapshotStore, tmp_path: Path) -> None:
    save(store, "a", 3)
    Database(tmp_path).rows("UPDATE pages SET bytes = 7 WHERE number = 1")
    with pytest.raises(StoreError, match="its row is damaged"):
        save(store, "a", 4)
    loaded = load(store, [save(store, "a", 4).id])
    assert loaded is not None and is_as_saved(*loaded)


def test_a_save_that_fails_leaves_what_was_there(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(store, "a", 2)
    before = sorted(files(tmp_path))
    really_rename, renamed = os.rename, []

    def fails_later(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 3:
            raise OSError(28, "No space left on device")
        really_rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left on device"):
        patch.setattr(os, "rename", fails_later)
        save(store, "a", 5)
    assert sorted(files(tmp_path)) == before and store.usage().pages == 2
    loaded = load(store, [first.id])
    assert loaded is not None and is_as_saved(*loaded)
    save(store, "a", 5)
    assert store.verify().damaged == []


def test_a_page_that_cannot_be_made_ends_the_save(store: SnapshotStore, tmp_path: Path) -> None:
    def pages():  # type: ignore[no-untyped-def]
        yield page("a", 0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.add(tail_row("a", 2), b"tail", pages(), 1)
    assert list(files(tmp_path)) == [] and store.usage().bytes == 0


def test_verify_names_all_damage_and_repair_removes_it(store: SnapshotStore) -> None:
    short, _, other = save(store, "a", 1), save(store, "a", 3), save(store, "b", 2)
    store._blobs.path(PAGES, page_id("a", 2)).write_bytes(b"short")
    store._blobs.path(TAILS, other.id).unlink()
    report = store.verify()
    assert (report.num_pages, report.num_tails) == (5, 3)
    assert [line.split(":")[0] for line in report.damaged] == [
        f"page {page_id('a', 2).hex()} of the stored state is damaged (its file is too short)",
        f"tail {other.id.hex()} of the stored state is damaged (its file is missing)",
    ]
    assert store.verify(repair=True).damaged == report.damaged
    assert store.verify().damaged == []
    assert load(store, [short.id]) is not None and store.usage().tails == 1


def test_gc_keeps_what_a_branch_uses(store: SnapshotStore, tmp_path: Path) -> None:
    kept, dropped = save(store, "a", 3, branch_id=1), save(store, "a", 5, branch_id=2)
    (tmp_path / "blobs" / "pages" / f"{page_id('z', 0).hex()}.safetensors").write_bytes(b"left by a crash")
    assert store.use(kept.id, 7) and not store.use(tail_id("x", 0), 7)
    assert (
        store.tails_of([2]) == [(5 * 256 + 3, TAIL_BYTES, store.tails_of([2])[0][2])]
        and len(store.tails_of([1, 2, 7])) == 2
    )
    drop_uses_of(store, [1, 2])
    freed = store.gc()
    assert (freed.num_tails, freed.num_pages, freed.num_leftovers) == (1, 2, 1)
    assert freed.num_bytes == 2 * PAGE_BYTES + TAIL_BYTES
    loaded = load(store, [dropped.id, kept.id])
    assert loaded is not None and is_as_saved(*loaded) and len(list(files(tmp_path))) == 4
    drop_uses_of(store, [7])
    store.gc()
    assert list(files(tmp_path)) == [] and store.usage().bytes == 0


@pytest.mark.parametrize("kept", ["nothing", "a page", "a later tail", "an earlier tail", "a moved head", "a use"])
def test_what_only_an_unused_tail_needed_goes_with_it(store: SnapshotStore, tmp_path: Path, kept: str) -> None:
    row = save(store, "a", 4, branch_id=1)
    other = save(store, "b", 2, branch_id=2)
    if kept == "a page":  # another chain goes on from the second page
        fork = page("c", 0)
        forked = PageData(fork.id, page_id("a", 1), 2, fork.data)
        tail = TailRow(tail_id("c", 0), fork.id, 0, b"", 771)
        store.add(tail, content(tail.id, TAIL_BYTES), [forked], 2)
    if kept == "a later tail":
        save(store, "a", 5, branch_id=2)
    if kept == "an earlier tail":
        save(store, "a", 3, branch_id=2)
    if kept == "a moved head":
        tail = TailRow(tail_id("h", 0), None, 0, page_id("a", 2), 3)
        store.add(tail, content(tail.id, TAIL_BYTES), [], 2)
    if kept == "a use":
        store.use(row.id, 2)
    drop_uses_of(store, [1])
    store.remove_unused([row.id, tail_id("x", 1)])
    left = 6 - len(store.missing_pages([page_id("a", n) for n in range(4)] + [page_id("b", n) for n in range(2)]))
    assert (
        left
        == {"nothing": 2, "a page": 4, "a later tail": 6, "an earlier tail": 5, "a moved head": 5, "a use": 6}[kept]
    )
    assert (load(store, [row.id]) is not None) == (kept == "a use")
    loaded = load(store, [other.id])
    assert loaded is not None and is_as_saved(*loaded)
    assert store.verify().damaged == [] and len(list(files(tmp_path))) == store.usage().pages + store.usage().tails
    store.gc()
    assert store.usage().pages == {"a moved head": 3}.get(kept, left + (kept in ("a page", "a later tail")))


def test_what_sessions_need_is_counted_once(store: SnapshotStore, tmp_path: Path) -> None:
    sessions = SessionStore(Database(tmp_path))
    one, two = (sessions.create("/ws", "m", name) for name in ("one", "two"))
    assert store.bytes_needed([one.id]) == store.bytes_needed([]) == 0
    save(store, "a", 3, branch_id=one.branch)
    save(store, "a", 5, branch_id=one.branch)
    assert store.bytes_needed([one.id]) == 5 * PAGE_BYTES + 2 * TAIL_BYTES
    save(store, "a", 4, branch_id=two.branch)  # shares four pages: each of the two needs them
    assert store.bytes_needed([two.id]) == 4 * PAGE_BYTES + TAIL_BYTES
    assert store.bytes_needed([one.id, two.id]) == store.usage().bytes
    rolled = tail_row("a", 5, first_number=4, head=page_id("b", 0))
    rolled = TailRow(tail_id("rolled", 1), rolled.last_page, 4, rolled.head, rolled.position)
    store.add(rolled, content(rolled.id, TAIL_BYTES), [page("b", 0)], sessions.create("/ws", "m", "three").branch)
    assert store.bytes_needed([sessions.find("three").id]) == 2 * PAGE_BYTES + TAIL_BYTES  # type: ignore[union-attr]
    log = sessions.open(one)
    log.start_turn([("user", {"text": "x" * 1000})], [1, 2, 3])
    log.close()
    grown = store.bytes_needed([one.id]) - 5 * PAGE_BYTES - 2 * TAIL_BYTES
    assert 1000 + 12 <= grown < 1100


def test_a_removed_session_leaves_its_tails_to_gc(store: SnapshotStore, tmp_path: Path) -> None:
    sessions = SessionStore(Database(tmp_path))
    session = sessions.create("/w", "m")
    save(store, "a", 2, session.branch)
    sessions.remove(session)
    assert store.gc().num_tails == 1


def test_threads_save_load_and_collect_at_once(store: SnapshotStore) -> None:
    problems: list[BaseException] = []

    def work(chain: str) -> None:
        try:
            for count in range(1, 6):
                row = save(store, chain, count)
                loaded = load(store, [row.id])
                assert loaded is not None and is_as_saved(*loaded)
                store.gc()
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=work, args=(chain,)) for chain in ("a", "a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and store.verify().damaged == [] and store.notes == []


def test_a_page_that_another_process_stored_meanwhile_stays_as_it_was_stored(
    store: SnapshotStore, tmp_path: Path
) -> None:
    other = open_store(tmp_path)

    def pages():  # type: ignore[no-untyped-def]
        id_ = page_id("a", 0)
        yield PageData(id_, None, 0, b"the same tokens, computed in another order")
        save(other, "a", 2)  # stores pages 0 and 1
        yield page("a", 2)

    row = tail_row("a", 3)
    assert store.add(row, content(row.id, TAIL_BYTES), pages(), 1).num_pages == 1
    loaded = load(store, [row.id])
    assert loaded is not None and is_as_saved(*loaded) and store.verify().damaged == []


def test_a_tail_that_another_process_stored_meanwhile_stays_as_it_was_stored(
    store: SnapshotStore, tmp_path: Path
) -> None:
    other, row = open_store(tmp_path), tail_row("a", 1)

    def pages():  # type: ignore[no-untyped-def]
        save(other, "a", 1)
        yield page("a", 0)

    assert store.add(row, b"computed in another order", pages(), 2) == Saved(0, 0)
    loaded = load(store, [row.id])
    assert loaded is not None and is_as_saved(*loaded) and len(store.tails_of([2])) == 1
    assert len(list(files(tmp_path))) == 2


def test_gc_does_not_take_the_files_of_a_save_about_to_commit(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [page_id("a", number) for number in range(3)]
    clean_up = (Database(tmp_path), BlobStore(tmp_path), PAGES, ids)  # as gc does it, once it has listed the files
    collecting = threading.Thread(target=remove_unnamed, args=clean_up)

    def collect(point: str) -> None:
        if point == "before commit":
            collecting.start()
            collecting.join(0.3)

    monkeypatch.setattr(blobs, "crash_point", collect)
    row = save(store, "a", 3)
    collecting.join()
    loaded = load(store, [row.id])
    assert loaded is not None and is_as_saved(*loaded) and store.notes == []


SAVER = """
import sys
from holdfast.memory import StoreError
from tests.memory.stored_state import *
store = open_store(Path(sys.argv[1]), int(sys.argv[3]))
for count in range(1, 9):
    for chain in ("shared", sys.argv[2]):
        try:
            row = save(store, chain, count)
        except StoreError as e:
            assert "not in the list of pages" in str(e), e
            continue
        loaded = load(store, [row.id])
        assert loaded is None or is_as_saved(*loaded)
    store.gc()
print(store.verify().damaged)
"""


@pytest.mark.parametrize("budget_bytes", [2**40, 12 * PAGE_BYTES + 3 * TAIL_BYTES], ids=["roomy", "tight"])
def test_processes_save_and_remove_in_one_home_at_once(store: SnapshotStore, tmp_path: Path, budget_bytes: int) -> None:
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), name, str(budget_bytes)], stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    assert [saver.communicate(timeout=60)[0] for saver in savers] == ["[]\n"] * 2
    assert store.verify().damaged == []
    store.gc()
    usage = store.usage()
    assert len(list(files(tmp_path))) == usage.pages + usage.tails


def test_what_is_removed_between_finding_and_reading_is_not_called_damaged(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    row = save(store, "a", 3)
    tail = store.find([row.id])
    assert tail is not None
    store._database.rows("DELETE FROM tail_uses")
    store.gc()
    for read in (lambda: store.read_tail(tail), lambda: list(store.read_pages(tail))):
        with pytest.raises(DamagedBlob, match="of the stored state was removed meanwhile") as caught:
            read()
        assert "damaged" not in str(caught.value)
