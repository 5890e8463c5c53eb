"""Promises of the budget: what is least needed goes first, and nothing that stays lacks a page."""

import random
from pathlib import Path

import pytest

from holdfast.memory import BlobStore, Database, PageRow, SessionStore, SnapshotStore, TailRow
from holdfast.memory.retention import Reached
from tests.memory.stored_state import (
    PAGE_BYTES,
    TAIL_BYTES,
    drop_uses_of,
    files,
    is_as_saved,
    load,
    open_store,
    page_id,
    save,
    tail_id,
)

SIZE = PAGE_BYTES + TAIL_BYTES  # of a chain with one page


class Home:
    def __init__(self, home: Path):
        self.home = home
        self.database = Database(home)
        self.sessions = SessionStore(self.database)
        self.unlimited = open_store(home)

    def branch(self, name: str, used_at: float) -> int:
        session = self.sessions.create("/w", "m", name)
        self.database.rows("UPDATE sessions SET used_at = ? WHERE id = ?", (used_at, session.id))
        return session.branch

    def tail(self, chain: str, num_pages: int, branch_id: int | None, used_at: float) -> TailRow:
        row = save(self.unlimited, chain, num_pages, branch_id or 10**6)
        drop_uses_of(self.unlimited, [10**6])
        self.database.rows("UPDATE tails SET used_at = ? WHERE id = ?", (used_at, row.id))
        return row

    def kept(self, budget_bytes: float, keep: tuple[int, ...] = ()) -> list[bytes]:
        store = SnapshotStore(self.database, BlobStore(self.home), int(budget_bytes))
        store.enforce_budget(keep)
        return [row[0] for row in self.database.rows("SELECT id FROM tails")]


def test_the_order_in_which_tails_go(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old, recent = home.branch("old", 100), home.branch("recent", 200)
    left = 777  # a branch that is current nowhere
    order = [
        home.tail("unused-1", 1, None, 50),
        home.tail("unused-2", 1, None, 60),
        home.tail("left-1", 1, left, 1),
        home.tail("left-2", 1, left, 2),
        home.tail("recent", 1, recent, 3),  # not the newest of its branch
        home.tail("old", 1, old, 4),
        home.tail("old-newest", 2, old, 9),  # of the session used longest ago
        home.tail("recent-newest", 2, recent, 8),
    ]
    ids = [row.id for row in order]
    sizes = [SIZE] * 6 + [SIZE + PAGE_BYTES] * 2
    for gone in range(8):
        assert set(home.kept(sum(sizes[gone:]) / 0.95 + 1)) == set(ids[gone:]), gone
        left_over = home.unlimited.usage()
        assert left_over.bytes == sum(sizes[gone:]) == sum(path.stat().st_size for path in files(tmp_path))
    assert home.kept(0) == []


def test_what_is_to_be_kept_is_kept_whatever_the_budget(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old, recent = home.branch("old", 100), home.branch("recent", 200)
    older, newest = home.tail("old", 1, old, 1), home.tail("old", 2, old, 2)
    home.tail("recent", 2, recent, 3)
    assert home.kept(10, keep=(old,)) == [newest.id] != [older.id]
    loaded = load(home.unlimited, [newest.id])
    assert loaded is not None and is_as_saved(*loaded)


def test_a_save_keeps_to_the_budget_and_keeps_itself(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=10 * SIZE)
    branches = [SessionStore(Database(tmp_path)).create("/w", "m").branch for _ in range(3)]
    for number in range(40):
        row = save(store, f"chain-{number}", 1 + number % 3, branches[number % 3])
        assert store.usage().bytes <= 10 * SIZE
        assert store.find([row.id]) is not None
    assert store.verify().damaged == []


def test_a_use_by_two_branches_counts_as_the_better_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    current = home.branch("work", 100)
    shared, other = home.tail("shared", 1, 777, 1), home.tail("other", 1, 777, 2)
    home.unlimited.use(shared.id, current)
    home.database.rows("UPDATE tails SET used_at = 1 WHERE id = ?", (shared.id,))
    assert home.kept(SIZE / 0.95 + 1) == [shared.id] != [other.id]


def test_pages_dropped_by_a_roll_are_freed_with_the_last_tail_that_needs_them(tmp_path: Path) -> None:
    home = Home(tmp_path)
    branch = home.branch("work", 100)
    whole = home.tail("a", 6, branch, 1)
    rolled = TailRow(tail_id("rolled", 0), whole.last_page, 4, page_id("a", 0), whole.position + 1)
    home.unlimited.add(rolled, b"tail", [], branch)
    home.unlimited.gc()
    assert home.unlimited.usage().pages == 6
    home.unlimited.forget_damaged("tails", whole.id)
    assert home.unlimited.gc().num_pages == 3
    left = {page_id("a", number) for number in (0, 4, 5)}
    assert home.unlimited.missing_pages([page_id("a", number) for number in range(6)]).isdisjoint(left)
    assert home.unlimited.find([rolled.id]) is not None


@pytest.mark.parametrize("rolled_first", [True, False])
def test_a_page_counts_once_and_pages_below_a_rolled_tail_are_not_missed(rolled_first: bool) -> None:
    ids = [page_id("a", number) for number in range(6)]
    parents = [None, *ids]
    pages = {id_: PageRow(id_, parents[number], number, 10, b"") for number, id_ in enumerate(ids)}
    whole, rolled = TailRow(b"w", ids[5], 0, b"", 1536), TailRow(b"r", ids[5], 4, ids[0], 1536)
    reached = Reached(pages)
    sizes = [reached.add(tail) for tail in ((rolled, whole) if rolled_first else (whole, rolled))]
    assert sizes == ([30, 30] if rolled_first else [60, 0]) and all(id_ in reached for id_ in ids)


def test_a_wrong_length_in_a_row_pushes_nothing_out(tmp_path: Path) -> None:
    home = Home(tmp_path)
    branch = home.branch("work", 100)
    sound, damaged = home.tail("sound", 1, branch, 1), home.tail("damaged", 2, branch, 2)
    home.database.rows("UPDATE tails SET bytes = ? WHERE id = ?", (2**62, damaged.id))
    home.database.rows("UPDATE pages SET bytes = ? WHERE id = ?", (2**62, page_id("damaged", 1)))
    assert home.kept(SIZE / 0.95 + 1) == [sound.id]


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_whole_and_as_much_as_fits(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    home = Home(tmp_path)
    branches = [home.branch(f"s{number}", rng.random()) for number in range(3)]
    for _ in range(12):
        home.tail(rng.choice("abc"), rng.randrange(1, 5), rng.choice([*branches, 777, None]), rng.random())
    total = home.unlimited.usage().bytes
    for share in (0.8, 0.5, 0.2):
        kept = home.kept(total * share)
        assert home.unlimited.usage().bytes <= total * share * 0.95
        for id_ in kept:
            loaded = load(home.unlimited, [id_])
            assert loaded is not None and is_as_saved(*loaded)
    assert home.unlimited.verify().damaged == [] and home.unlimited.notes == []
