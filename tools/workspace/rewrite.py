"""A file's new contents in place of the old ones, durably, with all that else belongs to the file: mode, owner, attributes, ACL.

Owns the two ways: a new file takes the name, or, where that would lose something or cannot be, the file is written in place with
its old contents kept beside until that is done. Must not know why a file is written, nor whether it may be.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.workspace.directories import listing

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# EBUSY: the file is a mount point. EROFS, EACCES, EPERM: no file can be made or renamed here, or the new one not be given away.
_NO_RENAME = frozenset({errno.EBUSY, errno.EXDEV, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTSUP})


def rewrite(parent_fd: int, name: str, fd: int, old: bytes, new: bytes, backups: Path | None) -> None:
    """Give the file `name`, open for reading as `fd` and read as `old`, the contents `new`.

    `backups` is a directory for old contents while a file is written in place. Raises OSError, and ToolError when the file cannot
    be written as what it is.
    """
    try:
        _rename_new(parent_fd, name, fd, new)
    except OSError as e:
        if e.errno not in _NO_RENAME:
            raise
        _write_in_place(parent_fd, name, fd, old, new, backups)


def _rename_new(parent_fd: int, name: str, fd: int, data: bytes) -> None:
    """Temporary file in the same directory, fsync, rename over `name`, fsync the directory. Raises before the rename if the new
    file would be less than the old one."""
    temporary = f".holdfast-{secrets.token_hex(8)}.tmp"
    new_fd = os.open(temporary, NEW, 0o600, dir_fd=parent_fd)
    try:
        with os.fdopen(new_fd, "wb") as f:
            f.write(data)
            f.flush()
            _copy_attributes(fd, new_fd)
            os.fsync(new_fd)
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent_fd)
        raise
    with suppress(PermissionError), listing(parent_fd) as directory_fd:  # what may not be listed cannot be synced
        os.fsync(directory_fd)


def _copy_attributes(fd: int, new_fd: int) -> None:
    """Owner, extended attributes (an ACL is one), mode: in this order, since a change of owner clears setuid and capabilities."""
    old, new = os.fstat(fd), os.fstat(new_fd)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(new_fd, old.st_uid, old.st_gid)
    attributes = _attributes(fd)
    for attribute in set(_attributes(new_fd)) - set(
        attributes
    ):  # a directory's default ACL, which the old file has not
        os.removexattr(new_fd, attribute)
    for attribute, value in attributes.items():
        if _attributes(new_fd).get(attribute) != value:
            os.setxattr(new_fd, attribute, value)
    os.fchmod(new_fd, stat.S_IMODE(old.st_mode))


def _attributes(fd: int) -> dict[str, bytes]:
    """Extended attributes; none where the system has none."""
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except (AttributeError, OSError):
        return {}


def _write_in_place(parent_fd: int, name: str, fd: int, old: bytes, new: bytes, backups: Path | None) -> None:
    """The file stays the same one; a cut write can be undone from the backup."""
    if os.fstat(fd).st_nlink > 1:  # the other name may be outside the workspace
        raise ToolError(
            f"{name} has another name, a hard link, that writing it in place would change too; change it by hand"
        )
    try:
        out_fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent_fd)
    except OSError as e:
        why = f"{e.strerror}: it, or its directory, is immutable or not yours"
        raise ToolError(
            f"{name} cannot be written ({why if e.errno == errno.EPERM else e.strerror}); it stays as it was"
        ) from None
    try:
        if not os.path.sameopenfile(fd, out_fd):
            raise ToolError(f"{name} was replaced while it was edited; read it again")
        mode, attributes = stat.S_IMODE(os.fstat(fd).st_mode), _attributes(fd)
        backup = _backup(name, old, backups)
        try:
            _overwrite(out_fd, new)
        except OSError as e:
            raise _undone(name, out_fd, old, backup, e) from None
        backup.unlink()
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:  # a write clears setuid
            os.fchmod(out_fd, mode)
        for attribute in set(attributes) - set(_attributes(fd)):  # and capabilities
            with suppress(OSError):
                os.setxattr(out_fd, attribute, attributes[attribute])
    finally:
        os.close(out_fd)


def _overwrite(fd: int, data: bytes) -> None:
    position = 0
    while position < len(data):
        position += os.pwrite(fd, data[position:], position)
    os.ftruncate(fd, len(data))
    os.fsync(fd)


def _undone(name: str, fd: int, old: bytes, backup: Path, error: OSError) -> ToolError:
    """What is said of a failed write, after the old contents were written back."""
    try:
        _overwrite(fd, old)
    except OSError:
        return ToolError(f"{name} is damaged, writing it failed ({error.strerror}); its old contents are in {backup}")
    backup.unlink()
    return ToolError(f"{name} could not be written ({error.strerror}); it has its old contents")


def _backup(name: str, data: bytes, backups: Path | None) -> Path:
    """A new file with the old contents."""
    if backups is None:
        raise ToolError(
            f"{name} can only be written in place, and there is no directory for a backup; change it by hand"
        )
    backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = backups / f"{secrets.token_hex(8)}.old"
    with os.fdopen(os.open(path, NEW, 0o600), "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return path
