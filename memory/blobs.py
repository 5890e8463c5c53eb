"""The files of pages and tails: written whole or not at all, read only when they are what was written.

Owns `blobs/pages` and `blobs/tails` of a data directory and the names in them. A file is written under a temporary
name, which contains the writer's pid, and gets its own last (`place`). Must not know what the bytes mean nor which are
needed.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.memory.db import StoreError, disk_errors_explained
from holdfast.memory.directories import make_directory, sync_directory

PAGES = "pages"
TAILS = "tails"
KINDS = (PAGES, TAILS)
CHECKSUM_BYTES = 16
SUFFIX = ".safetensors"
TEMPORARY_SUFFIX = ".tmp"
STALE_S = 600.0  # younger temporary files are left alone: the writer may run on another machine or in a container


def crash_point(name: str) -> None:
    """Called between the steps of a save. Tests replace it with a function that kills the process."""


class DamagedBlob(StoreError):
    """A page or tail is not on disk as it was written; `kind`, `id` and `why` say which one."""

    def __init__(self, kind: str, id: bytes, why: str):
        super().__init__(
            f"{kind.removesuffix('s')} {id.hex()} of the stored state is damaged ({why}):"
            " what depends on it is computed again from the token log"
        )
        self.kind, self.id, self.why = kind, id, why


class RemovedBlob(DamagedBlob):
    """A page or tail that another process removed before it was read: no damage."""

    def __init__(self, kind: str, id: bytes):
        super().__init__(kind, id, "it was removed")
        self.args = (f"{kind.removesuffix('s')} {id.hex()} of the stored state was removed meanwhile to make room",)


@dataclass(frozen=True)
class Written:
    """A file that was synced under its temporary name."""

    kind: str
    id: bytes
    path: Path
    num_bytes: int
    checksum: bytes


class BlobStore:
    """Files by kind and id. Any thread may use it."""

    def __init__(self, home: Path):
        self._directories = {kind: home / "blobs" / kind for kind in KINDS}
        for directory in (home, home / "blobs", *self._directories.values()):
            with disk_errors_explained(directory):
                make_directory(directory)

    def write(self, kind: str, id: bytes, data: bytes | memoryview) -> Written:
        """Write and sync the bytes under a temporary name. Raises StoreError if the disk fails or is full."""
        temporary = f"{id.hex()}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}"
        path = self._directories[kind] / temporary
        checksum = _checksum(data)
        try:
            with disk_errors_explained(path):
                _write_file(path, memoryview(data).cast("B"), kind)
        except BaseException:
            with suppress(OSError):  # a read-only disk: the error below says so
                path.unlink()
            raise
        return Written(kind, id, path, memoryview(data).nbytes, checksum)

    def place(self, written: Written) -> None:
        """Rename a file to its final name, replacing a file of that name."""
        path = self.path(written.kind, written.id)
        with disk_errors_explained(path):
            crash_point(f"before rename of {written.kind}")
            os.rename(written.path, path)
            crash_point(f"after rename of {written.kind}")

    def discard(self, written: Iterable[Written]) -> None:
        """Remove files that still have their temporary names."""
        for file in written:
            with suppress(OSError):  # most were renamed; `remove_stale` gets the others
                file.path.unlink()

    def sync(self, kinds: Iterable[str]) -> None:
        """Make the names in these directories durable."""
        for kind in kinds:
            with disk_errors_explained(self._directories[kind]):
                crash_point(f"before sync of {kind}")
                sync_directory(self._directories[kind])
                crash_point(f"after sync of {kind}")

    def read(self, kind: str, id: bytes, size: int, checksum: bytes) -> bytes:
        """The bytes as written. Raises DamagedBlob if they are missing or changed, StoreError if the file cannot be
        read."""
        path = self.path(kind, id)
        try:
            data = _read_file(path, size)
        except FileNotFoundError:
            raise DamagedBlob(kind, id, "its file is missing") from None
        except OSError as e:
            if e.errno == errno.EIO:
                raise DamagedBlob(kind, id, "its file cannot be read") from e
            raise StoreError(
                f"{path} cannot be read ({e.strerror}): check its permissions and the open file limit"
            ) from e
        if len(data) != size:
            raise DamagedBlob(kind, id, f"its file is too {'short' if len(data) < size else 'long'}")
        if _checksum(data) != checksum:
            raise DamagedBlob(kind, id, "its checksum is wrong")
        return data

    def announce(self, kind: str, ids: Iterable[bytes]) -> None:
        """Ask the system to read these files ahead (posix_fadvise). Errors are left to `read`."""
        if not hasattr(os, "posix_fadvise"):
            return
        for id in ids:
            with suppress(OSError):
                descriptor = os.open(self.path(kind, id), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def remove(self, kind: str, id: bytes) -> None:
        """Remove a file, if it is there."""
        with disk_errors_explained(self.path(kind, id)):
            self.path(kind, id).unlink(missing_ok=True)

    def ids(self, kind: str) -> Iterator[bytes]:
        """Ids of the files with a final name."""
        for name, _ in self._entries(kind):
            stem = name.removesuffix(SUFFIX)
            if name.endswith(SUFFIX) and re.fullmatch(r"(?:[0-9a-f]{2})+", stem):
                yield bytes.fromhex(stem)

    def remove_stale(self) -> int:
        """Remove temporary files of processes that have ended; returns how many."""
        num_removed = 0
        for kind in KINDS:
            for name, status in self._entries(kind):
                if name.endswith(TEMPORARY_SUFFIX) and time.time() - status.st_mtime > STALE_S and not _is_alive(name):
                    (self._directories[kind] / name).unlink(missing_ok=True)
                    num_removed += 1
        return num_removed

    def path(self, kind: str, id: bytes) -> Path:
        return self._directories[kind] / f"{id.hex()}{SUFFIX}"

    def _entries(self, kind: str) -> Iterator[tuple[str, os.stat_result]]:
        """Name and status of every file of a kind."""
        with disk_errors_explained(self._directories[kind]), os.scandir(self._directories[kind]) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed by another process meanwhile
                    continue
                yield entry.name, status


def _write_file(path: Path, data: memoryview, kind: str) -> None:
    crash_point(f"before write of {kind}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        crash_point(f"before fsync of {kind}")
        os.fsync(descriptor)
        crash_point(f"after fsync of {kind}")
    finally:
        os.close(descriptor)


def _read_file(path: Path, size: int) -> bytes:
    """The file, or one byte more than `size` of a longer one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, missing = [], size + 1
        while missing and (part := os.read(descriptor, missing)):  # one read may give less than is there
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()


def _is_alive(name: str) -> bool:
    """Whether the process that a temporary file is named after still runs."""
    match = re.fullmatch(rf"[0-9a-f]+\.([0-9]+)-[0-9]+{re.escape(TEMPORARY_SUFFIX)}", name)
    if match is None:
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
