"""The tools `move` and `delete`: files, links and whole directories, within the workspace.

What they take away is recorded in the journal first, so the size of what one call takes is bounded.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.tools.errors import ToolError
from holdfast.tools.files import count
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Permission, Risk, Tool
from holdfast.tools.workspace.journal import FileState
from holdfast.tools.workspace.states import new_mode
from holdfast.tools.workspace.workspace import Change, Workspace, split_lines

MAX_LISTED = 50


class MoveArguments(Arguments):
    """`to` is the new path itself, which nothing may have yet."""

    path: str
    to: str


class DeleteArguments(Arguments):
    """A directory goes with all that is in it, and only if `recursive`."""

    path: str
    recursive: bool = False


@dataclass(frozen=True)
class Move:
    """`states` are all that moves, `made` the directories that are missing above the new place."""

    path: str
    to: str
    states: Sequence[FileState]
    made: Sequence[str]

    @property
    def moved(self) -> list[FileState]:
        return [replace(state, path=self.to + state.path.removeprefix(self.path)) for state in self.states]


def move_permission(args: MoveArguments, context: Context) -> Permission:
    """Shows where it goes from and to; refuses what would fail."""
    try:
        move = _planned_move(args, context)
        for state in [*move.states, *move.moved]:
            context.workspace.check_change(state.path)
    except ToolError as e:
        return Permission(Risk.EDIT, refusal=str(e))
    head = f"move {move.path} -> {move.to}{_what(move.states)}"
    return Permission(Risk.EDIT, (move.path, move.to), (head,), _digest(move.states))


def move(args: MoveArguments, context: Context) -> str:
    """Move it, and make the directories above the new place."""
    planned, workspace = _planned_move(args, context), context.workspace
    made = [FileState(path, "directory", new_mode(0o777)) for path in planned.made]
    workspace.move(planned.states, planned.moved, made)
    for old, new in zip(planned.states, planned.moved, strict=True):
        workspace.shown.rename(old.path, new.path)
    workspace.note_change(Change(planned.path, 0, 0, "moved", planned.to))
    return f"moved {planned.path} to {planned.to}{_what(planned.states)}"


def delete_permission(args: DeleteArguments, context: Context) -> Permission:
    """Shows what goes; refuses what would fail."""
    try:
        path, states = _planned_delete(args, context)
        for state in states:
            context.workspace.check_change(state.path)
    except ToolError as e:
        return Permission(Risk.EDIT, refusal=str(e))
    lines = [f"{state.path}{_size(state)}" for state in states[:MAX_LISTED]] if len(states) > 1 else []
    more = [f"(and {len(states) - MAX_LISTED} more)"] if len(states) > MAX_LISTED else []
    head = f"delete {path}{_what(states)}, -{_num_lines(states)}"
    return Permission(Risk.EDIT, (path,), (head, *lines, *more), _digest(states))


def delete(args: DeleteArguments, context: Context) -> str:
    """Delete it; a link, not what it leads to."""
    path, states = _planned_delete(args, context)
    workspace = context.workspace
    workspace.put(states, [FileState(state.path) for state in states])
    workspace.note_change(Change(path, 0, _num_lines(states), "deleted"))
    if workspace.state(path).kind != "absent":
        return f"deleted what was in {path}; the directory stays: something was put into it meanwhile"
    return f"deleted {path}{_what(states)}"


def _planned_move(args: MoveArguments, context: Context) -> Move:
    workspace = context.workspace
    path, to = workspace.resolve(args.path, follow=False), workspace.resolve(args.to, follow=False)
    states = _there(workspace, path, context)
    if path == to:
        raise ToolError(f"identical: {path} has this path already")
    if to.startswith(f"{path}/"):
        raise ToolError(f"{path} cannot be moved into itself, to {to}")
    target = workspace.state(to)
    if target.kind == "directory":
        raise ToolError(f"{to} is a directory; to move {path} into it, give the new path: {to}/{path.split('/')[-1]}")
    if target.kind != "absent":
        raise ToolError(f"{to} exists, and move overwrites nothing; delete it first, or give another path")
    return Move(path, to, states, workspace.missing_parents(to))


def _planned_delete(args: DeleteArguments, context: Context) -> tuple[str, list[FileState]]:
    path = context.workspace.resolve(args.path, follow=False)
    if path == ".":
        raise ToolError("the root of the workspace is not deleted by tools")
    if context.workspace.state(path).kind == "directory" and not args.recursive:
        raise ToolError(f"{path} is a directory; pass recursive=true to delete all that is in it")
    return path, _there(context.workspace, path, context)


def _there(workspace: Workspace, path: str, context: Context) -> list[FileState]:
    """All that is at the path. Raises ToolError where nothing is, or something else than was shown for approval."""
    states = workspace.states_below(path, context.cancelled)
    if not states:
        raise ToolError(f"no file or directory {path}")
    if context.permitted is not None and context.permitted.digest not in (None, _digest(states)):
        raise ToolError(f"stale: {path} changed on disk since it was shown for approval")
    return states


def _digest(states: Sequence[FileState]) -> int:
    """Of everything that they hold."""
    digest = hashlib.blake2b(digest_size=16)
    for state in states:
        for part in (os.fsencode(state.path), state.kind.encode(), state.data):
            digest.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(digest.digest(), "big")


def _what(states: Sequence[FileState]) -> str:
    num_files = sum(1 for state in states if state.kind != "directory")
    return f" ({count(num_files, 'file')})" if states[0].kind == "directory" else ""


def _size(state: FileState) -> str:
    return {"directory": "/", "link": " (link)"}.get(state.kind, f" ({count(len(state.data), 'byte')})")


def _num_lines(states: Sequence[FileState]) -> int:
    """Lines of all files that are text."""
    texts = (state.data for state in states if state.kind == "file" and b"\0" not in state.data)
    return sum(len(split_lines(data.decode(errors="replace"))) for data in texts)


MOVE = Tool(
    "move",
    "Move or rename a file or a directory within the workspace; makes missing directories, overwrites nothing.",
    MoveArguments,
    "moves files of the workspace",
    move_permission,
    threaded(move),
)
DELETE = Tool(
    "delete",
    "Delete a file or a link; a directory and all in it only with recursive=true.",
    DeleteArguments,
    "deletes files of the workspace",
    delete_permission,
    threaded(delete),
)
