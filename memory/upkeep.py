"""Changes to the lists of pages and tails that keep them right: what goes together, and the files that go after their rows.

Owns the order in which rows and files go. Must not know which snapshots are worth keeping.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice

from .blobs import KINDS, PAGES, TAILS, BlobStore, DamagedBlob
from .db import Database
from .retention import Reached, sound_pages, sound_tails
from .schema import create_snapshot_tables
from .snapshot_rows import (
    PAGE_COLUMNS,
    TAIL_COLUMNS,
    Freed,
    PageRow,
    StoredTail,
    checked_page,
    checked_tail,
    insert_pages,
    insert_tail,
    read_by_id,
    read_pages_of,
)

NAMES_PER_TRANSACTION = 1000  # files looked at while other processes wait to write


def keep_only(
    database: Database, tails: list[StoredTail], pages: Mapping[bytes, PageRow]
) -> tuple[list[tuple[str, bytes]], Freed]:
    """Delete the rows of all other tails and of the pages these do not need, in the caller's transaction; returns
    whose files are to be removed after it."""
    reached, kept_ids = Reached(pages, tails), {tail.id for tail in tails}
    columns = "SELECT id, COALESCE(CAST(bytes AS INTEGER), 0) FROM"  # one that is damaged may be of any type
    gone_tails = [row for row in database.rows(f"{columns} tails") if row[0] not in kept_ids]
    gone_pages = [row for row in database.rows(f"{columns} pages") if row[0] not in reached]
    for table, rows in ((TAILS, gone_tails), (PAGES, gone_pages)):
        for row in rows:
            database.rows(f"DELETE FROM {table} WHERE id = ?", (row[0],))
    files = [(TAILS, row[0]) for row in gone_tails] + [(PAGES, row[0]) for row in gone_pages]
    return files, Freed(len(gone_tails), len(gone_pages), sum(row[1] for row in [*gone_tails, *gone_pages]))


def tails_on(database: Database, page_id: bytes) -> list[bytes]:
    """Tails that need a page; where its row is damaged and its number not known, all tails of chains through it."""
    page = next(map(checked_page, read_by_id(database, PAGE_COLUMNS, "pages", [page_id])), None)
    above = database.rows(
        "WITH RECURSIVE above (id) AS (VALUES (?1) UNION SELECT p.id FROM above a JOIN pages p ON p.parent = a.id)"
        " SELECT t.id FROM above a JOIN tails t ON t.last_page = a.id WHERE t.first_number <= COALESCE(?2, t.first_number)",
        (page_id, page.number if page else None),
    )
    heads = database.rows(f"SELECT {TAIL_COLUMNS} FROM tails WHERE length(head) > 0")
    in_head = [tail.id for tail in map(checked_tail, heads) if tail and page_id in tail.row.head_ids]
    return [*(row[0] for row in above if isinstance(row[0], bytes)), *in_head]


def rebuild(database: Database) -> None:
    """Make the tables anew from their sound rows: in a damaged tree a row may be where no query for it looks."""
    with database.transaction() as connection:
        pages = sound_pages(database)
        tails = {tail.id: (tail, used_at) for tail, used_at in sound_tails(database)}
        uses = connection.execute("SELECT tail_id, branch_id FROM tail_uses").fetchall()
        for table in ("tail_uses", "tails", "pages"):
            connection.execute(f"DROP TABLE {table}")
        create_snapshot_tables(connection)
        insert_pages(connection, pages.values())
        for tail, used_at in tails.values():
            with suppress(DamagedBlob):
                read_pages_of(database, tail.row)
                insert_tail(connection, tail, used_at)
        connection.executemany(
            "INSERT OR IGNORE INTO tail_uses SELECT id, ? FROM tails WHERE id = ?",
            [(branch_id, tail_id) for tail_id, branch_id in uses if isinstance(branch_id, int)],
        )


def remove_files(database: Database, blobs: BlobStore, files: list[tuple[str, bytes]]) -> None:
    """Remove the files of rows that are gone."""
    for kind in KINDS:
        remove_unnamed(
            database, blobs, kind, [id_ for of_kind, id_ in files if of_kind == kind and isinstance(id_, bytes)]
        )


def remove_unnamed(database: Database, blobs: BlobStore, kind: str, ids: Iterable[bytes]) -> int:
    """Remove those of these files that no row names; how many that were. In transactions: nobody else can be
    between giving such a file its name and inserting its row."""
    remaining, num_removed = iter(list(ids)), 0
    while some := set(islice(remaining, NAMES_PER_TRANSACTION)):
        if not some.difference(row[0] for row in read_by_id(database, "id", kind, some)):
            continue
        with database.transaction():
            unnamed = some.difference(row[0] for row in read_by_id(database, "id", kind, some))
            for id_ in unnamed:
                blobs.remove(kind, id_)
        num_removed += len(unnamed)
    return num_removed
