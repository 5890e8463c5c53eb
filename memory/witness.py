"""How far a session's log has come, kept outside the database: whether all that was acknowledged is still in it.

After a crash SQLite ends its write-ahead log before the first damaged frame: it cannot tell a commit that never ended from
one that did and was damaged later. So each commit is followed by a line in the session's lock file, which is not synced:
after a power cut it may be behind the database, which says nothing, but never ahead of it. A line that is damaged itself
says nothing either.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass

LINE_BYTES = 128  # always written whole, so that one write replaces the last


@dataclass(frozen=True)
class Witness:
    """A branch, and the last event and token of its log."""

    branch_id: int
    seq: int
    position: int


def write(lock_fd: int, witness: Witness | None) -> None:
    """Put down how far the log has come, or only who holds the lock."""
    line = str(os.getpid())
    if witness:
        line += f" {witness.branch_id} {witness.seq} {witness.position}"
        line += f" {_checksum(line)}"
    with suppress(OSError):  # what it follows is durable; without it a later loss may go unseen
        os.pwrite(lock_fd, line.ljust(LINE_BYTES - 1).encode() + b"\n", 0)


def read(lock_fd: int) -> tuple[str, Witness | None]:
    """The process that held the lock last, and how far it came; None where that is not known."""
    words = os.pread(lock_fd, LINE_BYTES, 0).decode("ascii", "replace").split()
    holder = words[0] if words else "unknown"
    if len(words) != 5 or words[4] != _checksum(" ".join(words[:4])):
        return holder, None
    return holder, Witness(*map(int, words[1:4]))


def _checksum(line: str) -> str:
    return hashlib.blake2b(line.encode(), digest_size=8).hexdigest()
