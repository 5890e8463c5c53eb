"""A directory that paths are confined to: every open walks real directories from it, without following a link.

Owns confinement. Must not know what is read or written, nor why.

The root is a descriptor, opened once: another directory put under its name is not it. A path is first resolved to
its real place, which must lie under the root. It is then opened component by component with O_NOFOLLOW, so a link swapped in
after the check is refused instead of followed.
"""

import errno
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.workspace.directories import RealPlace, descend, listing, open_real
from holdfast.tools.workspace.guard import Guard
from holdfast.tools.workspace.names import from_text, looks, to_text

MAX_PATH_CHARS = 1024
# Pseudo file systems, where reading can hang, leak or act: refused even below a root that contains them (such as "/").
SYSTEM_DIRS = ("/proc", "/dev", "/sys")


class Root:
    """Paths in and out are relative to it, with `/`. Open until `close`."""

    def __init__(self, root: str | os.PathLike[str], own: Iterable[Path] = ()) -> None:
        """`root` is a real path, as `os.path.realpath` gives it: no link on the way is followed. `own` are directories and files
        of holdfast itself.

        Raises ToolError when it is not an existing directory, or lies in one of our own.
        """
        self.root = Path(root)
        self.guard = Guard(own)
        self.root_fd = _open_root(self.root, self.guard)
        self._closing = weakref.finalize(self, os.close, self.root_fd)
        self._denied: Callable[[str], object | None] = lambda path: None
        self._newly_denied: list[str] = []

    def close(self) -> None:
        """Give the root's descriptor back; nothing can be opened any more."""
        self._closing()
        self.root_fd = -1

    def resolve(self, path: str, follow: bool = True) -> str:
        """The real place of `path`, relative to the root (`.` for the root itself); it need not exist.

        Without `follow`, a link that `path` itself names is not followed. It is text as in `names`. Where there is no such name, one that looks the same is taken if there is just one. Raises
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
        parts = self._real_parts(name, shown, follow)
        if name != path and not self._exists(parts):  # what looks like an escape may be the name itself
            as_written = self._real_parts(path, shown, follow)
            parts = as_written if self._exists(as_written) else parts
        if parts is None:
            raise ToolError(f"{shown} is outside the workspace; use a path relative to its root")
        if not self._exists(parts):
            parts = self._alike(parts)
        real = self.root.joinpath(*parts)
        for system_dir in SYSTEM_DIRS:
            if real.is_relative_to(system_dir) and not self.root.is_relative_to(system_dir):
                raise ToolError(f"{shown} is a system file, not a file of the workspace")
        place = to_text("/".join(parts)) or "."
        self.check_denied(place)
        return place

    def set_denied(self, denied: Callable[[str], object | None]) -> None:
        """`denied` gives the rule by which the user keeps a resolved path, and what is below it, from all tools; else
        None."""
        self._denied = denied

    def is_denied(self, path: str) -> bool:
        """Whether the user keeps a resolved path from tools: for those who come to it without `resolve`."""
        return self._denied(path) is not None

    def check_denied(self, path: str) -> None:
        """Raise ToolError where the user keeps a resolved path from tools, and note it."""
        if (rule := self._denied(path)) is not None:
            self._newly_denied.append(path)
            raise ToolError(f"{path} is not for tools: the user's rule {rule} forbids it; answer without it")

    def take_denied(self) -> list[str]:
        """Paths that were refused by a rule since the last time."""
        denied, self._newly_denied = self._newly_denied, []
        return denied

    def is_dir(self, path: str) -> bool:
        """Whether the resolved `path` is a directory now. Advisory only: opening checks again."""
        try:
            os.close(self._descend(parts_of(path)))
        except OSError:
            return False
        return True

    def check(self, fd: int) -> None:
        """Raise ToolError when what was opened is a file or directory that no tool reads: for those who open on their own."""
        self.guard.check(fd)

    @contextmanager
    def open_dir(self, path: str) -> Iterator[int]:
        """A descriptor of the directory at the resolved `path`, for `os.scandir`. Raises OSError, also for a link."""
        fd = self._descend(parts_of(path))
        try:
            with listing(fd) as listing_fd:
                yield listing_fd
        finally:
            os.close(fd)

    def read_bytes(self, path: str, max_bytes: int) -> bytes:
        """Contents of the regular file at the resolved `path`.

        Raises FileNotFoundError when there is none, ToolError for a directory, a device, a link or a larger file.
        """
        with self.open_parent(path) as parent_fd, self.open_file(path, parent_fd) as fd:
            return read_all(path, fd, max_bytes)

    @contextmanager
    def open_parent(self, path: str) -> Iterator[int]:
        """A descriptor of the directory that holds `path`, reached without following a link below the root."""
        try:
            fd = self._descend(parts_of(path)[:-1])
        except OSError as e:
            raise _open_error(path, e) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def check_change(self, path: str) -> None:
        """Raise ToolError when what is, or would be, at the resolved `path` is not changed by tools (`guard`)."""
        with ExitStack() as opened:
            directories: list[int] = []
            for name in ("", *parts_of(path)[:-1]):
                start_fd = directories[-1] if directories else self.root_fd
                try:
                    fd = descend(start_fd, [name] if name else [], self.guard.check)
                except (FileNotFoundError, NotADirectoryError):
                    break  # those below are still to be made
                except OSError as e:
                    raise _open_error(path, e) from None
                opened.callback(os.close, fd)
                directories.append(fd)
            self.guard.check_edit(path, self.root, directories)

    def _descend(self, parts: Iterable[str]) -> int:
        return descend(self.root_fd, parts, self.guard.check)

    def _real_parts(self, name: str, shown: str, follow: bool) -> list[str] | None:
        last = name.rstrip("/").rpartition("/")[2]
        above = name if follow or last in ("", ".", "..") else name.rstrip("/").removesuffix(last)
        with closing(RealPlace(self.root_fd)) as place:
            try:
                place.follow(above)
            except RecursionError:
                raise ToolError(f"{shown} leads through too many links; name the file itself") from None
            return place.parts if above == name or place.parts is None else [*place.parts, last]

    def _exists(self, parts: list[str] | None) -> bool:
        if not parts:
            return parts is not None
        try:
            with self.open_parent(to_text("/".join(parts))) as fd:
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
    def open_file(self, path: str, parent_fd: int) -> Iterator[int]:
        """A descriptor, to read, of the regular file `path` in its directory."""
        if path == ".":
            raise ToolError(f"{path} is a directory")
        # O_NONBLOCK: opening a FIFO must not wait for its writer. What was opened is checked before it is read.
        fd = _open_at(path, parts_of(path)[-1], parent_fd, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.guard.check(fd)
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise ToolError(f"{path} is a directory")
            if not stat.S_ISREG(mode):
                raise ToolError(f"{path} is not a regular file")
            yield fd
        finally:
            os.close(fd)


def parts_of(path: str) -> list[str]:
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


def read_all(path: str, fd: int, max_bytes: int) -> bytes:
    """Contents of an open file; raises ToolError for one that is larger."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes > max_bytes:
        raise ToolError(f"{path} is too large ({size_bytes} bytes; the limit is {max_bytes})")
    with os.fdopen(os.dup(fd), "rb") as f:
        return f.read(max_bytes)
