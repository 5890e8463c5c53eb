"""The workspace: the text of its files, which contents the model was shown, and what was changed.

Must not know what a tool does with a file, nor why it was allowed, nor how a path is kept inside (root).
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.workspace.journal import FileState, Journal
from holdfast.tools.workspace.put import move, put
from holdfast.tools.workspace.root import Root, read_all
from holdfast.tools.workspace.shown import Lines, Shown
from holdfast.tools.workspace.states import missing_parents, state_of, states_below

MAX_TEXT_BYTES = 16 * 2**20
BOM = "\ufeff"


@dataclass(frozen=True)
class TextFile:
    """A file as read: `text` has no byte order mark and keeps its own line ends; `digest` is of the bytes on disk."""

    path: str
    text: str
    has_bom: bool
    digest: int


@dataclass(frozen=True)
class Change:
    """What was done to a file or directory, and how many lines are new in it and gone from it; `to` is where it was moved."""

    path: str
    added: int
    removed: int
    what: Literal["changed", "created", "moved", "deleted"] = "changed"
    to: str = ""


class Workspace(Root):
    """A directory that the tools are confined to, see `Root`."""

    def __init__(self, root: str | os.PathLike[str], own: Iterable[Path] = (), backups: Path | None = None) -> None:
        """`backups` is where old contents are kept while a file is written in place; the rest, and errors, as `Root`."""
        super().__init__(root, own)
        self.journal: Journal | None = None  # set once the log of its session is open
        self._backups = backups
        self.kept_output = _none_kept  # the text of an output of a command by its name, None for a name that means none
        self.shown = Shown()
        self._changes: list[Change] = []

    def read_text(self, path: str) -> TextFile:
        """Read a resolved `path` as UTF-8 text; raises as `read_bytes`, and ToolError for anything but UTF-8 text."""
        return decode(path, self.read_bytes(path, MAX_TEXT_BYTES))

    def note_shown(self, file: TextFile, lines: Iterable[Lines] = ()) -> None:
        """Remember that the model was shown this state of the file, and these lines of it whole."""
        self.shown.note(file.path, file.digest, file.text, lines)

    def note_change(self, change: Change) -> None:
        self._changes.append(change)

    def take_changes(self) -> list[Change]:
        """What was written since the last time."""
        changes, self._changes = self._changes, []
        return changes

    def check_fresh(self, file: TextFile) -> None:
        """Raise ToolError when the model was last shown another state of the file; a file never shown is fine."""
        seen = self.shown.get(file.path)
        if seen is not None and seen.digest != file.digest:
            raise ToolError(f"{file.path} changed on disk since it was read; read it again")

    def put(self, before: Sequence[FileState], after: Sequence[FileState], journal: Journal | None = None) -> None:
        """Make `after` of `before`, recorded in the journal first, or in another one: see `put`. Every change of files goes
        through here."""
        put(self, before, after, journal or self.journal, self._backups)

    def move(self, old: Sequence[FileState], new: Sequence[FileState], made: Sequence[FileState]) -> None:
        """Rename, recorded in the journal first: see `put.move`."""
        move(self, old, new, made, self.journal)

    def state(self, path: str) -> FileState:
        """What the resolved `path` is now: see `state_of`."""
        return state_of(self, path)

    def states_below(self, path: str, cancelled: Cancellation) -> list[FileState]:
        return states_below(self, path, cancelled)

    def missing_parents(self, path: str) -> list[str]:
        return missing_parents(self, path)

    def replace(self, old: TextFile, text: str, lines: Iterable[Lines] = ()) -> bool:
        """Write `text` (own line ends, no byte order mark) in place of `old`, durably, and note it as shown, with these `lines`.

        The new file takes the name by rename (see `rewrite`), so another hard link keeps the old contents; returns whether there is
        one. Raises ToolError when the file is read-only, is none that tools edit (`guard`), or no longer has the contents of `old`.
        """
        before, num_links = self._replaceable(old)
        data = ((BOM if old.has_bom else "") + text).encode()
        self.put([before], [replace(before, data=data)])
        self.note_shown(TextFile(old.path, text, old.has_bom, digest_of(data)), lines)
        self.note_change(change_of(old, text))
        return num_links > 1

    def check_replaceable(self, old: TextFile) -> None:
        """Raise what `replace` would before it writes."""
        self._replaceable(old)

    def _replaceable(self, old: TextFile) -> tuple[FileState, int]:
        """The file with the contents of `old`, and how many names it has."""
        self.check_change(old.path)
        with self.open_parent(old.path) as parent_fd, self.open_file(old.path, parent_fd) as fd:
            status, data = os.fstat(fd), read_all(old.path, fd, MAX_TEXT_BYTES)
        mode = stat.S_IMODE(status.st_mode)
        if digest_of(data) != old.digest:
            raise ToolError(f"{old.path} changed on disk since it was read; read it again")
        if not mode & 0o222:
            raise ToolError(f"{old.path} is read-only; its mode is {mode:o}")
        return FileState(old.path, "file", mode, data), status.st_nlink


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
    return TextFile(path, text.removeprefix(BOM), text.startswith(BOM), digest_of(data))


def split_lines(text: str) -> list[str]:
    """Lines without their ends (LF or CRLF); a final line end does not start another line."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def digest_of(data: bytes) -> int:
    """A number: what is text in an event is found by `recall`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=16).digest(), "big")


def change_of(old: TextFile, text: str) -> Change:
    """What `text` in place of `old` is."""
    before, after = Counter(old.text.splitlines()), Counter(text.splitlines())
    return Change(old.path, (after - before).total(), (before - after).total())
