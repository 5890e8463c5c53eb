"""What a git repository says about the files below one folder: its excludes, and which files it tracks.

Owns where git keeps these and in which format. Runs no git, and takes no setting that a repository could have made: a path
comes from the user's own git configuration alone. Must not know `.gitignore` files (walk).
"""

import os
import re
import stat
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from holdfast.tools.walk.ignore import Rules

MAX_RULES_BYTES = 2**20
MAX_INDEX_BYTES = 64 * 2**20
MAX_PATH_BYTES = 4096
STAT_BYTES = 40  # of an index entry: what stands before the object's name
EXTENDED, LENGTH = 0x4000, 0xFFF  # in an entry's flags
Check = Callable[[int], None]
SETTING = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*=\s*(.*)")


@dataclass(frozen=True)
class Repository:
    """`excludes` in the order in which they are asked; `index` as on disk, empty when there is none that we can read."""

    excludes: tuple[Rules, ...]
    index: bytes
    oid_bytes: int

    def tracks(self, path: bytes) -> bool:
        """Whether `path`, relative to the repository's root, is a tracked file (or submodule)."""
        at = bisect_left(self._tracked, path)
        return at < len(self._tracked) and self._tracked[at] == path

    def tracks_below(self, path: bytes) -> bool:
        """Whether a tracked file lies in the folder `path`, or it is a submodule."""
        at = bisect_left(self._tracked, path + b"/")
        return (at < len(self._tracked) and self._tracked[at].startswith(path + b"/")) or self.tracks(path)

    @cached_property
    def _tracked(self) -> list[bytes]:
        try:
            return sorted(_tracked_paths(self.index, self.oid_bytes))
        except (IndexError, ValueError):  # cut short, or of no version that we know
            return []


def open_repository(folder_fd: int, folder: Path, workspace: Path, check: Check) -> Repository | None:
    """The repository whose root is this folder, or None. `folder` is the place of `folder_fd`; `check` raises OSError for what is not to be read."""
    git_fd = _open_git_dir(folder_fd, folder, workspace, check)
    if git_fd is None:
        return None
    common_fd = None
    try:
        check(git_fd)
        if read_regular("HEAD", git_fd, 4096, check) is None:
            return None
        common = (read_regular("commondir", git_fd, 4096, check) or b".").strip()
        common_fd = os.open(common, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=git_fd)
        check(common_fd)
        own = read_regular("info/exclude", common_fd, MAX_RULES_BYTES, check) or b""
        config = _parse_config(read_regular("config", common_fd, MAX_RULES_BYTES, check) or b"")
        index = read_regular("index", git_fd, MAX_INDEX_BYTES, check) or b""
        oid_bytes = 32 if config.get("extensions.objectformat") == "sha256" else 20
        return Repository((Rules.of(own), Rules.of(_user_excludes())), index, oid_bytes)
    except OSError:
        return None
    finally:
        os.close(git_fd)
        if common_fd is not None:
            os.close(common_fd)


def read_regular(name: str | Path, dir_fd: int | None, max_bytes: int, check: Check | None = None) -> bytes | None:
    """Contents of a regular file, or None when there is none, it is a link, it is larger, or `check` raises OSError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        try:
            if check is not None:
                check(fd)
            return file.read(max_bytes)
        except OSError:
            return None


def _open_git_dir(folder_fd: int, folder: Path, workspace: Path, check: Check) -> int | None:
    """A descriptor of what `.git` is or names. One outside the workspace must name this folder in turn, as those made by git do."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(".git", flags | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError:
        link = read_regular(".git", folder_fd, 4096, check)
    if link is None or not link.startswith(b"gitdir: "):
        return None
    place = Path(os.path.realpath(folder / os.fsdecode(link.removeprefix(b"gitdir: ").strip())))
    try:
        fd = os.open(place, flags | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    if place.is_relative_to(workspace) or _names(fd, place, folder, check):
        return fd
    os.close(fd)
    return None


def _names(git_fd: int, place: Path, folder: Path, check: Check) -> bool:
    """Whether a git directory belongs to the folder: as its linked worktree, or as a submodule."""
    back = os.fsdecode((read_regular("gitdir", git_fd, 4096, check) or b"").strip())
    if back:
        return Path(os.path.realpath(back)) == folder / ".git"
    worktree = _parse_config(read_regular("config", git_fd, MAX_RULES_BYTES, check) or b"").get("core.worktree")
    return worktree is not None and Path(os.path.realpath(place / worktree)) == folder


def _user_excludes() -> bytes:
    """The file that the user's own git configuration names for all repositories, or git's default for it."""
    home = Path(os.path.expanduser("~"))
    config_dir = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git"
    named = None
    for path in (Path("/etc/gitconfig"), config_dir / "config", home / ".gitconfig"):
        config = _parse_config(read_regular(path, None, MAX_RULES_BYTES) or b"")
        named = config.get("core.excludesfile", named)
    path = home / os.path.expanduser(named) if named else config_dir / "ignore"
    return read_regular(os.path.realpath(path), None, MAX_RULES_BYTES) or b""


def _parse_config(data: bytes) -> dict[str, str]:
    """`section.key` in lower case to its last value. Subsections and includes are left out."""
    values: dict[str, str] = {}
    section = ""
    for line in data.decode(errors="surrogateescape").splitlines():
        line = line.strip()
        if line.startswith("["):
            header, _, line = line[1:].partition("]")
            section = header.strip().lower()
        found = SETTING.match(line)
        if found and '"' not in section:
            quoted = re.match(r'"((?:[^"\\]|\\.)*)"', found[2])
            plain = re.split(r"[#;]", found[2], maxsplit=1)[0].strip()
            values[f"{section}.{found[1].lower()}"] = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else plain
    return values


def _tracked_paths(index: bytes, oid_bytes: int) -> list[bytes]:
    """Paths in an index of version 2, 3 or 4 (gitformat-index); raises IndexError or ValueError for anything else."""
    if index[:4] != b"DIRC":
        return []
    version, num_entries = int.from_bytes(index[4:8], "big"), int.from_bytes(index[8:12], "big")
    paths: list[bytes] = []
    at, path, num_bytes = 12, b"", 0
    for _ in range(num_entries):
        flags_at = at + STAT_BYTES + oid_bytes
        flags = index[flags_at] << 8 | index[flags_at + 1]
        name_at = flags_at + (4 if version >= 3 and flags & EXTENDED else 2)
        if version == 4:
            num_cut, name_at = _varint(index, name_at)
            end = index.index(b"\0", name_at)
            path = path[: len(path) - num_cut] + index[name_at:end]
            at = end + 1
        else:
            end = name_at + (flags & LENGTH) if flags & LENGTH < LENGTH else index.index(b"\0", name_at)
            path = index[name_at:end]
            at += (end - at) // 8 * 8 + 8  # padded with one to eight NULs
        num_bytes += len(path)
        if (
            len(path) > MAX_PATH_BYTES or num_bytes > MAX_INDEX_BYTES
        ):  # version 4 could name gigabytes in a few megabytes
            raise ValueError(f"{len(path)} bytes of path, {num_bytes} in all")
        paths.append(path)
    return paths


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """git's offset encoding: (value, where it ends)."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = (value + 1) << 7 | data[at] & 0x7F
    return value, at + 1
