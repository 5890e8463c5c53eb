"""The tool `write`: a new file, or other contents for a file that the model has read whole."""

from dataclasses import dataclass
from itertools import takewhile

from holdfast.tools.editing.places import with_line_ends_of
from holdfast.tools.errors import ToolError
from holdfast.tools.files import count
from holdfast.tools.preview import preview
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Permission, Risk, Tool
from holdfast.tools.workspace.journal import FileState
from holdfast.tools.workspace.states import new_mode
from holdfast.tools.workspace.workspace import (
    MAX_TEXT_BYTES,
    Change,
    TextFile,
    Workspace,
    change_of,
    decode,
    split_lines,
)


class WriteArguments(Arguments):
    """`content` is all that the file is to hold."""

    path: str
    content: str


@dataclass(frozen=True)
class Planned:
    """`old` is the file that is there, None for a new one."""

    path: str
    old: TextFile | None
    text: str
    digest: int  # of what is there


def write_permission(args: WriteArguments, context: Context) -> Permission:
    """Shows the lines that go and come; refuses what would fail."""
    workspace = context.workspace
    try:
        planned = _planned(args, context)
        if planned.old is not None:
            workspace.check_replaceable(planned.old)
        else:
            workspace.check_change(planned.path)
            workspace.missing_parents(planned.path)
    except ToolError as e:
        return Permission(Risk.EDIT, refusal=str(e))
    if planned.old is None:
        head = f"{planned.path}: new file, +{len(split_lines(planned.text))}"
        lines = preview("", [(0, 0, planned.text)])
    else:
        change = change_of(planned.old, planned.text)
        head = f"{planned.path}: replaced, +{change.added} -{change.removed}"
        lines = preview(planned.old.text, [_different(planned.old.text, planned.text)])
    return Permission(Risk.EDIT, (planned.path,), (head, *lines), planned.digest)


def write(args: WriteArguments, context: Context) -> str:
    """Make the file, and the directories above it that are missing, or replace its contents."""
    planned, workspace = _planned(args, context), context.workspace
    num_lines = len(split_lines(planned.text))
    if planned.old is not None:
        change = change_of(planned.old, planned.text)
        was_linked = workspace.replace(planned.old, planned.text, [(1, num_lines)])
        told = [f"wrote {planned.path}: replaced, +{change.added} -{change.removed}"]
        if was_linked:
            told.append(f"({planned.path} had another name, a hard link, which keeps the old contents)")
        return "\n".join(told)
    made = workspace.missing_parents(planned.path)
    new = FileState(planned.path, "file", new_mode(0o666), planned.text.encode())
    workspace.put([*map(FileState, made), FileState(new.path)], [*_directories(made), new])
    workspace.note_shown(decode(new.path, new.data), [(1, num_lines)])
    workspace.note_change(Change(planned.path, num_lines, 0, "created"))
    return f"wrote {planned.path}: new file, {count(num_lines, 'line')}"


def _directories(paths: list[str]) -> list[FileState]:
    return [FileState(path, "directory", new_mode(0o777)) for path in paths]


def _planned(args: WriteArguments, context: Context) -> Planned:
    if "\0" in args.content:
        raise ToolError("content has a NUL character; a text file cannot hold it")
    if len(args.content.encode()) > MAX_TEXT_BYTES:
        raise ToolError(f"content has more than {MAX_TEXT_BYTES} bytes; write it in parts, or with a program")
    workspace = context.workspace
    path = workspace.resolve(args.path)
    try:
        old = workspace.read_text(path)
    except FileNotFoundError:
        old = None
    digest = 0 if old is None else old.digest
    if context.permitted is not None and context.permitted.digest not in (None, digest):
        raise ToolError(f"stale: {path} changed on disk since it was shown for approval; read it again")
    if old is None:
        if path == "." or args.path.endswith("/"):
            raise ToolError(f"{args.path} names a directory; give the path of a file")
        return Planned(path, None, args.content, digest)
    _check_shown(workspace, old)
    text = with_line_ends_of(old.text, args.content)
    if text == old.text:
        raise ToolError(f"identical: {path} has this content already; nothing to write")
    return Planned(path, old, text, digest)


def _check_shown(workspace: Workspace, old: TextFile) -> None:
    """Raise ToolError unless the model was shown all that it would overwrite."""
    seen, num_lines = workspace.shown.get(old.path), len(split_lines(old.text))
    if seen is None or (seen.digest == old.digest and not seen.has(1, num_lines)):
        what = "was never shown" if seen is None or not seen.lines else "was not shown whole"
        raise ToolError(f"never read: {old.path} exists and {what}; read all of it before you replace it, or use edit")
    if seen.digest != old.digest:
        raise ToolError(f"stale: {old.path} changed on disk since it was read; read it again")


def _different(old: str, new: str) -> tuple[int, int, str]:
    """The stretch of whole lines in which both differ."""
    gone, come = old.split("\n"), new.split("\n")
    before = _num_same(gone, come)
    after = _num_same(gone[before:][::-1], come[before:][::-1])
    start = sum(len(line) + 1 for line in gone[:before])
    kept = sum(len(line) + 1 for line in gone[len(gone) - after :])
    return min(start, len(old)), max(len(old) - kept, min(start, len(old))), new[start : max(len(new) - kept, start)]


def _num_same(one: list[str], other: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


WRITE = Tool(
    "write",
    "Make a new file with this content, and the directories above it; or replace all of a file, which must have been read whole before.",
    WriteArguments,
    "makes or replaces one file of the workspace",
    write_permission,
    threaded(write),
)
