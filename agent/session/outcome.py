"""What a turn did on disk: the sum of what its tools report, never what the model says of it.

Must not know how it is shown.
"""

import json

from holdfast.agent.events import Changes, CommandEnd, Event, FileChange, NotDone, ToolCallMade, ToolResultGiven
from holdfast.agent.session.left_behind import EDITORS, paths_of

Call = tuple[str, str]  # name, and path or command


class Outcome:
    """Of one turn, whose events it is given in order."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}  # by id
        self._files: dict[str, FileChange] = {}  # by path
        self._moves: list[FileChange] = []
        self._not_done: dict[Call, NotDone] = {}
        self._num_commands = 0
        self._failed: dict[str, CommandEnd] = {}  # by command line
        self.last_command_failed = False

    def add(self, event: Event) -> None:
        if isinstance(event, ToolCallMade):
            self._calls[event.id] = (event.name, _subject(event.arguments))
        elif isinstance(event, ToolResultGiven):
            self._add_result(event, self._calls.get(event.id, ("", "")))

    def changes(self) -> Changes | None:
        """What the turn changed; None if it changed nothing, was not asked to, and ran no command."""
        files = (*self._files.values(), *self._moves)
        if not files and not self._not_done and not self._num_commands:
            return None
        return Changes(
            files=files,
            not_done=tuple(self._not_done.values()),
            num_commands=self._num_commands,
            failed=tuple(self._failed.values()),
            can_undo=bool(files),
        )

    def _add_result(self, result: ToolResultGiven, call: Call) -> None:
        for change in result.changed:
            self._add_change(change)
        self._not_done.pop(call, None)  # what failed may be tried again
        if result.refused or (call[0] in EDITORS and not result.ok):
            self._not_done[call] = NotDone(name=call[0], path=call[1], why="refused" if result.refused else "failed")
        if result.command is not None:
            self._add_command(result.command, result.ok)

    def _add_command(self, command: CommandEnd, ok: bool) -> None:
        self._num_commands += 1
        self.last_command_failed = not ok
        self._failed.pop(command.command, None)
        if not ok:
            self._failed[command.command] = command

    def _add_change(self, change: FileChange) -> None:
        """To what the turn did to the same path before: all of it together, as it is on disk now."""
        before = self._files.pop(change.path, None)
        if change.what == "moved":
            if before is not None and before.what == "created":
                self._files[change.to] = before.model_copy(update={"path": change.to})
                return
            if before is not None:
                self._files[change.path] = before  # told beside the move
            self._moves.append(change)
            return
        if before is None:
            self._files[change.path] = change
        elif change.what == "deleted":
            if before.what != "created":  # what the turn itself made is gone without a trace
                self._files[change.path] = change
        else:
            what = "changed" if before.what == "deleted" else before.what
            added, removed = before.added + change.added, before.removed + change.removed
            self._files[change.path] = FileChange(path=change.path, added=added, removed=removed, what=what)


def _subject(arguments: str) -> str:
    """The path that a call names first, or its command."""
    if paths := paths_of(arguments):
        return paths[0]
    try:
        return str(json.loads(arguments)["command"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
