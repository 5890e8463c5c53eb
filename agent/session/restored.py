"""What an undo, a redo or a rewind did to files: a value that front ends show and servers send.

Must not know how it came about: clients of a server have it without the tools.
"""

from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["conversation", "files", "both"]  # of a session, to be rewound


@dataclass(frozen=True)
class Kept:
    """A file that an undo leaves as it is, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Restored:
    """What an undo, a redo or a rewind did to files: those put back, those in conflict, and those that a rewind of the
    conversation alone leaves as its turns changed them. `turn` is the one that was undone or redone."""

    turn: int | None = None
    files: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    left: tuple[str, ...] = ()

    def value(self) -> dict[str, Any]:
        """For HTTP and `--json`."""
        kept = [{"path": kept.path, "why": kept.why} for kept in self.kept]
        return {"turn": self.turn, "files": list(self.files), "kept": kept, "files_changed": list(self.left)}

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Restored":
        """The inverse of `value`."""
        kept = tuple(Kept(kept["path"], kept["why"]) for kept in value["kept"])
        return cls(value["turn"], tuple(value["files"]), kept, tuple(value["files_changed"]))
