"""A journal in memory, and what a directory holds."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from holdfast.tools import Workspace
from holdfast.tools.workspace.journal import FileState

Entry = tuple[str, int, bytes]  # kind, mode, contents


class MemoryJournal:
    """Keeps states in memory, and sees that nothing was written before."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.changes: list[tuple[list[FileState], list[FileState]]] = []

    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        assert all(self.workspace.state(state.path).is_same(state) for state in before)
        self.changes.append((list(before), list(after)))

    def undo(self) -> None:
        """Everything, the last change first."""
        self.workspace.journal = None
        for before, after in reversed(self.changes):
            self.workspace.put(after, before)


def tree(root: Path) -> dict[str, Entry]:
    """Every path below."""
    found: dict[str, Entry] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[str(path.relative_to(root))] = ("link", 0, os.fsencode(os.readlink(path)))
            else:
                is_readable = stat.S_ISREG(mode) and os.access(path, os.R_OK)
                found[str(path.relative_to(root))] = ("other", mode, path.read_bytes() if is_readable else b"")
    return found
