"""Files that are put back if they changed: what a sandbox cannot lock, or must let a command make.

Owns how they are read and put back. Works when no process of the command's is left, so that nothing moves meanwhile.
Imports the standard library alone, as the supervisor that it is part of.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from typing import Any

MAX_BYTES = 16 * 2**20
Kept = tuple[str, int, Any]  # kind, mode, content: bytes, a target, or a directory's entries by name


def read_kept(paths: Iterable[str]) -> dict[str, Kept | None]:
    """What lies at each path; None: nothing. Raises OSError."""
    room = [MAX_BYTES]
    return {path: _read(path, room) for path in paths}


def put_back(kept: dict[str, Kept | None]) -> list[str]:
    """Make each path what it was; those that had changed."""
    changed = []
    for path, before in kept.items():
        now: Kept | None = ("unreadable", 0, None)
        with contextlib.suppress(OSError):
            now = _read(path, [MAX_BYTES])
        if now == before and os.path.realpath(os.path.dirname(path)) == os.path.dirname(path):
            continue
        if before is None and not os.path.lexists(path):
            continue
        _real_directory(os.path.dirname(path))
        _remove(path)
        if before is not None:
            _write(path, before)
        changed.append(path)
    return changed


def _read(path: str, room: list[int]) -> Kept | None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return ("link", 0, os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return ("directory", mode, {name: _read(f"{path}/{name}", room) for name in sorted(os.listdir(path))})
    if not stat.S_ISREG(status.st_mode):
        return ("other", mode, None)
    room[0] -= status.st_size
    if room[0] < 0:
        raise OSError(f"{path}: git's hooks and configuration are larger than {MAX_BYTES >> 20} MiB")
    with open(path, "rb") as file:
        return ("file", mode, file.read())


def _real_directory(path: str) -> None:
    """Make it a directory without a link on the way: a command may have put one there that leads outside."""
    at = "/"
    for name in path.split("/")[1:]:
        at = os.path.join(at, name)
        if os.path.islink(at) or not os.path.isdir(at):
            _remove(at)
            os.mkdir(at)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _write(path: str, kept: Kept) -> None:
    kind, mode, content = kept
    if kind == "link":
        os.symlink(content, path)
    elif kind == "directory":
        os.mkdir(path)
        for name, entry in content.items():
            if entry is not None:
                _write(f"{path}/{name}", entry)
        os.chmod(path, mode)
    elif kind == "file":
        with open(path, "xb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
