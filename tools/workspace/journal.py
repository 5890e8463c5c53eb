"""What paths of a workspace are, and the seam through which each change of them is recorded before it is made.

Owns FileState and what a Journal promises. Must not know how states are read or put in place (put), nor where a journal lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class FileState:
    """What one path is. `path` is relative to the workspace, as `Root.resolve` gives it; `mode` its permission bits, 0 for what is
    absent; `data` a file's contents or a link's target, empty for a directory, whose files have states of their own."""

    path: str
    kind: Literal["absent", "file", "link", "directory"] = "absent"
    mode: int = 0
    data: bytes = b""

    def is_same(self, other: "FileState") -> bool:
        """Whether both have the same contents; permission bits that a person changed meanwhile are no reason to refuse."""
        return (self.kind, self.data) == (other.kind, other.data)


class Journal(Protocol):
    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        """Called once a call with all that it will change, before the first write; durable on return. Both have the same paths
        in the same order. Raises ToolError when it cannot be kept: then nothing is written."""
