"""Files inside a workspace that tools leave alone: holdfast's own, and those through which a later command would run what was written.

The first are neither read nor edited. The others are not edited: git's control files, and what a login or the system runs, in a
workspace that holds a whole home directory or the whole file system. Directories are told apart by device and inode.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.workspace.directories import Identity, identity
from holdfast.tools.workspace.names import from_text

GIT_NAMES = frozenset({".git", "git~1"})
SYSTEM_PLACES = tuple(
    f"{place}/" for place in ["bin", "boot", "etc", "lib", "lib32", "lib64", "sbin", "usr", "var/spool"]
)


class Guard:
    """`own` are the directories and files of holdfast itself."""

    def __init__(self, own: Iterable[Path] = ()) -> None:
        self._own = _identities(own)

    def check(self, fd: int) -> None:
        """Raise ToolError when a file or directory that was opened is holdfast's own."""
        if identity(fd) in self._own:
            raise ToolError("the path leads to holdfast's own files; no tool reads or changes them")

    def check_edit(self, path: str, root: Path, directories: Sequence[int]) -> None:
        """Raise ToolError when what is, or would be, at `path` is not changed by tools. `directories` are those on the way to it
        that exist, the root first."""
        names = from_text(path).split("/")
        if any(_is_git_name(name) for name in (*root.parts, *names)) or any(map(_is_git_directory, directories, names)):
            raise ToolError(f"{path} belongs to git and is not edited by hand")
        if ".ssh" in (*root.parts, *names):
            raise ToolError(f"{path} decides who may log in and is not edited by tools")
        homes = _identities([Path(os.path.expanduser("~")), Path("/root"), *_children(Path("/home"))])
        system_root = _identities([Path("/")])
        for depth, fd in enumerate(directories):
            name, below = names[depth], "/".join(names[depth:])
            is_home, is_system = identity(fd) in homes, identity(fd) in system_root
            if is_home and (name.startswith(".") or name == "Library"):
                raise ToolError(
                    f"{path} is a hidden file of a home directory; to edit it, open its directory as the workspace"
                )
            if is_system and f"{below}/".startswith(SYSTEM_PLACES):
                raise ToolError(f"{path} is a file of the system; to edit it, open its directory as the workspace")


def _is_git_name(name: str) -> bool:
    """As a file system may take it that folds case, drops dots and spaces at the end, and ignores marks without a width."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return visible.rstrip(" .").casefold() in GIT_NAMES


def _is_git_directory(fd: int, coming: str) -> bool:
    """A bare repository, or what the `.git` file of a worktree or a submodule names, whatever it is called: also a directory that
    the name `coming` would make one."""

    def has(name: str) -> bool:
        return name == coming or _has(fd, name)

    return has("HEAD") and (has("commondir") or (has("objects") and has("refs")))


def _has(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _identities(paths: Iterable[Path]) -> frozenset[Identity]:
    """Of those that exist."""
    found = set()
    for path in paths:
        with suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _children(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
