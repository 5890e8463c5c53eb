"""The rows of pages and tails: their values and checksums, and reading the chain from a tail to its pages.

Owns what counts as damage of a chain. Must not know of files, nor which rows are worth keeping.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from holdfast.memory.blobs import PAGES, DamagedBlob
from holdfast.memory.db import Database
from holdfast.memory.row_format import row_checksum

ID_BYTES = 16
IDS_PER_QUERY = 1000  # of SQLite's limit of 32,766 values
PAGE_COLUMNS = "id, parent, number, bytes, checksum, row_checksum"
TAIL_COLUMNS = "id, last_page, first_number, head, position, bytes, checksum, created_at, row_checksum"


@dataclass(frozen=True)
class PageRow:
    """A stored page. `number` is one more than its parent's."""

    id: bytes
    parent: bytes | None
    number: int
    num_bytes: int
    checksum: bytes

    def values(self) -> tuple[Any, ...]:
        """The row, its checksum included."""
        values = (self.id, self.parent, self.number, self.num_bytes, self.checksum)
        return (*values, row_checksum("pages", *values))


@dataclass(frozen=True)
class TailRow:
    """A tail and the pages before it: those of `head` (concatenated ids), then the chain that ends in `last_page`, from
    page `first_number` on. `position` is the number of tokens in all."""

    id: bytes
    last_page: bytes | None
    first_number: int
    head: bytes
    position: int

    @property
    def head_ids(self) -> list[bytes]:
        return [self.head[start : start + ID_BYTES] for start in range(0, len(self.head), ID_BYTES)]


@dataclass(frozen=True)
class StoredTail:
    """A tail as stored: its row, the size and checksum of its file, and its pages in order."""

    row: TailRow
    num_bytes: int
    checksum: bytes
    created_at: float
    pages: tuple[PageRow, ...] = ()

    @property
    def id(self) -> bytes:
        return self.row.id

    @property
    def position(self) -> int:
        return self.row.position

    @property
    def page_ids(self) -> list[bytes]:
        return [page.id for page in self.pages]

    def values(self) -> tuple[Any, ...]:
        """The row of the tail, its checksum included."""
        row = self.row
        values = (row.id, row.last_page, row.first_number, row.head, row.position, self.num_bytes, self.checksum)
        return (*values, self.created_at, row_checksum("tails", *values, self.created_at))


@dataclass(frozen=True)
class PageData:
    """A page to be stored. `number` is one more than its parent's."""

    id: bytes
    parent: bytes | None
    number: int
    data: bytes | memoryview


@dataclass(frozen=True)
class Saved:
    """What a save wrote."""

    bytes_written: int
    num_pages: int


@dataclass(frozen=True)
class Freed:
    """What was removed: tails and pages with their bytes, and files that an interrupted save had left."""

    num_tails: int
    num_pages: int
    num_bytes: int
    num_leftovers: int = 0


@dataclass(frozen=True)
class Report:
    """Result of a check of all stored state; `damaged` has one line for each page or tail."""

    num_pages: int
    num_tails: int
    num_bytes: int
    damaged: list[str]


@dataclass(frozen=True)
class DiskUse:
    """The number of stored pages and tails, their bytes, and the budget in bytes."""

    pages: int
    tails: int
    bytes: int
    budget: int


def checked_page(row: Sequence[Any]) -> PageRow | None:
    """A row of PAGE_COLUMNS; None when it is damaged."""
    *values, checksum = row
    return PageRow(*values) if checksum == row_checksum("pages", *values) else None


def checked_tail(row: Sequence[Any]) -> StoredTail | None:
    """A row of TAIL_COLUMNS, its pages left out; None when it is damaged."""
    *values, checksum = row
    return StoredTail(TailRow(*values[:5]), *values[5:]) if checksum == row_checksum("tails", *values) else None


def insert_pages(connection: sqlite3.Connection, pages: Iterable[PageRow]) -> None:
    connection.executemany("INSERT INTO pages VALUES (?, ?, ?, ?, ?, ?)", (page.values() for page in pages))


def insert_tail(connection: sqlite3.Connection, tail: StoredTail, used_at: float) -> None:
    connection.execute("INSERT INTO tails VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*tail.values(), used_at))


def insert_use(connection: sqlite3.Connection, tail_id: bytes, branch_id: int) -> None:
    """Note that a branch can go on from a tail, if the tail is stored."""
    connection.execute("INSERT OR IGNORE INTO tail_uses SELECT id, ? FROM tails WHERE id = ?", (branch_id, tail_id))


def drop_uses(connection: sqlite3.Connection, branch_ids: Iterable[int]) -> list[bytes]:
    """Note that branches go on from no tail any more; returns the tails that they have used."""
    tails: list[bytes] = []
    for branch_id in branch_ids:
        dropped = "DELETE FROM tail_uses WHERE branch_id = ? RETURNING tail_id"
        tails += [row[0] for row in connection.execute(dropped, (branch_id,))]
    return tails


def read_by_id(database: Database, columns: str, table: str, ids: Iterable[bytes]) -> Iterator[Sequence[Any]]:
    """The rows with these ids, in any order."""
    remaining = iter(ids)
    while some := list(islice(remaining, IDS_PER_QUERY)):
        marks = ", ".join("?" * len(some))
        yield from database.rows(f"SELECT {columns} FROM {table} WHERE id IN ({marks})", some)


def tails_used_by(database: Database, session_id: int, ids: Iterable[bytes]) -> Iterator[bytes]:
    """Those of these tails that a branch of the session uses. Reads no other tail of the session."""
    remaining = iter(ids)
    while some := list(islice(remaining, IDS_PER_QUERY)):
        rows = database.rows(
            f"SELECT id FROM tails WHERE id IN ({', '.join('?' * len(some))}) AND EXISTS (SELECT 1 FROM tail_uses"
            " CROSS JOIN branches ON branches.id = branch_id WHERE tail_id = tails.id AND session_id = ?)",
            (*some, session_id),
        )
        yield from (row[0] for row in rows)


def read_pages_of(database: Database, tail: TailRow) -> tuple[PageRow, ...]:
    """The pages of a tail in order. Raises DamagedBlob for the first that has no row or a damaged one."""
    found = {row[0]: row for row in read_by_id(database, PAGE_COLUMNS, "pages", tail.head_ids)}
    head = [_sound(found.get(id_), id_) for id_ in tail.head_ids]
    if tail.last_page is None:
        return tuple(head)
    # numbers fall by one from page to page, so a damaged parent cannot lead in a circle
    rows = database.rows(
        "WITH RECURSIVE chain (id, parent, number, bytes, checksum, row_checksum) AS ("
        f" SELECT {PAGE_COLUMNS} FROM pages WHERE id = ?1"
        " UNION ALL SELECT p.id, p.parent, p.number, p.bytes, p.checksum, p.row_checksum"
        " FROM chain c JOIN pages p ON p.id = c.parent WHERE c.number > ?2 AND p.number = c.number - 1)"
        " SELECT * FROM chain",
        (tail.last_page, tail.first_number),
    )
    chain: list[PageRow] = []
    expected: bytes | None = tail.last_page
    for row in [*rows, None]:
        if chain and chain[-1].number <= tail.first_number:
            break
        if expected is None:  # the chain ends before page `first_number`
            raise DamagedBlob(PAGES, tail.last_page, f"its chain begins at page {chain[-1].number}")
        page = _sound(row, expected)
        chain.append(page)
        expected = page.parent
    return (*head, *reversed(chain))


def _sound(row: Sequence[Any] | None, id: bytes) -> PageRow:
    page = checked_page(row) if row is not None else None
    if page is None or page.id != id:
        raise DamagedBlob(PAGES, id, "it is not in the list of pages" if row is None else "its row is damaged")
    return page
