"""Snapshots of attention state: pages and tails in files, and the rows that name them. A cache of the token log.

Owns the order of writes: a file is synced before its row is inserted, and a row is deleted before its file. Files are
renamed and removed only inside a write transaction that has read the rows, so processes that share a data directory
cannot remove each other's. Must not know what the bytes mean, nor hash tokens.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from holdfast.memory import blobs as blob_files
from holdfast.memory.blobs import KINDS, PAGES, TAILS, BlobStore, DamagedBlob, RemovedBlob, Written
from holdfast.memory.db import Database, StoreError
from holdfast.memory.disk_use import bytes_needed
from holdfast.memory.file_versions import bytes_of_contents, give_up_oldest
from holdfast.memory.retention import in_order, sound_pages, that_fit
from holdfast.memory.snapshot_rows import (
    PAGE_COLUMNS,
    TAIL_COLUMNS,
    DiskUse,
    Freed,
    PageData,
    PageRow,
    Report,
    Saved,
    StoredTail,
    TailRow,
    checked_page,
    checked_tail,
    insert_pages,
    insert_tail,
    insert_use,
    read_by_id,
    read_pages_of,
    tails_used_by,
)
from holdfast.memory.upkeep import delete_unused, forget, keep_only, rebuild, remove_files, remove_unnamed

READERS = max(1, min(8, (os.cpu_count() or 2) // 2))  # threads that read and check files
READ_TOGETHER = 32  # pages that one thread reads per task: a task costs as much as reading a small page
READ_AHEAD = 4  # tasks whose pages are in memory before they are asked for
USED_BY_SESSION = "tail_uses JOIN branches ON branches.id = tail_uses.branch_id WHERE branches.session_id = ?"
LOW_WATER = 0.95  # of the budget: eviction goes down to it, so that not every save evicts
VERSIONS_SHARE = 0.25  # of the budget: the most that file versions keep when it is exceeded


Item = TypeVar("Item")
Result = TypeVar("Result")


class SnapshotStore:
    """All snapshots of a data directory. Any thread may use it. `notes` lists the damage that was found, for the caller
    to show and clear."""

    def __init__(self, database: Database, blobs: BlobStore, budget_bytes: int = 20 * 2**30):
        """Opens a second connection to the database's file, so that saves and turns do not wait for each other."""
        self._database = database.again()
        self._blobs = blobs
        self._budget_bytes = budget_bytes
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="snapshots")
        self.notes: list[str] = []

    def close(self) -> None:
        self._readers.shutdown()
        self._database.close()

    def missing_pages(self, ids: Sequence[bytes]) -> set[bytes]:
        """Which of these pages are not stored."""
        return set(ids).difference(row[0] for row in read_by_id(self._database, "id", "pages", ids))

    def add(self, tail: TailRow, tail_data: bytes | memoryview, pages: Iterable[PageData], branch_id: int) -> Saved:
        """Store a tail and those of its pages that are not stored yet, for a branch; then keep to the budget.

        `pages` is read one at a time. All or nothing; durable on return. Raises StoreError if the disk fails or is
        full, or if a page that was already stored has been removed: the next save finds it missing.
        """
        if self.use(tail.id, branch_id):
            return Saved(0, 0)
        files: dict[bytes, tuple[Written, PageRow]] = {}
        unplaced: list[Written] = []
        try:
            for page in pages:
                if page.id not in files and self.missing_pages([page.id]):
                    file = self._blobs.write(PAGES, page.id, page.data)
                    unplaced.append(file)
                    row = PageRow(page.id, page.parent, page.number, file.num_bytes, file.checksum)
                    files[page.id] = (file, row)
            tail_file = self._blobs.write(TAILS, tail.id, tail_data)
            unplaced.append(tail_file)
            saved = self._name(tail, tail_file, files, branch_id)
        except DamagedBlob as e:  # a page that is not to be written, as it is stored already
            self._forget(e)
            raise
        finally:
            self._blobs.discard(unplaced)  # those that another process stored meanwhile; the others have their names
        self.enforce_budget([branch_id])
        return saved

    def find(self, candidates: Iterable[bytes], session_id: int | None = None) -> StoredTail | None:
        """The first of these tails that is stored with all its pages, and used by a branch of the session if one is
        given. Damaged ones are noted and removed."""
        candidates, damaged, tail = list(candidates), [], None
        if session_id is not None:
            used = set(tails_used_by(self._database, session_id, candidates))
            candidates = [id_ for id_ in candidates if id_ in used]
        with self._database.reading():  # one moment: what another process removes meanwhile is not damaged
            rows = {row[0]: row for row in read_by_id(self._database, TAIL_COLUMNS, "tails", candidates)}
            for id_ in (id_ for id_ in candidates if id_ in rows):
                try:
                    tail = self._resolve(id_, rows[id_])
                    break
                except DamagedBlob as e:
                    damaged.append((id_, e))
        for id_, damage in damaged:
            self._forget(damage)
            self.forget_damaged(TAILS, id_)
        if tail is not None:
            with self._database.transaction() as connection:
                connection.execute("UPDATE tails SET used_at = ? WHERE id = ?", (time.time(), tail.id))
        return tail

    def positions(self, most: int, session_id: int | None = None) -> list[int]:
        """The positions up to `most` at which tails are stored, of one session or of all, the highest first."""
        where, values = "tails WHERE", [most]
        if session_id is not None:
            where = f"tails WHERE id IN (SELECT tail_id FROM {USED_BY_SESSION}) AND"
            values = [session_id, most]
        rows = self._database.rows(f"SELECT DISTINCT position FROM {where} position <= ? ORDER BY 1 DESC", values)
        return [row[0] for row in rows]

    def read_pages(self, tail: StoredTail, numbers: Iterable[int] | None = None) -> Iterator[bytes]:
        """Pages of a tail (`numbers` into its pages, or all) in order, read ahead by threads.

        Raises DamagedBlob for the first that is damaged.
        """
        pages = iter(tail.pages if numbers is None else [tail.pages[number] for number in numbers])
        together = iter(lambda: list(islice(pages, READ_TOGETHER)), [])
        with self._removal_told():
            for some in self._ahead(self._read_together, together):
                yield from some

    def read_tail(self, tail: StoredTail) -> bytes:
        """The bytes of a tail. Raises DamagedBlob."""
        with self._removal_told():
            return self._blobs.read(TAILS, tail.id, tail.num_bytes, tail.checksum)

    def forget_damaged(self, kind: str, id: bytes) -> int:
        """Remove a page or tail and every tail that needs it, so that `find` returns an earlier one; returns the number
        of tails removed."""
        tails, num_tails = forget(self._database, kind, id)
        remove_unnamed(self._database, self._blobs, TAILS, tails)
        remove_unnamed(self._database, self._blobs, kind, [id])
        return num_tails

    def use(self, tail_id: bytes, branch_id: int) -> bool:
        """Record that a branch can go on from a stored tail; False if there is no such tail."""
        if not self._database.rows("SELECT 1 FROM tails WHERE id = ?", (tail_id,)):
            return False
        with self._database.transaction() as connection:
            connection.execute("UPDATE tails SET used_at = ? WHERE id = ?", (time.time(), tail_id))
            insert_use(connection, tail_id, branch_id)
            return bool(connection.execute("SELECT 1 FROM tails WHERE id = ?", (tail_id,)).fetchall())

    def inherit(self, branch_id: int, ancestors: Iterable[tuple[int, int]]) -> None:
        """Record that a new branch can go on from the newest tail of its ancestors, each up to a position."""
        with self._database.transaction() as connection:
            newest: tuple[int, bytes] | None = None
            for ancestor, most in ancestors:
                rows = connection.execute(
                    "SELECT position, id FROM tails JOIN tail_uses ON tail_id = id"
                    " WHERE branch_id = ? AND position <= ? ORDER BY position DESC LIMIT 1",
                    (ancestor, most),
                ).fetchall()
                newest = max([tuple(row) for row in rows] + ([newest] if newest else []), default=None)
            if newest is not None:
                insert_use(connection, newest[1], branch_id)

    def tails_of(self, branch_ids: Iterable[int]) -> list[tuple[int, int, float]]:
        """(position, bytes, created_at) of the tails that these branches use, by position."""
        ids = list(branch_ids)
        rows = self._database.rows(
            "SELECT DISTINCT position, bytes, created_at, id FROM tails JOIN tail_uses ON tail_id = id"
            f" WHERE branch_id IN ({', '.join('?' * len(ids))}) ORDER BY position, created_at",
            ids,
        )
        return [(position, num_bytes, created_at) for position, num_bytes, created_at, _ in rows]

    def usage(self) -> DiskUse:
        """The size of the stored state, file versions included: they share the budget."""
        with self._database.reading():
            pages, page_bytes = self._database.rows("SELECT COUNT(*), TOTAL(bytes) FROM pages")[0]
            tails, tail_bytes = self._database.rows("SELECT COUNT(*), TOTAL(bytes) FROM tails")[0]
            num_bytes = int(page_bytes + tail_bytes) + bytes_of_contents(self._database)
        return DiskUse(pages, tails, num_bytes, self._budget_bytes)

    def bytes_needed(self, session_ids: Sequence[int]) -> int:
        """Bytes that some sessions need, logs and answers included."""
        return bytes_needed(self._database, session_ids)

    def enforce_budget(self, keep_branches: Iterable[int] = ()) -> Freed:
        """If the state exceeds the budget, give up the oldest contents of file versions above their share, and remove
        tails and the pages that no other tail needs; never the newest tail of the branches to keep."""
        if self.usage().bytes <= self._budget_bytes:
            return Freed(0, 0, 0)
        with self._database.transaction() as connection:
            give_up_oldest(connection, int(VERSIONS_SHARE * self._budget_bytes))
            pages = sound_pages(self._database)
            room = LOW_WATER * self._budget_bytes - bytes_of_contents(self._database)
            kept = that_fit(in_order(self._database, keep_branches), pages, room)
            unnamed, freed = keep_only(self._database, kept, pages)
        remove_files(self._database, self._blobs, unnamed)
        return freed

    def remove_unused(self, tail_ids: Iterable[bytes]) -> None:
        """Remove those of these tails that no branch uses any more, and the pages that only they needed."""
        with self._database.transaction():
            unnamed = delete_unused(self._database, tail_ids)
        remove_files(self._database, self._blobs, unnamed)

    def gc(self) -> Freed:
        """Remove tails that no branch uses, pages that no tail needs, and files that ended processes left unnamed."""
        with self._database.transaction():
            pages = sound_pages(self._database)
            used = {row[0] for row in self._database.rows("SELECT tail_id FROM tail_uses")}
            kept = [ranked.tail for ranked in in_order(self._database, ()) if ranked.tail.id in used]
            unnamed, freed = keep_only(self._database, kept, pages)
        remove_files(self._database, self._blobs, unnamed)
        num_leftovers = sum(remove_unnamed(self._database, self._blobs, kind, self._blobs.ids(kind)) for kind in KINDS)
        return replace(freed, num_leftovers=num_leftovers + self._blobs.remove_stale())

    def verify(self, repair: bool = False) -> Report:
        """Read and check all stored state; with `repair`, remove what is damaged. A file that another process removes
        meanwhile is not damage."""
        page_rows = self._database.rows(f"SELECT {PAGE_COLUMNS} FROM pages")
        tail_rows = self._database.rows(f"SELECT {TAIL_COLUMNS} FROM tails")
        num_bytes, damaged = 0, []
        for size, fault in [*self._ahead(self._check_page, page_rows), *self._ahead(self._check_tail, tail_rows)]:
            num_bytes += size
            if fault and self._is_named(fault):
                damaged.append(fault)
        if repair and damaged:
            rebuild(self._database)
            for fault in damaged:
                self.forget_damaged(fault.kind, fault.id)
        return Report(len(page_rows), len(tail_rows), num_bytes, list(map(str, damaged)))

    def _name(
        self, tail: TailRow, tail_file: Written, files: dict[bytes, tuple[Written, PageRow]], branch_id: int
    ) -> Saved:
        """Rename files to their final names and insert their rows, except those that are stored by now."""
        placed: list[Written] = []
        with self._database.transaction() as connection:
            if connection.execute("SELECT 1 FROM tails WHERE id = ?", (tail.id,)).fetchone():
                insert_use(connection, tail.id, branch_id)
                return Saved(0, 0)
            missing = self.missing_pages(list(files))
            new = [files[page_id] for page_id in files if page_id in missing]
            try:
                for file in [*(file for file, _ in new), tail_file]:
                    placed.append(file)
                    self._blobs.place(file)
                self._blobs.sync(KINDS)
                now = time.time()
                stored = StoredTail(tail, tail_file.num_bytes, tail_file.checksum, now)
                insert_pages(connection, [row for _, row in new])
                insert_tail(connection, stored, now)
                insert_use(connection, tail.id, branch_id)
                read_pages_of(self._database, tail)
                blob_files.crash_point("before commit")
            except BaseException:
                for file in placed:
                    with suppress(StoreError):  # what stays is nameless, and removed another time
                        self._blobs.remove(file.kind, file.id)
                raise
        blob_files.crash_point("after commit")
        return Saved(sum(file.num_bytes for file in placed), len(new))

    def _resolve(self, id: bytes, row: Sequence[Any]) -> StoredTail:
        tail = checked_tail(row)
        if tail is None or tail.id != id:
            raise DamagedBlob(TAILS, id, "its row is damaged")
        return replace(tail, pages=read_pages_of(self._database, tail.row))

    def _forget(self, damage: DamagedBlob) -> None:
        self.notes.append(str(damage))
        self.forget_damaged(damage.kind, damage.id)

    @contextmanager
    def _removal_told(self) -> Iterator[None]:
        """Raises RemovedBlob instead of DamagedBlob for a page or tail whose row is gone."""
        try:
            yield
        except DamagedBlob as e:
            if self._is_named(e):
                raise
            raise RemovedBlob(e.kind, e.id) from e

    def _is_named(self, damage: DamagedBlob) -> bool:
        """Whether a page or tail still has a row. Scans the table, as the index may be what is damaged."""
        return bool(
            self._database.rows(f"SELECT 1 FROM {damage.kind} WHERE +id = ? OR typeof(id) <> 'blob'", (damage.id,))
        )

    def _read_together(self, pages: list[PageRow]) -> list[bytes]:
        self._blobs.announce(PAGES, [page.id for page in pages])
        return [self._read_page(page) for page in pages]

    def _read_page(self, page: PageRow) -> bytes:
        return self._blobs.read(PAGES, page.id, page.num_bytes, page.checksum)

    def _check_page(self, row: Sequence[Any]) -> tuple[int, DamagedBlob | None]:
        page = checked_page(row)
        if page is None:
            return 0, DamagedBlob(PAGES, _as_id(row[0]), "its row is damaged")
        try:
            return len(self._read_page(page)), None
        except DamagedBlob as e:
            return 0, e

    def _check_tail(self, row: Sequence[Any]) -> tuple[int, DamagedBlob | None]:
        try:
            tail = self._resolve(_as_id(row[0]), row)
            return len(self.read_tail(tail)), None
        except DamagedBlob as e:
            why = e.why if e.kind == TAILS else f"its page {e.id.hex()}: {e.why}"
            return 0, DamagedBlob(TAILS, _as_id(row[0]), why)

    def _ahead(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's results in order, computed by threads a few items ahead."""
        remaining = iter(items)
        waiting: deque[Future[Result]] = deque(
            self._readers.submit(function, item) for item in islice(remaining, READ_AHEAD)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(self._readers.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _as_id(value: object) -> bytes:
    """The id of a row that may be damaged."""
    return value if isinstance(value, bytes) else b""
