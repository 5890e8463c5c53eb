"""The workspace: which files a tool may touch, and which contents the model was shown.

Owns confinement (every open walks real directories from the root, without following a link) and the record of shown contents. Must not know what a tool does with a file, nor why it was allowed.

The root is a descriptor, opened once: another directory put under its name is not the workspace. A path is first resolved to
its real place, which must lie under the root. It is then opened component by component with O_NOFOLLOW, so a link swapped in
after the check is refused instead of followed.
"""

import errno
import hashlib
import os
import stat
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.workspace.directories import RealPlace, descend, listing, open_real
from holdfast.tools.workspace.guard import Guard
from holdfast.tools.workspace.names import from_text, looks, to_text
from holdfast.tools.workspace.rewrite import rewrite

MAX_PATH_CHARS = 1024
MAX_TEXT_BYTES = 16 * 2**20
BOM = "\ufeff"
# Pseudo file systems, where reading can hang, leak or act: refused even in a workspace that contains them (such as "/").
SYSTEM_DIRS = ("/proc", "/dev", "/sys")


@dataclass(frozen=True)
class TextFile:
    """A file as read: `text` has no byte order mark and keeps its own line ends; `digest` is of the bytes on disk."""

    path: str
    text: str
    has_bom: bool
    digest: int


@dataclass(frozen=True)
class Change:
    """A file that was written, and how many lines are new in it and gone from it."""

    path: str
    added: int
    removed: int


class Workspace:
    """A directory that the tools are confined to. Paths in and out are relative to it, with `/`. Open until `close`."""

    def __init__(self, root: str | os.PathLike[str], own: Iterable[Path] = (), backups: Path | None = None) -> None:
        """`root` is a real path, as `os.path.realpath` gives it: no link on the way is followed. `own` are directories and files
        of holdfast itself, `backups` is where old contents are kept while a file is written in place.

        Raises ToolError when it is not an existing directory, or lies in one of our own.
        """
        self.root = Path(root)
        self._guard, self._backups = Guard(own), backups
        self.root_fd = _open_root(self.root, self._guard)
        self._closing = weakref.finalize(self, os.close, self.root_fd)
        self.kept_output = _none_kept  # the text of an output of a command by its name, None for a name that means none
        self._shown: dict[str, int] = {}
        self._newly_shown: dict[str, int] = {}
        self._changes: list[Change] = []

    def close(self) -> None:
        """Give the root's descriptor back; nothing can be opened any more."""
        self._closing()
        self.root_fd = -1

    def resolve(self, path: str) -> str:
        """The real place of `path`, relative to the root (`.` for the root itself); it need not exist.

        It is text as in `names`. Where there is no such name, one that looks the same is taken if there is just one. Raises
        ToolError for a path that is empty, too long, with NUL or outside the workspace, also through links.
        """
        if not path:
            raise ToolError("path is empty; give a path relative to the workspace")
        if len(path) > MAX_PATH_CHARS:
            raise ToolError(f"path {path[:40]}… is too long ({len(path)} characters)")
        if "\0" in path:
            raise ToolError(f"path {path!a} has characters that no file name here may have")
        shown = to_text(path) if not path.isprintable() else path
        name = from_text(path)
        parts = self._real_parts(name, shown)
        if name != path and not self._exists(parts):  # what looks like an escape may be the name itself
            as_written = self._real_parts(path, shown)
            parts = as_written if self._exists(as_written) else parts
        if parts is None:
            raise ToolError(f"{shown} is outside the workspace; use a path relative to its root")
        if not self._exists(parts):
            parts = self._alike(parts)
        real = self.root.joinpath(*parts)
        for system_dir in SYSTEM_DIRS:
            if real.is_relative_to(system_dir) and not self.root.is_relative_to(system_dir):
                raise ToolError(f"{shown} is a system file, not a file of the workspace")
        return to_text("/".join(parts)) or "."

    def is_dir(self, path: str) -> bool:
        """Whether the resolved `path` is a directory now. Advisory only: opening checks again."""
        try:
            os.close(self._descend(_parts(path)))
        except OSError:
            return False
        return True

    def check(self, fd: int) -> None:
        """Raise ToolError when what was opened is a file or directory that no tool reads: for those who open on their own."""
        self._guard.check(fd)

    @contextmanager
    def open_dir(self, path: str) -> Iterator[int]:
        """A descriptor of the directory at the resolved `path`, for `os.scandir`. Raises OSError, also for a link."""
        fd = self._descend(_parts(path))
        try:
            with listing(fd) as listing_fd:
                yield listing_fd
        finally:
            os.close(fd)

    def read_bytes(self, path: str, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
        """Contents of the regular file at the resolved `path`.

        Raises FileNotFoundError when there is none, ToolError for a directory, a device, a link or a larger file.
        """
        with self._open_parent(path) as parent_fd, self._open_file(path, parent_fd) as fd:
            return _read_all(path, fd, max_bytes)

    def read_text(self, path: str) -> TextFile:
        """Read a resolved `path` as UTF-8 text; raises as `read_bytes`, and ToolError for anything but UTF-8 text."""
        return decode(path, self.read_bytes(path))

    def note_shown(self, file: TextFile) -> None:
        """Remember that the model was shown this state of the file."""
        if self._shown.get(file.path) != file.digest:
            self._shown[file.path] = self._newly_shown[file.path] = file.digest

    def take_shown(self) -> dict[str, int]:
        """What was noted since the last time, by path: a digest of each file as the model saw it."""
        newly, self._newly_shown = self._newly_shown, {}
        return newly

    def take_changes(self) -> list[Change]:
        """What was written since the last time."""
        changes, self._changes = self._changes, []
        return changes

    def set_shown(self, shown: Mapping[str, int]) -> None:
        """Begin from what the model was shown before: the sum of what `take_shown` gave."""
        self._shown, self._newly_shown = dict(shown), {}

    def check_fresh(self, file: TextFile) -> None:
        """Raise ToolError when the model was last shown another state of the file; a file never shown is fine."""
        if self._shown.get(file.path, file.digest) != file.digest:
            raise ToolError(f"{file.path} changed on disk since it was read; read it again")

    def replace(self, old: TextFile, text: str) -> bool:
        """Write `text` (own line ends, no byte order mark) in place of `old`, durably, and note it as shown.

        The new file takes the name by rename (see `rewrite`), so another hard link keeps the old contents; returns whether there is
        one. Raises ToolError when the file is read-only, is none that tools edit (`guard`), or no longer has the contents of `old`.
        """
        data = ((BOM if old.has_bom else "") + text).encode()
        with self._replaceable(old) as (parent_fd, fd, before):
            num_links = os.fstat(fd).st_nlink
            rewrite(parent_fd, _parts(old.path)[-1], fd, before, data, self._backups)
        self.note_shown(TextFile(old.path, text, old.has_bom, _digest(data)))
        self._changes.append(change_of(old, text))
        return num_links > 1

    def check_replaceable(self, old: TextFile) -> None:
        """Raise what `replace` would before it writes."""
        with self._replaceable(old):
            pass

    @contextmanager
    def _replaceable(self, old: TextFile) -> Iterator[tuple[int, int, bytes]]:
        """Descriptors of the directory and the file, and the contents, which are those of `old`."""
        with self._open_directories(old.path) as directories:
            self._guard.check_edit(old.path, self.root, directories)
            with self._open_file(old.path, directories[-1]) as fd:
                mode, before = os.fstat(fd).st_mode, _read_all(old.path, fd, MAX_TEXT_BYTES)
                if _digest(before) != old.digest:
                    raise ToolError(f"{old.path} changed on disk since it was read; read it again")
                if not mode & 0o222:
                    raise ToolError(f"{old.path} is read-only; its mode is {stat.S_IMODE(mode):o}")
                yield directories[-1], fd, before

    @contextmanager
    def _open_parent(self, path: str) -> Iterator[int]:
        """A descriptor of the directory that holds `path`, reached without following a link below the root."""
        try:
            fd = self._descend(_parts(path)[:-1])
        except OSError as e:
            raise _open_error(path, e) from None
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _open_directories(self, path: str) -> Iterator[list[int]]:
        """Descriptors of all directories on the way to `path`, the root first."""
        with ExitStack() as opened:
            directories: list[int] = []
            for name in ("", *_parts(path)[:-1]):
                try:
                    fd = descend(
                        directories[-1] if directories else self.root_fd, [name] if name else [], self._guard.check
                    )
                except OSError as e:
                    raise _open_error(path, e) from None
                opened.callback(os.close, fd)
                directories.append(fd)
            yield directories

    def _descend(self, parts: Iterable[str]) -> int:
        return descend(self.root_fd, parts, self._guard.check)

    def _real_parts(self, name: str, shown: str) -> list[str] | None:
        with closing(RealPlace(self.root_fd)) as place:
            try:
                place.follow(name)
            except RecursionError:
                raise ToolError(f"{shown} leads through too many links; name the file itself") from None
            return place.parts

    def _exists(self, parts: list[str] | None) -> bool:
        if not parts:
            return parts is not None
        try:
            with self._open_parent(to_text("/".join(parts))) as fd:
                os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
        except (OSError, ToolError):
            return False
        return True

    def _alike(self, parts: list[str]) -> list[str]:
        """The parts with each name that is not there replaced by the only one there that looks the same, as far as that goes."""
        found: list[str] = []
        for part in parts:
            try:
                with self.open_dir(to_text("/".join(found))) as fd:
                    names = os.listdir(fd)
            except (OSError, ToolError):
                break
            alike = [part] if part in names else [name for name in names if looks(name) == looks(part)]
            if len(alike) != 1:
                break
            found += alike
        return found + parts[len(found) :]

    @contextmanager
    def _open_file(self, path: str, parent_fd: int) -> Iterator[int]:
        if path == ".":
            raise ToolError(f"{path} is a directory")
        # O_NONBLOCK: opening a FIFO must not wait for its writer. What was opened is checked before it is read.
        fd = _open_at(path, _parts(path)[-1], parent_fd, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._guard.check(fd)
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise ToolError(f"{path} is a directory")
            if not stat.S_ISREG(mode):
                raise ToolError(f"{path} is not a regular file")
            yield fd
        finally:
            os.close(fd)


def _none_kept(name: str) -> str | None:
    return None


def decode(path: str, data: bytes) -> TextFile:
    """Text of a file's bytes; raises ToolError unless they are UTF-8 without NUL."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ToolError(f"{path} is not UTF-8 text") from None
    if "\0" in text:
        raise ToolError(f"{path} is not UTF-8 text")
    return TextFile(path, text.removeprefix(BOM), text.startswith(BOM), _digest(data))


def split_lines(text: str) -> list[str]:
    """Lines without their ends (LF or CRLF); a final line end does not start another line."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _digest(data: bytes) -> int:
    """A number: what is text in an event is found by `recall`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")


def _parts(path: str) -> list[str]:
    """Names of a resolved path, as the file system has them."""
    return [part for part in from_text(path).split("/") if part not in ("", ".")]


def _open_root(root: Path, guard: Guard) -> int:
    try:
        return open_real(root, guard.check)
    except ToolError as e:
        raise ToolError(f"workspace {root}: {e}; name another directory") from None
    except OSError as e:
        if e.errno == errno.ENOENT:
            why = "does not exist"
        elif e.errno == errno.ENOTDIR:
            why = "is not a directory" if root.resolve() == root else "is reached through a link"
        else:
            why = f"cannot be opened ({e.strerror})"
        raise ToolError(f"workspace {root} {why}; name an existing directory") from None


def _open_at(path: str, name: str, parent_fd: int, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    except OSError as e:
        raise _open_error(path, e) from None


def _open_error(path: str, error: OSError) -> Exception:
    """What the model is told of a failed open. `resolve` left no link in `path`: where one is now, it was put since."""
    if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):  # a link where a directory is expected gives ENOTDIR
        return FileNotFoundError(errno.ENOENT, "No such file", path)
    if error.errno == errno.ELOOP:
        return ToolError(f"{path} became a link while it was opened; try again")
    if error.errno == errno.ENXIO:
        return ToolError(f"{path} is not a regular file")
    return error


def _read_all(path: str, fd: int, max_bytes: int) -> bytes:
    size_bytes = os.fstat(fd).st_size
    if size_bytes > max_bytes:
        raise ToolError(f"{path} is too large ({size_bytes} bytes; the limit is {max_bytes})")
    with os.fdopen(os.dup(fd), "rb") as f:
        return f.read(max_bytes)


def change_of(old: TextFile, text: str) -> Change:
    """What `text` in place of `old` is."""
    before, after = Counter(old.text.splitlines()), Counter(text.splitlines())
    return Change(old.path, (after - before).total(), (before - after).total())
