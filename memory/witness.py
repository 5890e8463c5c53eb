"""How far a session's log has come, kept outside the database: whether all that was acknowledged is still in it.

After a crash SQLite ends its write-ahead log before the first damaged frame: it cannot tell a commit that never ended from
one that did and was damaged later. So each commit is followed by a line in the session's lock file, which is not synced:
after a power cut it may be behind the database, which says nothing, but never ahead of it. A line that is damaged itself
says nothing either, and neither does one of another database or of another session that had the same number: a database
that is put back from a backup gives its numbers again.
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
    """A branch, and the last event and token of its log; and whose: the id of the database, the name of the session and
    when it was made, all empty in a line of an older build."""

    branch_id: int
    seq: int
    position: int
    database: str = ""
    name: str = ""
    created_at: float = 0.0

    def is_of(self, database: str, name: str, created_at: float) -> bool:
        """Whether it says something about this session."""
        return not self.database or (self.database, self.name, self.created_at) == (database, name, created_at)


def write(lock_fd: int, high_water: HighWater | None) -> None:
    """Put down how far the log has come, or only who holds the lock."""
    line = str(os.getpid())
    if high_water:
        line += f" {high_water.branch_id} {high_water.seq} {high_water.position}"
        if high_water.database:
            line += f" {high_water.database} {quote(high_water.name)} {high_water.created_at!r}"
        line += f" {_checksum(line)}"
    with suppress(OSError):  # what it follows is durable; without it a later loss may go unseen
        os.pwrite(lock_fd, line.ljust(LINE_BYTES - 1).encode() + b"\n", 0)


def read(lock_fd: int) -> tuple[str, HighWater | None]:
    """The process that held the lock last, and how far it came; None where that is not known."""
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
