"""What a rewind leaves behind: files that its turns changed on disk, and branches.

Rewinding goes back in what was said, never on disk: so the files are named.
"""

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

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


def files_line(files: list[str]) -> str | None:
    """A line that says which files stay as they are; None without any."""
    if not files:
        return None
    named = ", ".join(one_line(file, PROMPT_CHARS) for file in files[:MAX_NAMED])
    more = f" and {len(files) - MAX_NAMED} more" if len(files) > MAX_NAMED else ""
    return f"what it left behind changed {named}{more}: the files stay as they are on disk"


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
