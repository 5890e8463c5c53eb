"""Lines with their numbers, as the model reads them and names them again. Owns which of them count as shown."""

from collections.abc import Iterable, Sequence

from holdfast.tools.files import MAX_LINE_CHARS
from holdfast.tools.workspace.shown import Lines


def numbered(lines: Sequence[str], first: int, last: int) -> list[str]:
    """`{n}|{text}` of each; a long line is cut."""
    return [f"{n}|{_cut(lines[n - 1])}" for n in range(first, last + 1)]


def whole(lines: Sequence[str], stretches: Iterable[Lines]) -> list[Lines]:
    """The lines of these stretches that `numbered` shows uncut."""
    return [(n, n) for first, last in stretches for n in range(first, last + 1) if len(lines[n - 1]) <= MAX_LINE_CHARS]


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " …(cut)"
