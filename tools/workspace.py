"""The workspace: which files a tool may touch, and which contents the model was shown.

Owns confinement (every open walks real directories from the root, without following a link), atomic replacement of a
file, and the record of shown contents. Must not know what a tool does with a file, nor why it was allowed.

The root is a descriptor, opened once: another directory put under its name is not the workspace. A path is first resolved to
its real place, which must lie under the root. It is then opened component by component with O_NOFOLLOW, so a link swapped in
after the check is refused instead of followed.
"""

import errno
import hashlib
import os
import secrets
import stat
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .directories import RealPlace, descend, listing, open_real
from .tool import ToolError

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
    digest: bytes


class Workspace:
    """A directory that the tools are confined to. Paths in and out are relative to it, with `/`. Open until `close`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """`root` is a real path, as `os.path.realpath` gives it: no link on the way is followed.

        Raises ToolError when it is not an existing directory.
        """
        self.root = Path(root)
        self.root_fd = _open_root(self.root)
        self._closing = weakref.finalize(self, os.close, self.root_fd)
        self._shown: dict[str, bytes] = {}

    def close(self) -> None:
        """Give the root's descriptor back; nothing can be opened any more."""
        self._closing()
        self.root_fd = -1

    def resolve(self, path: str) -> str:
        """The real place of `path`, relative to the root (`.` for the root itself); it need not exist.

        Raises ToolError for a path that is empty, too long, unprintable or outside the workspace, also through links.
        """
        if not path:
            raise ToolError("path is empty; give a path relative to the workspace")
        if len(path) > MAX_PATH_CHARS:
            raise ToolError(f"path {path[:40]}… is too long ({len(path)} characters)")
        if not path.isprintable():
            raise ToolError(f"path {path!a} has characters that no file name here may have")
        with closing(RealPlace(self.root_fd)) as place:
            try:
                place.follow(path)
            except RecursionError:
                raise ToolError(f"{path} leads through too many links; name the file itself") from None
            parts = place.parts
        if parts is None:
            raise ToolError(f"{path} is outside the workspace; use a path relative to its root")
        real = self.root.joinpath(*parts)
        for system_dir in SYSTEM_DIRS:
            if real.is_relative_to(system_dir) and not self.root.is_relative_to(system_dir):
                raise ToolError(f"{path} is a system file, not a file of the workspace")
        return "/".join(parts) or "."

    def is_dir(self, path: str) -> bool:
        """Whether the resolved `path` is a directory now. Advisory only: opening checks again."""
        try:
            os.close(self._descend(PurePosixPath(path).parts))
        except OSError:
            return False
        return True

    @contextmanager
    def open_dir(self, path: str) -> Iterator[int]:
        """A descriptor of the directory at the resolved `path`, for `os.scandir`. Raises OSError, also for a link."""
        fd = self._descend(PurePosixPath(path).parts)
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
        self._shown[file.path] = file.digest

    def check_fresh(self, file: TextFile) -> None:
        """Raise ToolError when the model was last shown another state of the file; a file never shown is fine."""
        if self._shown.get(file.path, file.digest) != file.digest:
            raise ToolError(f"{file.path} changed on disk since it was read; read it again")

    def replace(self, old: TextFile, text: str) -> TextFile:
        """Write `text` (own line ends, no byte order mark) in place of `old`, durably, and note it as shown.

        The new file takes the name by rename and keeps the mode, so another hard link keeps the old contents. Raises ToolError when
        the file is read-only, belongs to git, or no longer has the contents of `old`.
        """
        if ".git" in (part.lower() for part in PurePosixPath(old.path).parts):
            raise ToolError(f"{old.path} belongs to git and is not edited by hand")
        data = ((BOM if old.has_bom else "") + text).encode()
        with self._open_parent(old.path) as parent_fd:
            with self._open_file(old.path, parent_fd) as fd:
                status = os.fstat(fd)
                digest = _digest(_read_all(old.path, fd, MAX_TEXT_BYTES))
            if digest != old.digest:
                raise ToolError(f"{old.path} changed on disk since it was read; read it again")
            if not status.st_mode & 0o222:
                raise ToolError(f"{old.path} is read-only; its mode is {stat.S_IMODE(status.st_mode):o}")
            _replace_at(parent_fd, PurePosixPath(old.path).name, data, status)
        new = TextFile(old.path, text, old.has_bom, _digest(data))
        self.note_shown(new)
        return new

    @contextmanager
    def _open_parent(self, path: str) -> Iterator[int]:
        """A descriptor of the directory that holds `path`, reached without following a link below the root."""
        try:
            fd = self._descend(PurePosixPath(path).parts[:-1])
        except OSError as e:
            raise _open_error(path, e) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _descend(self, parts: Iterable[str]) -> int:
        return descend(self.root_fd, parts, lambda fd: None)

    @contextmanager
    def _open_file(self, path: str, parent_fd: int) -> Iterator[int]:
        name = PurePosixPath(path).name
        if not name:
            raise ToolError(f"{path} is a directory")
        # O_NONBLOCK: opening a FIFO must not wait for its writer. What was opened is checked before it is read.
        fd = _open_at(path, name, parent_fd, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise ToolError(f"{path} is a directory")
            if not stat.S_ISREG(mode):
                raise ToolError(f"{path} is not a regular file")
            yield fd
        finally:
            os.close(fd)


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


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _open_root(root: Path) -> int:
    try:
        return open_real(root, lambda fd: None)
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


def _replace_at(parent_fd: int, name: str, data: bytes, status: os.stat_result) -> None:
    """Temporary file in the same directory, fsync, rename over `name`, fsync the directory."""
    temporary = f".holdfast-{secrets.token_hex(8)}.tmp"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent_fd
    )
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                with suppress(PermissionError):  # only root may give a file away
                    os.fchown(fd, status.st_uid, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            f.flush()
            os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent_fd)
        raise
    with suppress(PermissionError), listing(parent_fd) as fd:  # a directory that may not be listed cannot be synced
        os.fsync(fd)
