"""What paths of a workspace are now, as states that a journal keeps.

Owns how much one state, and the states of one call, may hold. Must not know why they are read.
"""

import os
import re
import stat
from pathlib import Path

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.workspace.directories import listing
from holdfast.tools.workspace.journal import FileState
from holdfast.tools.workspace.names import to_text
from holdfast.tools.workspace.root import Root, parts_of, read_all

MAX_STATE_BYTES = 64 * 2**20  # of one file, and of all files of one call: more is not kept, and so not changed
MAX_STATES = 2000
MAX_NEW_DIRECTORIES = 30


def state_of(root: Root, path: str) -> FileState:
    """What `path` is now; its last name is not followed. Raises ToolError for what is neither file, link nor directory, or too large."""
    if path == ".":
        raise ToolError("the root of the workspace is not changed by tools")
    name = parts_of(path)[-1]
    try:
        with root.open_parent(path) as parent_fd:
            mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
            bits = stat.S_IMODE(mode)
            if stat.S_ISLNK(mode):
                return FileState(path, "link", bits, os.fsencode(os.readlink(name, dir_fd=parent_fd)))
            if stat.S_ISDIR(mode):
                with root.open_parent(f"{path}/x"):  # refuses one of our own
                    return FileState(path, "directory", bits)
            if not stat.S_ISREG(mode):
                raise ToolError(f"{path} is not a regular file")
            with root.open_file(path, parent_fd) as fd:
                return FileState(path, "file", bits, read_all(path, fd, MAX_STATE_BYTES))
    except FileNotFoundError:
        return FileState(path)


def states_below(root: Root, path: str, cancelled: Cancellation) -> list[FileState]:
    """`path` and all below it, directories before what is in them; none when nothing is there. Raises ToolError when it is too much."""
    first = state_of(root, path)
    found: list[FileState] = [first] if first.kind != "absent" else []
    num_bytes = len(first.data)
    for state in found:  # grows
        cancelled.check()
        if state.kind != "directory":
            continue
        with root.open_parent(f"{state.path}/x") as fd, listing(fd) as listing_fd:
            names = sorted(os.listdir(listing_fd))
        for name in names:
            root.check_denied(f"{state.path}/{to_text(name)}")
            child = state_of(root, f"{state.path}/{to_text(name)}")
            num_bytes += len(child.data)
            found.append(child)
            if len(found) > MAX_STATES or num_bytes > MAX_STATE_BYTES:
                raise ToolError(
                    f"{path} holds more than {MAX_STATES} files or {MAX_STATE_BYTES} bytes: too much to keep for undo; take it in parts"
                )
    return found


def missing_parents(root: Root, path: str) -> list[str]:
    """Directories above `path` that are not there, the first one first. Raises ToolError when something else has such a name."""
    names = path.split("/")[:-1]
    missing: list[str] = []
    for depth in range(1, len(names) + 1):
        above = "/".join(names[:depth])
        kind = "absent" if missing else state_of(root, above).kind
        if kind not in ("absent", "directory"):
            raise ToolError(f"{above} is a file, not a directory: nothing can be below it")
        missing += [above] if kind == "absent" else []
    if len(missing) > MAX_NEW_DIRECTORIES:
        raise ToolError(f"{len(missing)} directories would have to be made; the limit is {MAX_NEW_DIRECTORIES}")
    return missing


def new_mode(most: int) -> int:
    """The mode of a new file or directory: `most` without the umask, which a process learns only from the system or by setting it."""
    try:
        umask = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        umask = None
    return most & ~(int(umask[1], 8) if umask else 0o022)
