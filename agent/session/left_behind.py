"""What a rewind or an undo leaves behind, in lines: files that it put back, that stay as they are, and branches."""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from holdfast.agent.session.restored import Part, Restored
from holdfast.agent.terminal.sanitize import one_line
from holdfast.memory import BranchInfo, LoggedEvent

EDITORS = ("edit", "write", "move", "delete")  # the tools that change files, which their `path` names
UNKNOWN_OUTCOME = "error: the turn was interrupted before this call gave a result; it may or may not have taken effect"
PROMPT_CHARS = 70
MAX_NAMED = 8
CALLS = ("tool_call", "tool_result")  # the events that `changed_files` reads


def changed_files(events: Iterable[LoggedEvent]) -> list[str]:
    """Paths that calls of these events have changed, in order; a call without a known result may have."""
    paths: dict[str, list[str]] = {}  # by id of the call
    for event in events:
        payload = event.payload
        if event.type == "tool_call" and payload["name"] in EDITORS:
            paths[payload["id"]] = paths_of(payload["arguments"])
        elif event.type == "tool_result" and payload["output"] != UNKNOWN_OUTCOME:
            changed = [path for change in payload.get("changed", ()) for path in (change["path"], change.get("to", ""))]
            if changed or not payload["ok"]:
                paths[payload["id"]] = changed
    return [path for path in dict.fromkeys(chain.from_iterable(paths.values())) if path]


def paths_of(arguments: str) -> list[str]:
    """The paths that a call of an editor names; unchecked JSON."""
    try:
        values = json.loads(arguments)
        return [str(values[name]) for name in ("path", "to") if name in values]
    except (ValueError, TypeError, RecursionError):
        return []


def rewound_lines(restored: Restored, part: Part) -> list[str]:
    """What a rewind did to files."""
    if part == "conversation":
        stay = f"what it left behind changed {_named(restored.left)}: the files stay as they are on disk"
        return [stay] if restored.left else []
    back = f"put back as they were then: {_named(restored.files)} · /redo takes it back"
    none = ["no file had to be put back"] if part == "files" and not restored.kept else []
    return [*([back] if restored.files else none), *kept_lines(restored)]


def undone_lines(restored: Restored) -> list[str]:
    """What an undo did."""
    back = f"as before turn {restored.turn}: {_named(restored.files)} · /redo takes it back"
    return [back if restored.files else f"no file of turn {restored.turn} was put back", *kept_lines(restored)]


def redone_lines(restored: Restored) -> list[str]:
    """What a redo did."""
    again = f"put in place again: {_named(restored.files)}"
    return [again if restored.files else "no file was put in place again", *kept_lines(restored)]


def kept_lines(restored: Restored) -> list[str]:
    """A line for each file that an undo left as it is."""
    lines = [f"{one_line(kept.path, PROMPT_CHARS)} {kept.why}" for kept in restored.kept[:MAX_NAMED]]
    more = len(restored.kept) - MAX_NAMED
    return [*lines, f"and {more} more stay as they are"] if more > 0 else lines


def _named(files: Sequence[str]) -> str:
    named = ", ".join(one_line(file, PROMPT_CHARS) for file in files[:MAX_NAMED])
    return f"{named} and {len(files) - MAX_NAMED} more" if len(files) > MAX_NAMED else named


def branch_value(branch: BranchInfo, own_events: Iterable[LoggedEvent]) -> dict[str, Any]:
    """A branch for `--json`; `prompt` is the first after it leaves its parent."""
    prompts = (event.payload["text"] for event in own_events if event.type == "user")
    return {
        "id": branch.id,
        "parent": branch.parent_id,
        "parent_turn": branch.parent_turn,
        "turns": branch.last_turn,
        "tokens": branch.num_tokens,
        "is_current": branch.is_current,
        "prompt": next(prompts, ""),
    }


def branch_value_of(branch: dict[str, Any]) -> dict[str, Any]:
    """The same of a branch of `SessionCatalog.tree`, as a server sends it."""
    turns = branch["turns"]
    last = turns[-1]["number"] if turns else branch["parent_turn"]
    names = ("id", "parent", "parent_turn", "tokens", "is_current")
    return {**{name: branch[name] for name in names}, "turns": last, "prompt": turns[0]["prompt"] if turns else ""}


def branch_line(branch: dict[str, Any]) -> str:
    """The same for a person."""
    origin = f", from turn {branch['parent_turn']} of branch {branch['parent']}" if branch["parent"] else ""
    prompt = f": {one_line(branch['prompt'], PROMPT_CHARS)}" if branch["prompt"] else ""
    mark = "*" if branch["is_current"] else " "
    return f"{mark} branch {branch['id']}, {branch['turns']} turns, {branch['tokens']:,} tokens{origin}{prompt}"
