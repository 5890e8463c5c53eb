"""Removing pages and tails: the rows that depend on each other together, and files after their rows.

Owns the order in which rows and files are deleted. Must not know which snapshots are worth keeping.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice

from holdfast.memory.blobs import KINDS, PAGES, TAILS, BlobStore, DamagedBlob
from holdfast.memory.db import Database
from holdfast.memory.retention import Reached, sound_pages, sound_tails
from holdfast.memory.schema import create_snapshot_tables
from holdfast.memory.snapshot_rows import (
    ID_BYTES,
    PAGE_COLUMNS,
    TAIL_COLUMNS,
    Freed,
    PageRow,
    StoredTail,
    checked_page,
    checked_tail,
    insert_pages,
    insert_tail,
    insert_use,
    read_by_id,
    read_pages_of,
)

NAMES_PER_TRANSACTION = 1000  # files checked while other processes wait to write


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


def delete_unused(database: Database, tail_ids: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Delete the rows of those of these tails that no branch uses, and of the pages that only they needed, in the
    caller's transaction; returns whose files are to be removed after it.

    A page that another page or tail goes on from stays, with all before it, and so does one in the moved head of a
    rolled session: `keep_only` looks closer, but at everything.
    """
    gone: list[tuple[str, bytes]] = []
    heads = b"".join(row[0] for row in database.rows("SELECT head FROM tails WHERE length(head) > 0"))
    in_heads = {heads[at : at + ID_BYTES] for at in range(0, len(heads), ID_BYTES)}
    for tail_id in tail_ids:
        if database.rows("SELECT 1 FROM tail_uses WHERE tail_id = ?", (tail_id,)):
            continue
        last = database.rows("DELETE FROM tails WHERE id = ? RETURNING last_page", (tail_id,))
        gone += [(TAILS, tail_id) for _ in last]
        page_id = last[0][0] if last else None
        while page_id is not None and page_id not in in_heads and not _is_needed(database, page_id):
            parent = database.rows("DELETE FROM pages WHERE id = ? RETURNING parent", (page_id,))
            gone += [(PAGES, page_id) for _ in parent]
            page_id = parent[0][0] if parent else None
    return gone


def _is_needed(database: Database, page_id: bytes) -> bool:
    needed = "SELECT 1 FROM pages WHERE parent = ?1 UNION ALL SELECT 1 FROM tails WHERE last_page = ?1 LIMIT 1"
    return bool(database.rows(needed, (page_id,)))


def tails_on(database: Database, page_id: bytes) -> list[bytes]:
    """Tails that need a page; where its row is damaged and its number not known, all tails of chains through it."""
    page = next(map(checked_page, read_by_id(database, PAGE_COLUMNS, "pages", [page_id])), None)
    above = database.rows(
        "WITH RECURSIVE above (id) AS (VALUES (?1) UNION SELECT p.id FROM above a JOIN pages p ON p.parent = a.id)"
        " SELECT t.id FROM above a JOIN tails t ON t.last_page = a.id"
        " WHERE t.first_number <= COALESCE(?2, t.first_number)",
        (page_id, page.number if page else None),
    )
    heads = database.rows(f"SELECT {TAIL_COLUMNS} FROM tails WHERE length(head) > 0")
    in_head = [tail.id for tail in map(checked_tail, heads) if tail and page_id in tail.row.head_ids]
    return [*(row[0] for row in above if isinstance(row[0], bytes)), *in_head]


def forget(database: Database, kind: str, id: bytes) -> tuple[list[bytes], int]:
    """Delete the row of a page or tail, and of every tail that needs it; which tails those are, and how many went."""
    with database.transaction() as connection:
        tails = [id] if kind == TAILS else tails_on(database, id)
        num_tails = connection.executemany("DELETE FROM tails WHERE id = ?", [(tail_id,) for tail_id in tails]).rowcount
        if kind == PAGES:
            connection.execute("DELETE FROM pages WHERE id = ?", (id,))
    return tails, max(num_tails, 0)


def rebuild(database: Database) -> None:
    """Rebuild the tables from their sound rows: in a damaged tree a row may be where no query finds it."""
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
        for tail_id, branch_id in uses:
            if isinstance(branch_id, int):
                insert_use(connection, tail_id, branch_id)


def remove_files(database: Database, blobs: BlobStore, files: list[tuple[str, bytes]]) -> None:
    """Remove the files of rows that are gone."""
    for kind in KINDS:
        remove_unnamed(
            database, blobs, kind, [id_ for of_kind, id_ in files if of_kind == kind and isinstance(id_, bytes)]
        )


def remove_unnamed(database: Database, blobs: BlobStore, kind: str, ids: Iterable[bytes]) -> int:
    """Remove those of these files that no row names; returns how many. In write transactions, so that no other process
    is between renaming a file and inserting its row."""
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
