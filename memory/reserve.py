"""Disk space kept in reserve: deleting a session needs some before it frees more, and the disk may be full.

Owns the file `reserve` of a data directory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RESERVE_BYTES = 4 * 2**20
NAME = "reserve"


def keep_reserve(home: Path) -> None:
    """Create the reserve, if the disk has plenty of space."""
    path = home / NAME
    with suppress(OSError):
        if path.exists() or not _has_plenty(home):
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)


@contextmanager
def making_room(home: Path) -> Iterator[None]:
    """For a block that deletes something: frees the reserve if the disk is nearly full, and creates it again
    afterwards."""
    with suppress(OSError):
        if not _has_plenty(home):
            (home / NAME).unlink(missing_ok=True)
    try:
        yield
    finally:
        keep_reserve(home)


def _has_plenty(home: Path) -> bool:
    status = os.statvfs(home)
    return status.f_bavail * status.f_frsize > 4 * RESERVE_BYTES
