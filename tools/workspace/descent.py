"""Directories below a root, opened one component at a time, so that no link is followed, and held while they are likely to be used again.

Must not know which files are wanted.
"""

import os
import stat
from collections.abc import Callable
from itertools import takewhile

from holdfast.tools.workspace.directories import PASSING

MAX_OPEN_DIRS = 32


class Descent:
    """The directories from a root down to the one asked for last. `root_fd` stays the caller's; `check` sees whatever else is opened, and
    raises OSError for what is not to be read. Paths are names as the file system has them."""

    def __init__(self, root_fd: int, check: Callable[[int], None]) -> None:
        self._root_fd, self._check = root_fd, check
        self._steps: list[
            tuple[str, int | None]
        ] = []  # name and descriptor; None: closed again, MAX_OPEN_DIRS above the last

    def dir(self, path: str) -> int:
        """A descriptor of a directory (`""` for the root), open until another is asked for; `listing` makes it one to list. Raises OSError."""
        parts = path.split("/") if path else []
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1][0], zip(parts, self._steps, strict=False)))
        self._leave(common)
        num_known = next((n for n in range(common, 0, -1) if self._steps[n - 1][1] is not None), 0)
        fd = self._steps[num_known - 1][1] if num_known else self._root_fd
        for depth in range(num_known, len(parts)):
            fd = self._open(parts[depth], PASSING, fd)
            self._steps[depth : depth + 1] = [(parts[depth], fd)]
            self._close_step(depth - MAX_OPEN_DIRS)
        assert fd is not None, path
        return fd

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """The first bytes of a regular file, or None when there is none. Raises PermissionError."""
        folder, _, name = path.rpartition("/")
        try:
            fd = self._open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, self.dir(folder))
        except PermissionError:
            raise
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            return os.read(fd, min(status.st_size, max_bytes)) if stat.S_ISREG(status.st_mode) else None
        finally:
            os.close(fd)

    def close(self) -> None:
        self._leave(0)

    def _open(self, name: str, flags: int, dir_fd: int | None) -> int:
        fd = os.open(name, flags, dir_fd=dir_fd)
        try:
            self._check(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _leave(self, depth: int) -> None:
        for step in range(depth, len(self._steps)):
            self._close_step(step)
        del self._steps[depth:]

    def _close_step(self, depth: int) -> None:
        if depth >= 0 and (fd := self._steps[depth][1]) is not None:
            self._steps[depth] = (self._steps[depth][0], None)
            os.close(fd)
