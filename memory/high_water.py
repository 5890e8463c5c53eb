"""The high water of a session's log, kept in its lock file: a log that ends before it has lost acknowledged rows.

After a crash SQLite ends its write-ahead log before the first damaged frame: it cannot tell an incomplete commit from a
complete one that was damaged later. So each commit is followed by a line in the session's lock file. The line is not
synced: after a power cut it may be behind the database, but never ahead of it. A damaged line counts as none, and so
does one of another database or of another session with the same id: a database restored from a backup assigns ids
again.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, unquote

LINE_BYTES = 512  # always written whole, so that one write replaces the last
NUM_WORDS = 8
NUM_OLD_WORDS = 5  # of lines without database and session


@dataclass(frozen=True)
class HighWater:
    """A branch and the last event and token of its log; and the id of the database, the session's name and its time of
    creation, which are empty in a line of an older build."""

    branch_id: int
    seq: int
    position: int
    database: str = ""
    name: str = ""
    created_at: float = 0.0

    def is_of(self, database: str, name: str, created_at: float) -> bool:
        """Whether it is of this session, or of an older build."""
        return not self.database or (self.database, self.name, self.created_at) == (database, name, created_at)


def write(lock_fd: int, high_water: HighWater | None) -> None:
    """Write the pid of this process and the high water, if there is one."""
    line = str(os.getpid())
    if high_water:
        line += f" {high_water.branch_id} {high_water.seq} {high_water.position}"
        if high_water.database:
            line += f" {high_water.database} {quote(high_water.name)} {high_water.created_at!r}"
        line += f" {_checksum(line)}"
    with suppress(OSError):  # the commit is durable; without the line a later loss may go unnoticed
        os.pwrite(lock_fd, line.ljust(LINE_BYTES - 1).encode() + b"\n", 0)


def read(lock_fd: int) -> tuple[str, HighWater | None]:
    """The pid of the last holder of the lock, and the high water; None if it is not known."""
    words = os.pread(lock_fd, LINE_BYTES, 0).decode("ascii", "replace").split()
    holder = words[0] if words else "unknown"
    if len(words) not in (NUM_WORDS, NUM_OLD_WORDS) or words[-1] != _checksum(" ".join(words[:-1])):
        return holder, None
    branch_id, seq, position = map(int, words[1:4])
    if len(words) == NUM_OLD_WORDS:
        return holder, HighWater(branch_id, seq, position)
    return holder, HighWater(branch_id, seq, position, words[4], unquote(words[5]), float(words[6]))


def _checksum(line: str) -> str:
    return hashlib.blake2b(line.encode(), digest_size=8).hexdigest()
