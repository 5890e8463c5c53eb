"""Where an edit lands in a file, or why it does not, with the closest real text.

Owns both ways to name a place, exact text and line numbers, and the kinds of refusal: not found, ambiguous, identical, stale, never
read. Must not know how a file is written.
"""

from bisect import bisect_right
from dataclasses import dataclass

from pydantic import Field

from holdfast.tools.editing.numbered import numbered
from holdfast.tools.errors import ToolError
from holdfast.tools.files import MAX_LISTED_LINES, count
from holdfast.tools.matching import Matches, nearest_line
from holdfast.tools.tool import Arguments
from holdfast.tools.workspace.workspace import MAX_TEXT_BYTES, TextFile, Workspace, split_lines

MAX_HINT_LINES = 12
MAX_HINT_CHARS = 2**20  # of a file in which a text with other spaces is looked for


class Edit(Arguments):
    """Exact `old` becomes `new`, once or `all`; or lines `from_line` to `to_line` become `new` (`to_line` = `from_line` - 1:
    `new` comes before `from_line`)."""

    old: str | None = None
    new: str | None = None
    all: bool = False
    from_line: int | None = Field(default=None, ge=1)
    to_line: int | None = Field(default=None, ge=0)


class EditArguments(Arguments):
    """One edit, or several `edits`, each as it would stand alone: all are of the file as it is now."""

    path: str
    old: str | None = None
    new: str | None = None
    all: bool = False
    from_line: int | None = Field(default=None, ge=1)
    to_line: int | None = Field(default=None, ge=0)
    edits: list[Edit] | None = Field(default=None, min_length=1, max_length=100)

    def each(self) -> list[Edit]:
        """Raises ToolError for one edit and several in the same call."""
        one = (self.old, self.new, self.from_line, self.to_line)
        if self.edits is None:
            return [Edit(old=self.old, new=self.new, all=self.all, from_line=self.from_line, to_line=self.to_line)]
        if self.all or any(value is not None for value in one):
            raise ToolError("give one edit, or several in edits, not both")
        return self.edits


@dataclass(frozen=True)
class Place:
    """`start` to `end` of a file's text becomes `new`."""

    start: int
    end: int
    new: str


class Lines:
    """Where the lines of a text begin."""

    def __init__(self, text: str) -> None:
        self.text, self.texts = text, split_lines(text)
        self._starts = [0]
        while (at := text.find("\n", self._starts[-1])) >= 0:
            self._starts.append(at + 1)

    def start(self, number: int) -> int:
        """Of a line, or of what follows the last one."""
        return self._starts[number - 1] if number <= len(self._starts) else len(self.text)

    def number(self, position: int) -> int:
        return bisect_right(self._starts, position)


def places_of(edit: Edit, file: TextFile, lines: Lines, workspace: Workspace) -> list[Place]:
    """Where one edit lands, in order. Raises ToolError with the kind of refusal and the way out."""
    if edit.new is None:
        raise ToolError("new is missing; give the text that is to be there (empty: nothing)")
    if "\0" in edit.new:
        raise ToolError("new has a NUL character; a text file cannot hold it")
    if edit.from_line is not None or edit.to_line is not None:
        if edit.old is not None or edit.all:
            raise ToolError("an edit names its place by old or by from_line and to_line, not by both")
        return [_range_place(edit, file, lines, workspace)]
    if edit.old is None:
        raise ToolError("give old, the exact text to replace, or from_line and to_line")
    seen = workspace.shown.get(file.path)
    if seen is not None and seen.digest != file.digest:
        raise ToolError(f"stale: {file.path} changed on disk since it was read; read it again")
    return _exact_places(edit.old, edit.new, edit.all, file, lines)


def _exact_places(old: str, new: str, is_all: bool, file: TextFile, lines: Lines) -> list[Place]:
    if not old:
        raise ToolError("old is empty; give the exact text to replace, or from_line and to_line")
    if old.replace("\r\n", "\n") == new.replace("\r\n", "\n"):
        raise ToolError("identical: old and new are the same; nothing to replace")
    matches = Matches(old, file.text)
    num_matches = matches.count()
    if not num_matches:
        raise ToolError(f"not found: old is not in {file.path}{_closest(old, lines)}")
    if num_matches > 1 and not is_all:
        times = f"{num_matches} times" if num_matches < matches.most else f"at least {num_matches} times"
        numbers = matches.lines(MAX_LISTED_LINES + 1)
        listed = ", ".join(map(str, numbers[:MAX_LISTED_LINES])) + (", …" if len(numbers) > MAX_LISTED_LINES else "")
        raise ToolError(
            f"ambiguous: old is {times} in {file.path}, at {'line' if len(numbers) == 1 else 'lines'} {listed};"
            " give more of the text around it, or pass all=true"
        )
    new = with_line_ends_of(file.text, new)
    num_chars = len(file.text) + matches.num_apart() * (len(new) - len(old))
    if num_chars > max(MAX_TEXT_BYTES, len(file.text)):
        raise ToolError(f"{file.path} would grow to {num_chars} characters; the limit is {MAX_TEXT_BYTES}")
    return [Place(start, end, new) for start, end in matches.places()]


def _range_place(edit: Edit, file: TextFile, lines: Lines, workspace: Workspace) -> Place:
    num_lines = len(lines.texts)
    if edit.from_line is None:
        raise ToolError("from_line is missing; give the first line to replace")
    first, last = edit.from_line, edit.from_line if edit.to_line is None else edit.to_line
    if last < first - 1:
        raise ToolError(f"to_line={last} is before from_line={first}; to insert before a line, to_line is one less")
    if last > num_lines or first > num_lines + 1:
        raise ToolError(f"{file.path} has {count(num_lines, 'line')}; lines {first} to {last} are not all there")
    _check_lines(first, last, file, lines, workspace)
    assert edit.new is not None
    place = _lines_place(first, last, edit.new, lines)
    if file.text[place.start : place.end] == place.new:
        raise ToolError("identical: these lines are as new says already; nothing to replace")
    return place


def _check_lines(first: int, last: int, file: TextFile, lines: Lines, workspace: Workspace) -> None:
    """Raise ToolError unless the model saw these lines (for an insertion, one beside it), and they are the same still."""
    named = f"line {first}" if first == last else f"lines {first} to {last}" if last > first else f"line {last}"
    seen = workspace.shown.get(file.path)
    beside = [(n, n) for n in (first - 1, first) if 1 <= n <= len(lines.texts)]
    needed = [(first, last)] if last >= first else beside
    if seen is None or (needed and not any(seen.has(*stretch) for stretch in needed)):
        raise ToolError(f"never read: {named} of {file.path} was not shown; read it, then edit")
    if seen.digest == file.digest:
        return
    if not workspace.shown.still_are(file.path, file.text, first, last):
        raise ToolError(
            f"stale: {file.path} changed on disk since {named} was shown, or its lines moved; read it again"
        )


def _lines_place(first: int, last: int, new: str, lines: Lines) -> Place:
    """Whole lines. One line end at the end of `new` ends its last line; a file without one at its end stays without."""
    text, start, end = lines.text, lines.start(first), lines.start(last + 1)
    new = with_line_ends_of(text, new)
    line_end = "\r\n" if "\r\n" in new or (text.count("\r\n") * 2 > text.count("\n")) else "\n"
    if new and not new.endswith("\n"):
        new += line_end
    is_open_end = end == len(text) and bool(text) and not text.endswith("\n")
    if not is_open_end:
        return Place(start, end, new)
    if first > len(lines.texts):  # after the last line, which has no line end
        return Place(start, end, line_end + new.removesuffix(line_end))
    if not new and start:
        start -= 2 if text[:start].endswith("\r\n") else 1
    return Place(start, end, new.removesuffix(line_end))


def with_line_ends_of(text: str, new: str) -> str:
    """`new` with the line ends that most lines of `text` have."""
    mostly_crlf = text.count("\r\n") * 2 > text.count("\n")
    return new.replace("\r\n", "\n").replace("\n", "\r\n" if mostly_crlf else "\n")


def _closest(old: str, lines: Lines) -> str:
    """The real text that `old` probably means, with its line numbers, if there is any."""
    wanted = split_lines(old.replace("\r\n", "\n"))
    if spaced := _other_spaces(wanted, lines):
        last = min(spaced + len(wanted) - 1, len(lines.texts), spaced + MAX_HINT_LINES - 1)
        return "\n".join(["; with other spaces or tabs it is:", *numbered(lines.texts, spaced, last)])
    found = nearest_line(old, lines.text)
    if found is None:
        return "; read the file, then copy the text from it"
    at = next((n for n, line in enumerate(wanted) if line.strip() and line.strip() in found[1]), 0)
    first = max(1, found[0] - min(at, MAX_HINT_LINES // 2))
    last = min(len(lines.texts), max(found[0], first + min(len(wanted), MAX_HINT_LINES) - 1))
    return "\n".join([f"; the closest text is at line {found[0]}:", *numbered(lines.texts, first, last)])


def _other_spaces(wanted: list[str], lines: Lines) -> int | None:
    """Number of the first line from which on the lines are the wanted ones but for spaces."""
    words = ["".join(line.split()) for line in wanted]
    while words and not words[0]:
        words.pop(0)
    while words and not words[-1]:
        words.pop()
    if not words or len(lines.text) > MAX_HINT_CHARS:
        return None
    there = ["".join(line.split()) for line in lines.texts]
    at = -1
    for _ in range(MAX_LISTED_LINES):
        try:
            at = there.index(words[0], at + 1)
        except ValueError:
            return None
        if there[at : at + len(words)] == words:
            return at + 1
    return None
