"""What a walk left out, and how the user and the model are told.

Must not know why a file was left out.
"""

from dataclasses import dataclass, field

MAX_NAMED = 3


@dataclass
class Skipped:
    """Files that were not looked into, by the reason; and what git ignores, which is no one's fault."""

    reasons: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def add(self, reason: str, path: str) -> None:
        self.reasons.setdefault(reason, []).append(path)

    def lines(self) -> list[str]:
        """`(3 files skipped: 1 not UTF-8: a.txt, 2 over 2 MB: b.txt, c.txt)`, or no line when there is nothing to say."""
        if not self.reasons:
            return []
        total = sum(map(len, self.reasons.values()))
        parts = [f"{len(paths)} {reason}: {_named(paths)}" for reason, paths in self.reasons.items()]
        return [f"({total} file{'s' if total > 1 else ''} skipped: {', '.join(parts)})"]

    def ignored_lines(self) -> list[str]:
        """What to say of ignored files when nothing was found in the others."""
        if not self.ignored:
            return []
        return [f"(ignored, not searched: {_named(self.ignored)}; give one as path to search it)"]


def _named(paths: list[str]) -> str:
    """The first few of them."""
    return ", ".join(paths[:MAX_NAMED]) + (" ..." if len(paths) > MAX_NAMED else "")
