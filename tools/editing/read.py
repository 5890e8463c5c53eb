"""The tool `read` in its full form: numbered lines, and which of them were shown is remembered."""

from pydantic import Field

from holdfast.tools.editing.numbered import numbered, whole
from holdfast.tools.errors import ToolError
from holdfast.tools.files import MAX_COLUMN_CHARS, MAX_LINE_CHARS, count, open_text
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Tool, reads, unlisted
from holdfast.tools.workspace.workspace import split_lines

MAX_LINES = 1000
MAX_CHARS = 60_000  # of one output; whole lines


class ReadArguments(Arguments):
    """Lines are counted from 1; `to_line` is included. A `column` above 1 asks for what follows in `from_line` alone."""

    path: str
    from_line: int = Field(default=1, ge=1)
    to_line: int | None = Field(default=None, ge=1)
    column: int = unlisted(1)


def read(args: ReadArguments, context: Context) -> str:
    """The lines as `{n}|{text}`; says how to go on when more remain."""
    file = open_text(context.workspace, args.path, context.cancelled)
    lines, first = split_lines(file.text), args.from_line
    if args.to_line is not None and args.to_line < first:
        raise ToolError(f"to_line={args.to_line} is before from_line={first}")
    if lines and first > len(lines):
        raise ToolError(f"{file.path} has {count(len(lines), 'line')}; from_line={first} is past the end")
    if not lines:
        context.workspace.note_shown(file)
        return "(empty file)"
    if args.column > 1:
        return _rest_of_line(lines[first - 1], first, args.column)
    wanted = min(args.to_line or len(lines), len(lines))
    last = _fitting(lines, first, min(wanted, first + MAX_LINES - 1))
    context.workspace.note_shown(file, whole(lines, [(first, last)]))
    shown = numbered(lines, first, last)
    long = next((n for n in range(first, last + 1) if len(lines[n - 1]) > MAX_LINE_CHARS), None)
    if long is not None:
        shown.append(_how_to_go_on(long, len(lines[long - 1]), MAX_LINE_CHARS + 1))
    if last < wanted:
        shown.append(f"({len(lines)} lines; continue with from_line={last + 1})")
    return "\n".join(shown)


def _fitting(lines: list[str], first: int, last: int) -> int:
    num_chars = 0
    for n in range(first, last + 1):
        num_chars += min(len(lines[n - 1]), MAX_LINE_CHARS)
        if num_chars > MAX_CHARS and n > first:
            return n - 1
    return last


def _rest_of_line(line: str, number: int, column: int) -> str:
    if column > len(line):
        raise ToolError(f"line {number} has {count(len(line), 'character')}; column={column} is past its end")
    rest = column + MAX_COLUMN_CHARS
    more = [_how_to_go_on(number, len(line), rest)] if rest <= len(line) else []
    return "\n".join([f"{number}|{line[column - 1 : rest - 1]}", *more])


def _how_to_go_on(number: int, num_chars: int, column: int) -> str:
    return f"(line {number} has {num_chars} characters; continue it with from_line={number}, column={column})"


READ = Tool(
    "read",
    f"Show numbered lines of a text file, at most {MAX_LINES} per call. Lines must have been read before they are edited by number.",
    ReadArguments,
    "reads one file of the workspace",
    reads,
    threaded(read),
)
