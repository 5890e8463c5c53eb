"""Which files of a workspace are source worth searching: the walk, its skip list and git's ignore rules.

Owns the decision what is skipped, and what is said of it. Opens directories one component at a time from the workspace's root,
so a link is never followed, and opens no file but ignore rules. Must not know who asks.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.walk.git_files import MAX_RULES_BYTES, Repository, open_repository, read_regular
from holdfast.tools.walk.ignore import Rules
from holdfast.tools.walk.skipped import Skipped
from holdfast.tools.workspace.descent import Descent
from holdfast.tools.workspace.directories import PASSING, listing
from holdfast.tools.workspace.names import from_text, to_text
from holdfast.tools.workspace.root import SYSTEM_DIRS
from holdfast.tools.workspace.workspace import Workspace

SKIPPED_DIRS = frozenset({".git", "__pycache__", "node_modules", ".venv"})
MAX_SOURCE_BYTES = 2 * 2**20
TOO_LARGE = "over 2 MB"
# File systems whose files are made up by the kernel, wherever they are mounted. Those that hold what was put there, tmpfs too, are walked.
PSEUDO_FILE_SYSTEMS = (
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue nsfs proc pstore "
    "rpc_pipefs securityfs selinuxfs sysfs tracefs"
)

FileVersion = tuple[int, int, int, int]  # mtime_ns, ctime_ns, size_bytes, inode


class SourceEntry(NamedTuple):
    """A file worth looking into; `version` changes when the file is written or replaced."""

    path: str
    version: FileVersion

    @property
    def size_bytes(self) -> int:
        return self.version[2]


@dataclass(frozen=True)
class Anchor:
    """A folder that paths are relative to: one of the workspace, whose own path has `cut` bytes, or one above it."""

    cut: int = 0
    above: bytes = b""  # from there down to the workspace, ending in a slash

    def path(self, path: str) -> bytes:
        return self.above + os.fsencode(from_text(path))[self.cut :]


@dataclass(frozen=True)
class Folder:
    """A directory to be walked: `path` is "" or ends in a slash, `layers` are asked in order, and the first with an opinion decides."""

    path: str
    device: int
    layers: tuple[tuple[Anchor, Rules], ...] = ()
    repository: Repository | None = None
    repository_root: Anchor = Anchor()
    only_tracked: bool = False  # it is ignored, but files in it are tracked

    def ignores(self, path: str, is_dir: bool) -> bool:
        for anchor, rules in self.layers:
            if (opinion := rules.ignores(anchor.path(path), is_dir)) is not None:
                return opinion
        return False

    def tracks(self, path: str, is_dir: bool) -> bool:
        """Whether the repository tracks a file, or one in a folder, in spite of what it ignores."""
        if self.repository is None:
            return False
        raw = self.repository_root.path(path)
        return self.repository.tracks_below(raw) if is_dir else self.repository.tracks(raw)


class SourceTree:
    """One walk over a workspace, and a reader of the files it comes to. A context manager: it holds directories open."""

    def __init__(self, workspace: Workspace, cancellation: Cancellation) -> None:
        self.skipped = Skipped()
        self._workspace, self._cancellation = workspace, cancellation
        self._descent = Descent(workspace.root_fd, self._check)
        system_dirs = [Path(system_dir) for system_dir in SYSTEM_DIRS]
        self._system_dirs = {f"{d.relative_to(workspace.root)}/" for d in system_dirs if workspace.root in d.parents}
        self._pseudo_devices: frozenset[int] | None = None

    def __enter__(self) -> "SourceTree":
        return self

    def __exit__(self, *_: object) -> None:
        self._descent.close()

    def entries(self, under: str = ".") -> Iterator[SourceEntry]:
        """Regular files that no rule skips, sorted by path. Links are not followed.

        Rules that ignore the folder `under` itself do not hold below it: it was asked for.
        """
        # An own stack: how deep directories nest is not ours to choose.
        start = "" if under == "." else under + "/"
        waiting: list[Folder | SourceEntry] = self._children(start, None)
        while waiting:
            self._cancellation.check()
            item = waiting.pop()
            if isinstance(item, SourceEntry):
                yield item
            else:
                waiting += self._children(item.path, item)

    def read(self, path: str, max_bytes: int = MAX_SOURCE_BYTES) -> bytes | None:
        """The first bytes of a file of the walk, or None when there is no such regular file now. Raises PermissionError."""
        return self._descent.read(from_text(path), max_bytes)

    def _start(self, path: str) -> Folder:
        folder = self._entered(self._above())
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            below = "/".join(parts[:depth]) + "/"
            if parts[depth - 1] in SKIPPED_DIRS or folder.ignores(below[:-1], is_dir=True):
                return Folder(path, self._device(path))
            folder = replace(folder, path=below, device=self._device(below))
            folder = self._entered(folder) if below != path else folder
        return folder

    def _children(self, path: str, folder: Folder | None) -> list[Folder | SourceEntry]:
        """What is in a folder and not skipped, in reverse order of the files' whole paths; nothing when it cannot be listed."""
        try:
            return self._list(self._start(path) if folder is None else folder)
        except PermissionError:
            self.skipped.add("unreadable", path or ".")
        except OSError:  # gone since it was listed: nothing to find there
            pass
        return []

    def _list(self, folder: Folder) -> list[Folder | SourceEntry]:
        if folder.path:
            folder = self._entered(folder)
        found: list[tuple[str, Folder | SourceEntry]] = []
        with listing(self._dir(folder.path[:-1])) as fd, os.scandir(fd) as scan:
            for child in self._cancellation.checked(scan):
                is_dir = child.is_dir(follow_symlinks=False)
                path = folder.path + to_text(child.name) + ("/" if is_dir else "")
                item = self._folder(folder, child.name, path) if is_dir else self._file(folder, child, path)
                if item is not None:
                    found.append((path, item))
        return [item for _, item in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def _folder(self, parent: Folder, name: str, path: str) -> Folder | None:
        if self._workspace.is_denied(path[:-1]):
            return None
        if name in SKIPPED_DIRS or path in self._system_dirs:
            if name not in (".git", "__pycache__"):
                self.skipped.ignored.append(path)
            return None
        is_ignored = parent.only_tracked or parent.ignores(path[:-1], is_dir=True)
        if is_ignored and not parent.tracks(path[:-1], is_dir=True):
            if not parent.only_tracked:
                self.skipped.ignored.append(path)
            return None
        return replace(parent, path=path, only_tracked=is_ignored)

    def _file(self, parent: Folder, child: os.DirEntry[str], path: str) -> SourceEntry | None:
        if child.name == ".git" or not child.is_file(follow_symlinks=False):  # a worktree's `.git` is a file
            return None
        if self._workspace.is_denied(path):
            return None
        is_ignored = parent.only_tracked or parent.ignores(path, is_dir=False)
        if is_ignored and not parent.tracks(path, is_dir=False):
            if not parent.only_tracked:
                self.skipped.ignored.append(path)
            return None
        try:
            status = child.stat(follow_symlinks=False)
        except PermissionError:
            self.skipped.add("unreadable", path)
            return None
        except FileNotFoundError:
            return None
        return SourceEntry(path, (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))

    def _entered(self, folder: Folder) -> Folder:
        """The folder with its rules: those of its `.gitignore`, and when it is a repository's root, that one's alone."""
        fd = self._dir(folder.path[:-1])
        device = os.fstat(fd).st_dev
        if device != folder.device and device in self._pseudo():
            raise FileNotFoundError(errno.ENOENT, "a pseudo file system", folder.path)
        place = self._workspace.root / from_text(folder.path)
        anchor = Anchor(len(os.fsencode(from_text(folder.path))))
        if folder.path and (repository := self._repository(fd, place)):
            layers = tuple((anchor, rules) for rules in repository.excludes)
            folder = Folder(folder.path, device, layers, repository, anchor)
        data = read_regular(".gitignore", fd, MAX_RULES_BYTES, self._check)
        own = ((anchor, Rules.of(data)),) if data else ()
        return replace(folder, device=device, layers=own + folder.layers)

    def _repository(self, fd: int, place: Path) -> Repository | None:
        try:
            os.stat(".git", dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        return open_repository(fd, place, self._workspace.root, self._check)

    def _above(self) -> Folder:
        """The root with the rules of the repository that it is a subfolder of, if any."""
        own = os.fstat(self._workspace.root_fd)
        folder = Folder("", own.st_dev)
        places = [self._workspace.root, *self._workspace.root.parents]
        fds = [os.dup(self._workspace.root_fd)]
        layers: list[tuple[Anchor, Rules]] = []
        try:
            for place in places:
                status = os.fstat(fds[-1])
                if status.st_dev != own.st_dev or status.st_uid not in (os.geteuid(), own.st_uid):
                    return (
                        folder  # git, too, looks no further than one file system, and trusts no one else's repository
                    )
                names = self._workspace.root.relative_to(place).parts
                anchor = Anchor(above=b"".join(os.fsencode(name) + b"/" for name in names))
                data = read_regular(".gitignore", fds[-1], MAX_RULES_BYTES, self._check) if names else None
                layers += [(anchor, Rules.of(data))] if data else []
                repository = self._repository(fds[-1], place)
                if repository is not None:
                    layers += [(anchor, rules) for rules in repository.excludes]
                    return Folder("", own.st_dev, tuple(layers), repository, anchor)
                fds.append(os.open("..", PASSING, dir_fd=fds[-1]))
                self._check(fds[-1])
        except OSError:
            pass
        finally:
            for fd in fds:
                os.close(fd)
        return folder

    def _dir(self, path: str) -> int:
        return self._descent.dir(from_text(path))

    def _check(self, fd: int) -> None:
        """What no tool reads is taken as not there. Not a ToolError: that is how a walk is cancelled."""
        try:
            self._workspace.check(fd)
        except ToolError as e:
            raise FileNotFoundError(errno.ENOENT, str(e)) from None

    def _device(self, path: str) -> int:
        return os.fstat(self._dir(path[:-1])).st_dev

    def _pseudo(self) -> frozenset[int]:
        """Devices of pseudo file systems, from Linux's list of mounts."""
        if self._pseudo_devices is None:
            self._pseudo_devices = _pseudo_devices()
        return self._pseudo_devices


def _pseudo_devices() -> frozenset[int]:
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    devices = set()
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        if after.split(" ")[0] in PSEUDO_FILE_SYSTEMS.split():
            major, minor = before.split(" ")[2].split(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)


def source_entries(workspace: Workspace, cancellation: Cancellation) -> list[SourceEntry]:
    """All entries of the workspace at once."""
    with SourceTree(workspace, cancellation) as tree:
        return list(tree.entries())
