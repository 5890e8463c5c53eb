"""The lock files of sessions: which process has a session open, and the high water of its log (see `high_water`).

Owns `locks/` of a data directory. Must not know the sessions' rows, nor what a missing row means.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from holdfast.memory.db import StoreError, disk_errors_explained
from holdfast.memory.high_water import HighWater
from holdfast.memory.high_water import read as read_high_water
from holdfast.memory.high_water import write as write_high_water


class SessionInUse(StoreError):
    """Another process, or another part of this one, has the session open."""


class Leases:
    """Lock files by session id. The system frees a lock when its process ends, however it ends."""

    def __init__(self, home: Path):
        self._directory = home / "locks"

    def take(self, session_id: int, name: str) -> int:
        """Descriptor that holds the lock; `name` is for messages. Raises SessionInUse with the process that has it."""
        path = self.path(session_id)
        with disk_errors_explained(path):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            lock_fd = self._lock(path)
        if lock_fd is None:
            holder = self._holder(path)
            raise SessionInUse(
                f"session {name} is open in another process (pid {holder}):"
                f" use that one, or start a fresh session with --new"
            )
        write_high_water(lock_fd, read_high_water(lock_fd)[1])
        return lock_fd

    def forget(self, session_id: int, lock_fd: int) -> None:
        """Clear the high water of a session that is about to be removed, and close its lock.

        Synced, because a power cut may keep any part of what was not: the session must not be reported as lost.
        """
        try:
            write_high_water(lock_fd, None)
            with suppress(OSError):  # a failing disk: `verify --repair` can clear it later
                os.fsync(lock_fd)
        finally:
            os.close(lock_fd)

    def high_water(self, session_id: int) -> HighWater | None:
        """The high water in a session's lock file; None if there is none."""
        try:
            lock_fd = os.open(self.path(session_id), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return read_high_water(lock_fd)[1]
        finally:
            os.close(lock_fd)

    def ids(self) -> set[int]:
        """Ids of the sessions that were ever open."""
        numbers = (path.name.removeprefix("session-") for path in self._directory.glob("session-*"))
        return {int(number) for number in numbers if number.isdecimal()}

    def path(self, session_id: int) -> Path:
        return self._directory / f"session-{session_id}"

    def _lock(self, path: Path) -> int | None:
        lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            return None
        return lock_fd

    def _holder(self, path: Path) -> str:
        lock_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_high_water(lock_fd)[0]
        finally:
            os.close(lock_fd)
