"""The tools `read` and `edit`: numbered lines out, exact replacement in.

Owns their output formats. Must not know how a file is opened or made durable (workspace), nor where a text stands in it (matching).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import Field

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.matching import Matches, nearest_line
from holdfast.tools.preview import preview
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Permission, Risk, Tool, reads, unlisted
from holdfast.tools.walk.walk import source_entries
from holdfast.tools.workspace.workspace import MAX_TEXT_BYTES, TextFile, Workspace, change_of, split_lines

MAX_LINES_PER_READ = 200
MAX_LINE_CHARS = 500
MAX_COLUMN_CHARS = 4000  # of one line, when asked for it
MAX_NEIGHBOURHOOD_LINES = 6
MAX_LISTED_LINES = 20


class ReadArguments(Arguments):
    """Lines are counted from 1; `end` is included. A `column` above 1 asks for what follows in line `start` alone."""

    path: str
    start: int = Field(default=1, ge=1)
    end: int | None = Field(default=None, ge=1)
    column: int = unlisted(1)


class EditArguments(Arguments):
    """`all` replaces every match instead of the only one."""

    path: str
    old: str
    new: str
    all: bool = False


def read(args: ReadArguments, context: Context) -> str:
    """Lines `start` to `end` as `{n}|{text}`, at most 200; says how to go on when more remain."""
    file = open_text(context.workspace, args.path, context.cancelled)
    lines = split_lines(file.text)
    if args.end is not None and args.end < args.start:
        raise ToolError(f"end={args.end} is before start={args.start}")
    if lines and args.start > len(lines):
        raise ToolError(f"{file.path} has {count(len(lines), 'line')}; start={args.start} is past the end")
    context.workspace.note_shown(file)
    if not lines:
        return "(empty file)"
    if args.column > 1:
        return _rest_of_line(lines[args.start - 1], args.start, args.column)
    wanted_end = min(args.end or len(lines), len(lines))
    shown_end = min(wanted_end, args.start + MAX_LINES_PER_READ - 1)
    shown = _numbered(lines, args.start, shown_end)
    cut = next((n for n in range(args.start, shown_end + 1) if len(lines[n - 1]) > MAX_LINE_CHARS), None)
    if cut is not None:
        shown.append(_how_to_go_on(cut, len(lines[cut - 1]), MAX_LINE_CHARS + 1))
    if shown_end < wanted_end:
        shown.append(f"({len(lines)} lines; continue with start={shown_end + 1})")
    return "\n".join(shown)


@dataclass(frozen=True)
class Planned:
    """An edit that can be made: each match is replaced by `new`, which makes `text`."""

    file: TextFile
    matches: Matches
    new: str
    text: str

    @property
    def told(self) -> str:
        return f"{self.file.path}: {count(self.matches.num_apart(), 'replacement')}"


def edit_permission(args: EditArguments, context: Context) -> Permission:
    """Shows the lines that would change; refuses an edit that would fail."""
    try:
        planned = _planned(args, context)
        context.workspace.check_replaceable(planned.file)
    except ToolError as e:
        return Permission(Risk.EDIT, refusal=str(e))
    change = change_of(planned.file, planned.text)
    lines = preview(planned.file.text, ((start, end, planned.new) for start, end in planned.matches.places()))
    head = f"{planned.told}, +{change.added} -{change.removed}"
    return Permission(Risk.EDIT, (planned.file.path,), (head, *lines), planned.file.digest)


def edit(args: EditArguments, context: Context) -> str:
    """Replace `old` by `new` and show the new neighbourhood of the first change.

    A line end in `old` matches LF and CRLF; one in `new` becomes the file's own. Raises ToolError unless `old` matches once (or `all`).
    """
    planned = _planned(args, context)
    was_linked = context.workspace.replace(planned.file, planned.text)
    changed = _neighbourhood(planned.text, planned.matches.first, len(planned.new))
    if was_linked:
        changed.append(f"({planned.file.path} had another name, a hard link, which keeps the old contents)")
    return "\n".join([f"edited {planned.told}", *changed])


def _planned(args: EditArguments, context: Context) -> Planned:
    if not args.old:
        raise ToolError("old is empty; give the exact text to replace")
    if args.old == args.new:
        raise ToolError("old and new are the same; nothing to replace")
    if "\0" in args.new:
        raise ToolError("new has a NUL character; a text file cannot hold it")
    file = open_text(context.workspace, args.path, context.cancelled)
    if context.permitted is not None and context.permitted.digest not in (None, file.digest):
        raise ToolError(f"{file.path} changed on disk since the edit was shown for approval; read it again")
    context.workspace.check_fresh(file)
    matches = Matches(args.old, file.text)
    num_matches = matches.count()
    if not num_matches:
        raise ToolError(f"old text not found in {file.path}{_nearest_line(args.old, file.text)}")
    if num_matches > 1 and not args.all:
        times = f"{num_matches} times" if num_matches < matches.most else f"at least {num_matches} times"
        where = _listed_lines(matches.lines(MAX_LISTED_LINES + 1))
        raise ToolError(f"old text matches {times} in {file.path} ({where}); pass all=true or give more context")
    num_replaced, new = matches.num_apart(), _with_line_ends_of(file.text, args.new)
    num_chars = len(file.text) + num_replaced * (len(new) - len(args.old))
    if num_chars > max(MAX_TEXT_BYTES, len(file.text)):
        raise ToolError(f"{file.path} would grow to {num_chars} characters; the limit is {MAX_TEXT_BYTES}")
    return Planned(file, matches, new, matches.replaced(new))


def open_text(workspace: Workspace, path: str, cancellation: Cancellation) -> TextFile:
    """Read a text file named by the model, or a kept output; a wrong name raises ToolError with the likeliest right one."""
    if (output := workspace.kept_output(path)) is not None:
        return TextFile(path, output, has_bom=False, digest=0)
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


def _rest_of_line(line: str, number: int, column: int) -> str:
    if column > len(line):
        raise ToolError(f"line {number} has {count(len(line), 'character')}; column={column} is past its end")
    shown = line[column - 1 : column - 1 + MAX_COLUMN_CHARS]
    rest = column + len(shown)
    more = [_how_to_go_on(number, len(line), rest)] if rest <= len(line) else []
    return "\n".join([f"{number}|{shown}", *more])


def _how_to_go_on(number: int, num_chars: int, column: int) -> str:
    return f"(line {number} has {num_chars} characters; continue it with start={number}, column={column})"


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " …(cut)"


def _with_line_ends_of(text: str, new: str) -> str:
    mostly_crlf = text.count("\r\n") * 2 > text.count("\n")
    return new.replace("\r\n", "\n").replace("\n", "\r\n" if mostly_crlf else "\n")


def _listed_lines(numbers: Sequence[int]) -> str:
    listed = ", ".join(str(n) for n in numbers[:MAX_LISTED_LINES])
    more = ", …" if len(numbers) > MAX_LISTED_LINES else ""
    return f"{'line' if len(numbers) == 1 else 'lines'} {listed}{more}"


def _nearest_line(old: str, text: str) -> str:
    found = nearest_line(old, text)
    return f"; line {found[0]} is: {_cut(found[1])}" if found else ""


def _neighbourhood(text: str, start: int, num_new_chars: int) -> list[str]:
    lines = split_lines(text)
    first = text.count("\n", 0, start) + 1
    last = text.count("\n", 0, start + max(num_new_chars - 1, 0)) + 1
    begin, end = max(first - 1, 1), min(last + 1, len(lines))
    return _numbered(lines, begin, min(end, begin + MAX_NEIGHBOURHOOD_LINES - 1))


READ = Tool(
    "read",
    "Show numbered lines of a file, at most 200 per call.",
    ReadArguments,
    "reads one file of the workspace",
    reads,
    threaded(read),
)
EDIT = Tool(
    "edit",
    "Replace old by new in a file. old must match exactly once unless all is true; an identifier matches only as a whole.",
    EditArguments,
    "changes one file of the workspace; /undo takes it back",
    edit_permission,
    threaded(edit),
)
