"""The tools `read` and `edit`: numbered lines out, exact replacement in.

Owns their output formats and the matching rule of `edit`. Must not know how a file is opened or made durable (workspace).
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pydantic import Field

from .tool import Arguments, Cancellation, ToolError
from .walk import source_entries
from .workspace import TextFile, Workspace, split_lines

MAX_LINES_PER_READ = 200
MAX_LINE_CHARS = 500
MAX_NEIGHBOURHOOD_LINES = 6
MAX_LISTED_LINES = 20


class ReadArguments(Arguments):
    """Lines are counted from 1; `end` is included."""

    path: str
    start: int = Field(default=1, ge=1)
    end: int | None = Field(default=None, ge=1)


class EditArguments(Arguments):
    """`all` replaces every match instead of the only one."""

    path: str
    old: str
    new: str
    all: bool = False


def read(workspace: Workspace, args: ReadArguments, cancellation: Cancellation) -> str:
    """Lines `start` to `end` as `{n}|{text}`, at most 200; says how to go on when more remain."""
    file = open_text(workspace, args.path, cancellation)
    lines = split_lines(file.text)
    if args.end is not None and args.end < args.start:
        raise ToolError(f"end={args.end} is before start={args.start}")
    if lines and args.start > len(lines):
        raise ToolError(f"{file.path} has {count(len(lines), 'line')}; start={args.start} is past the end")
    workspace.note_shown(file)
    if not lines:
        return "(empty file)"
    wanted_end = min(args.end or len(lines), len(lines))
    shown_end = min(wanted_end, args.start + MAX_LINES_PER_READ - 1)
    shown = _numbered(lines, args.start, shown_end)
    if shown_end < wanted_end:
        shown.append(f"({len(lines)} lines; continue with start={shown_end + 1})")
    return "\n".join(shown)


def edit(workspace: Workspace, args: EditArguments, cancellation: Cancellation) -> str:
    """Replace `old` by `new` and show the new neighbourhood of the first change.

    A line end in `old` matches LF and CRLF; one in `new` becomes the file's own. Raises ToolError unless `old` matches once (or `all`).
    """
    if not args.old:
        raise ToolError("old is empty; give the exact text to replace")
    if args.old == args.new:
        raise ToolError("old and new are the same; nothing to replace")
    if "\0" in args.new:
        raise ToolError("new has a NUL character; a text file cannot hold it")
    file = open_text(workspace, args.path, cancellation)
    workspace.check_fresh(file)
    pattern = _pattern(args.old)
    starts = _match_starts(pattern, file.text)
    if not starts:
        raise ToolError(f"old text not found in {file.path}{_nearest_line(args.old, file.text)}")
    if len(starts) > 1 and not args.all:
        where = _listed_lines(file.text, starts)
        raise ToolError(
            f"old text matches {len(starts)} times in {file.path} ({where}); pass all=true or give more context"
        )
    new = _with_line_ends_of(file.text, args.new)
    text, num_replaced = pattern.subn(lambda match: new, file.text)
    workspace.replace(file, text)
    changed = _neighbourhood(text, starts[0], len(new))
    return "\n".join([f"edited {file.path}: {count(num_replaced, 'replacement')}", *changed])


def open_text(workspace: Workspace, path: str, cancellation: Cancellation) -> TextFile:
    """Read a text file named by the model; a wrong name raises ToolError with the likeliest right one."""
    resolved = workspace.resolve(path)
    try:
        return workspace.read_text(resolved)
    except FileNotFoundError:
        raise ToolError(f"no file {resolved}{_suggestion(workspace, resolved, cancellation)}") from None


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 line`, `2 lines`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _suggestion(workspace: Workspace, path: str, cancellation: Cancellation) -> str:
    paths = [entry.path for entry in source_entries(workspace, cancellation)]
    name = PurePosixPath(path).name
    same_name = [other for other in paths if PurePosixPath(other).name == name]
    close = difflib.get_close_matches(path, same_name, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(path, cancellation.checked(paths), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _numbered(lines: Sequence[str], start: int, end: int) -> list[str]:
    return [f"{n}|{_cut(lines[n - 1])}" for n in range(start, end + 1)]


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " …(cut)"


def _pattern(old: str) -> re.Pattern[str]:
    if re.fullmatch(r"\w+", old):
        return re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")
    return re.compile(r"(?:\r\n|(?<!\r)\n)".join(re.escape(line) for line in old.replace("\r\n", "\n").split("\n")))


def _match_starts(pattern: re.Pattern[str], text: str) -> list[int]:
    """Starts of all matches, overlapping ones too: text that overlaps itself is as ambiguous as text found twice."""
    starts = []
    match = pattern.search(text)
    while match:
        starts.append(match.start())
        match = pattern.search(text, match.start() + 1)
    return starts


def _with_line_ends_of(text: str, new: str) -> str:
    mostly_crlf = text.count("\r\n") * 2 > text.count("\n")
    return new.replace("\r\n", "\n").replace("\n", "\r\n" if mostly_crlf else "\n")


def _listed_lines(text: str, starts: Sequence[int]) -> str:
    numbers = sorted({text.count("\n", 0, start) + 1 for start in starts})
    listed = ", ".join(str(n) for n in numbers[:MAX_LISTED_LINES])
    more = ", …" if len(numbers) > MAX_LISTED_LINES else ""
    return f"{'line' if len(numbers) == 1 else 'lines'} {listed}{more}"


def _nearest_line(old: str, text: str) -> str:
    """Where the longest line of `old` that exists in the file, spaces around it aside, can be seen."""
    lines = split_lines(text)
    wanted = sorted({line.strip() for line in old.split("\n")} - {""}, key=lambda line: (-len(line), line))
    for part in wanted:
        for n, line in enumerate(lines, start=1):
            if part in line:
                return f"; line {n} is: {_cut(line)}"
    return ""


def _neighbourhood(text: str, start: int, num_new_chars: int) -> list[str]:
    lines = split_lines(text)
    first = text.count("\n", 0, start) + 1
    last = text.count("\n", 0, start + max(num_new_chars - 1, 0)) + 1
    begin, end = max(first - 1, 1), min(last + 1, len(lines))
    return _numbered(lines, begin, min(end, begin + MAX_NEIGHBOURHOOD_LINES - 1))
