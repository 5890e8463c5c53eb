"""Paths put from one state into another: all of them, or none.

Owns the order (every path is checked, the journal has the change, then files are written), and that what was done is put back where
a later path fails. Must not know why something is changed, nor whether it may be.
"""

import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.workspace.directories import PASSING, listing
from holdfast.tools.workspace.journal import FileState, Journal
from holdfast.tools.workspace.rewrite import NEW, rewrite
from holdfast.tools.workspace.root import Root, parts_of, read_all
from holdfast.tools.workspace.states import MAX_STATE_BYTES, state_of

Step = tuple[FileState, FileState]
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK})  # a file system without them


def put(
    root: Root, before: Sequence[FileState], after: Sequence[FileState], journal: Journal | None, backups: Path | None
) -> None:
    """Make `after` of `before`, path by path; missing directories above are made. A directory that became absent, and that other
    files were put into, stays.

    Raises ToolError, with nothing changed, when a path is one that tools do not change, or is not in its state of `before`.
    """
    assert [state.path for state in before] == [state.path for state in after], (before, after)
    for state in before:
        _check(root, state)
    if journal is not None:
        journal.record(before, after)
    steps = [step for step in zip(before, after, strict=True) if step[0] != step[1]]
    # what goes leaves before its directory, what comes has its directory first
    gone = sorted((step for step in steps if step[1].kind == "absent"), key=_path, reverse=True)
    come = sorted((step for step in steps if step[1].kind != "absent"), key=_path)
    done: list[Step] = []
    try:
        for old, new in [*gone, *come]:
            path, is_rewrite = new.path, old.kind == new.kind == "file"  # which leaves the old contents where it fails
            done += [] if is_rewrite else [(old, new)]
            _make(root, old, new, backups)
            done += [(old, new)] if is_rewrite else []
    except (OSError, ToolError) as e:
        why = str(e) if isinstance(e, ToolError) else f"{path} could not be changed ({e.strerror})"
        left = [old.path for old, new in reversed(done) if not _put_back(root, old, new, backups)]
        raise ToolError(f"{why}; these could not be put back: {', '.join(left)}" if left else why) from None


def move(
    root: Root, old: Sequence[FileState], new: Sequence[FileState], made: Sequence[FileState], journal: Journal | None
) -> None:
    """Rename the first of `old`, with all below it, to the first of `new`; `made` are the missing directories above.

    Raises ToolError as `put`, also when the new place was taken meanwhile.
    """
    gone, missing = [FileState(state.path) for state in old], [FileState(state.path) for state in (*new, *made)]
    for state in [*old, *missing]:
        _check(root, state)
    if journal is not None:
        journal.record([*old, *missing], [*gone, *new, *made])
    source, target = old[0], new[0]
    try:
        for directory in made:
            _make(root, FileState(directory.path), directory, None)
        with root.open_parent(source.path) as source_fd, root.open_parent(target.path) as target_fd:
            _rename(source.kind, source_fd, parts_of(source.path)[-1], target_fd, parts_of(target.path)[-1])
            for parent_fd in (source_fd, target_fd):
                _sync(parent_fd)
    except OSError as e:
        for directory in reversed(made):
            _put_back(root, FileState(directory.path), directory, None)
        raise ToolError(
            f"{source.path} could not be moved to {target.path} ({e.strerror}); it is where it was"
        ) from None


def _rename(kind: str, source_fd: int, source: str, target_fd: int, target: str) -> None:
    """Takes the place of nothing: a directory can only replace an empty one, and a file gets its new name as a second one first."""
    if kind != "directory":
        try:
            os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
        except OSError as e:
            if e.errno not in NO_HARD_LINKS:
                raise
        else:
            os.unlink(source, dir_fd=source_fd)
            return
    os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


def _sync(parent_fd: int) -> None:
    with suppress(PermissionError), listing(parent_fd) as directory_fd:  # what may not be listed cannot be synced
        os.fsync(directory_fd)


def _path(step: Step) -> list[str]:
    return step[0].path.split("/")


def _check(root: Root, state: FileState) -> None:
    """Raise ToolError unless the path may be changed and is in this state."""
    root.check_change(state.path)
    if state.kind == "directory" and state_of(root, state.path).kind == "absent":
        return  # there is nothing in it to lose
    if not state_of(root, state.path).is_same(state):
        raise ToolError(f"{state.path} is not as it was: it changed on disk since")


def _put_back(root: Root, old: FileState, new: FileState, backups: Path | None) -> bool:
    """Undo one step, unless the path is what somebody else made of it since; whether it is what it was."""
    try:
        present = state_of(root, old.path)
        if present.is_same(new) or present.kind == "absent":
            _make(root, present, old, backups)
            return True
        return present.is_same(old) or old.kind == "absent"
    except (OSError, ToolError):
        return False


def _make(root: Root, old: FileState, new: FileState, backups: Path | None) -> None:
    """Make one path what it is to be. Its directory is opened once, so a link swapped in since the check is not followed."""
    name = parts_of(new.path)[-1]
    if new.kind != "absent":
        _make_parents(root, new.path)
    try:
        with root.open_parent(new.path) as parent_fd:
            if old.kind == new.kind == "file":
                with root.open_file(new.path, parent_fd) as fd:
                    present = read_all(new.path, fd, MAX_STATE_BYTES)
                    if present != old.data:
                        raise ToolError(f"{new.path} changed on disk since it was read; read it again")
                    if old.data != new.data:
                        rewrite(parent_fd, name, fd, present, new.data, backups)
                if old.mode != new.mode:
                    _set_mode(parent_fd, name, new.mode)
                return
            _remove(parent_fd, name, old)
            _create(parent_fd, name, new)
            with (
                suppress(PermissionError),
                listing(parent_fd) as directory_fd,
            ):  # what may not be listed cannot be synced
                os.fsync(directory_fd)
    except FileNotFoundError:
        if new.kind != "absent":
            raise


def _set_mode(parent_fd: int, name: str, mode: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _remove(parent_fd: int, name: str, state: FileState) -> None:
    if state.kind == "directory":
        with suppress(OSError):  # something else was put into it
            os.rmdir(name, dir_fd=parent_fd)
    elif state.kind != "absent":
        os.unlink(name, dir_fd=parent_fd)


def _create(parent_fd: int, name: str, state: FileState) -> None:
    """Raises FileExistsError for a name that was taken since."""
    if state.kind == "link":
        os.symlink(os.fsdecode(state.data), name, dir_fd=parent_fd)
    elif state.kind == "directory":
        with suppress(FileExistsError):  # made meanwhile: its mode is not ours
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            _set_mode(parent_fd, name, state.mode)
    elif state.kind == "file":
        _create_file(parent_fd, name, state)


def _create_file(parent_fd: int, name: str, state: FileState) -> None:
    """Whole under a temporary name, then linked to its own, which takes the place of nothing."""
    temporary = f".holdfast-{secrets.token_hex(8)}.tmp"
    with os.fdopen(os.open(temporary, NEW, 0o600, dir_fd=parent_fd), "wb") as f:
        try:
            f.write(state.data)
            f.flush()
            os.fchmod(f.fileno(), state.mode)
            os.fsync(f.fileno())
            _take_name(parent_fd, temporary, name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent_fd)


def _take_name(parent_fd: int, temporary: str, name: str) -> None:
    try:
        os.link(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
    except OSError as e:
        if e.errno not in NO_HARD_LINKS:
            raise
        os.close(os.open(name, NEW, 0o600, dir_fd=parent_fd))  # fails where there is one
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)


def _make_parents(root: Root, path: str) -> None:
    """Directories on the way to `path` that are missing."""
    fd = os.dup(root.root_fd)
    try:
        for name in parts_of(path)[:-1]:
            with suppress(FileExistsError):
                os.mkdir(name, 0o777, dir_fd=fd)
            below_fd = os.open(name, PASSING, dir_fd=fd)
            os.close(fd)
            fd = below_fd
            root.check(fd)
    finally:
        os.close(fd)
