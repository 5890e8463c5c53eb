"""Directories as descriptors: opened one component at a time, never through a link, and told apart by device and inode.

Owns how a directory is reached, and where a path with links and `..` really leads. Must not know what lies in a directory.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_LINKS = 40  # as Linux counts them for one path
_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_PATH needs no read permission, and a descriptor made with it can do no more than lead on.
PASSING = _FLAGS | getattr(os, "O_PATH", os.O_RDONLY)

Identity = tuple[int, int]


def identity(fd: int) -> Identity:
    """Device and inode: what a directory is, whatever its name."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_real(path: Path, check: Callable[[int], None]) -> int:
    """A descriptor of the directory at an absolute path without links; see `descend`."""
    root_fd = os.open("/", PASSING)
    try:
        return descend(root_fd, path.parts[1:], check)
    finally:
        os.close(root_fd)


def descend(start_fd: int, parts: Iterable[str], check: Callable[[int], None]) -> int:
    """A descriptor of the directory that `parts` lead to from `start_fd`; the caller closes it. `check` sees each on the way.

    Raises OSError, also (ENOTDIR) where a part is a link.
    """
    fd = os.dup(start_fd)
    try:
        for part in parts:
            child_fd = os.open(part, PASSING, dir_fd=fd)
            os.close(fd)
            fd = child_fd
            check(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def listing(fd: int) -> Iterator[int]:
    """A second descriptor of the directory, one that can be listed and synced. Raises OSError where it may not be read."""
    listing_fd = os.open(".", _FLAGS | os.O_RDONLY, dir_fd=fd)
    try:
        yield listing_fd
    finally:
        os.close(listing_fd)


class RealPlace:
    """A walk from a root along paths, through links and `..`, also out of the root and back in.

    Names that lead to no directory, the last one of a file's path among them, are taken as they are written.
    """

    def __init__(self, root_fd: int) -> None:
        self._root, self._fd = identity(root_fd), os.dup(root_fd)
        self._below: list[str] | None = []  # directories from the root; None: outside
        self._names: list[str] = []  # after them

    @property
    def parts(self) -> list[str] | None:
        """Where it is, from the root; None when that is outside."""
        return None if self._below is None else self._below + self._names

    def follow(self, path: str) -> None:
        """Go where `path` leads. Raises RecursionError when that takes more than `MAX_LINKS` links."""
        waiting, num_links = _split(path), 0
        while waiting:
            part = waiting.pop()
            if part == "/":
                self._names.clear()
                self._enter(os.open("/", PASSING), None)
            elif part == "..":
                self._up()
            elif self._names:
                self._names.append(part)
            elif (target := self._link(part)) is None:
                self._down(part)
            elif num_links == MAX_LINKS:
                raise RecursionError(path)
            else:
                num_links += 1
                waiting += _split(target)

    def close(self) -> None:
        os.close(self._fd)

    def _up(self) -> None:
        if self._names:
            self._names.pop()
        else:
            self._enter(os.open("..", PASSING, dir_fd=self._fd), self._below[:-1] if self._below else None)

    def _down(self, part: str) -> None:
        try:
            fd = os.open(part, PASSING, dir_fd=self._fd)
        except OSError:
            self._names.append(part)
        else:
            self._enter(fd, None if self._below is None else [*self._below, part])

    def _enter(self, fd: int, below: list[str] | None) -> None:
        os.close(self._fd)
        self._fd, self._below = fd, [] if identity(fd) == self._root else below

    def _link(self, part: str) -> str | None:
        try:
            return os.readlink(part, dir_fd=self._fd)
        except OSError:
            return None


def _split(path: str) -> list[str]:
    """Components of a path, the first one last; that of an absolute path is `/`."""
    parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    return [*parts, "/"] if path.startswith("/") else parts
