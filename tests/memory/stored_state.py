"""Made-up pages and tails for the tests of the snapshot store, and what a loader does with them."""

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.memory import BlobStore, DamagedBlob, Database, PageData, SnapshotStore, StoredTail, TailRow
from holdfast.memory.snapshot_rows import drop_uses

PAGE_BYTES = 3000
TAIL_BYTES = 5000


@dataclass(frozen=True)
class File:
    """A state of a path, as tools give it to the log."""

    path: str
    kind: str = "absent"
    mode: int = 0
    data: bytes = b""


def page_id(chain: str, number: int) -> bytes:
    return hashlib.blake2b(f"page {chain} {number}".encode(), digest_size=16).digest()


def tail_id(chain: str, position: int) -> bytes:
    return hashlib.blake2b(f"tail {chain} {position}".encode(), digest_size=16).digest()


def content(id: bytes, size: int) -> bytes:
    return random.Random(id).randbytes(size)


def page(chain: str, number: int) -> PageData:
    id_ = page_id(chain, number)
    return PageData(id_, page_id(chain, number - 1) if number else None, number, content(id_, PAGE_BYTES))


def tail_row(chain: str, num_pages: int, first_number: int = 0, head: bytes = b"") -> TailRow:
    last_page = page_id(chain, num_pages - 1) if num_pages else None
    position = num_pages * 256 + 3
    return TailRow(tail_id(chain, position), last_page, first_number, head, position)


def drop_uses_of(store: SnapshotStore, branch_ids: list[int]) -> None:
    """As when their sessions are removed."""
    with store._database.transaction() as connection:
        drop_uses(connection, branch_ids)


def save(store: SnapshotStore, chain: str, num_pages: int, branch_id: int = 1) -> TailRow:
    """As the engine does it: only what is missing is made, one page at a time."""
    row = tail_row(chain, num_pages)
    missing = store.missing_pages([page_id(chain, number) for number in range(num_pages)])
    pages = (page(chain, number) for number in range(num_pages) if page_id(chain, number) in missing)
    store.add(row, content(row.id, TAIL_BYTES), pages, branch_id)
    return row


def load(store: SnapshotStore, candidates: list[bytes]) -> tuple[StoredTail, list[bytes]] | None:
    """As the engine does it: what is damaged is forgotten, and the next best is taken."""
    while tail := store.find(candidates):
        try:
            return tail, [store.read_tail(tail), *store.read_pages(tail)]
        except DamagedBlob as e:
            store.forget_damaged(e.kind, e.id)
    return None


def is_as_saved(tail: StoredTail, contents: list[bytes]) -> bool:
    expected = [content(tail.id, TAIL_BYTES), *(content(id_, PAGE_BYTES) for id_ in tail.page_ids)]
    return contents == expected


def open_store(home: Path, budget_bytes: int = 2**40) -> SnapshotStore:
    database = Database(home)
    store = SnapshotStore(database, BlobStore(home), budget_bytes)
    database.close()
    return store


def files(home: Path) -> Iterator[Path]:
    return (path for path in (home / "blobs").rglob("*") if path.is_file())


def kill_at(name: str, times: int = 1) -> Callable[[str], None]:
    """For `holdfast.memory.blobs.crash_point`: end this process as SIGKILL does, the n-th time the point is reached."""
    left = [times]

    def crash_point(reached: str) -> None:
        left[0] -= reached == name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return crash_point
