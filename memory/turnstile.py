"""The write lock of a database's file: a lock file of all processes, with the pid of the holder.

SQLite's own lock does not name its holder, and before 3.51.3 a checkpoint that runs while a writer resets the log can
lose commits. So every write and every checkpoint takes this lock first.
"""

import fcntl
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

NAME = "writer"
PAUSES_S = (0.0005, 0.001, 0.002, 0.005, 0.01)  # between two tries; the last for all that follow
LINE_BYTES = 16


class Turnstile:
    """The lock of one connection. A forked process must open another one."""

    def __init__(self, home: Path):
        """Raises OSError when the file cannot be made."""
        self._fd = os.open(home / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._closing = weakref.finalize(self, os.close, self._fd)  # SQLite's connection ends with its owner too

    def enter(self, timeout_s: float) -> bool:
        """Take the lock; False after `timeout_s`."""
        give_up_at, tries = time.monotonic() + timeout_s, 0
        while not self._try():
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
            tries += 1
        return True

    def leave(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def holder(self) -> str:
        """The process that has the lock, or had it last, in words."""
        pid = os.pread(self._fd, LINE_BYTES, 0).decode("ascii", "replace").strip()
        if not pid.isdecimal():
            return "another process"
        return f"process {pid}{' (stopped: continue or end it)' if _is_stopped(pid) else ''}"

    def close(self) -> None:
        self._closing()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with suppress(OSError):  # a full disk: only the name is missing then
            os.pwrite(self._fd, str(os.getpid()).ljust(LINE_BYTES - 1).encode() + b"\n", 0)
        return True


def _is_stopped(pid: str) -> bool:
    """Whether a process is suspended; only where the system has /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        return False
    return status.rpartition(")")[2].split()[:1] in (["T"], ["t"])
