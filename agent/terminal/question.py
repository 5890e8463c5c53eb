"""The question whether a call may run: all that it would do, and the answers to choose from.

Nothing of the call is shown but through `sanitize`. Must not know sessions, nor what follows from an answer.
"""

import json
import re

from rich.console import Console

from holdfast.agent.events import Answer, ApprovalNeeded
from holdfast.agent.permissions.modes import Mode, Policy
from holdfast.agent.terminal.keyboard import YES_OR_NO, Keyboard
from holdfast.agent.terminal.sanitize import exact

DIFF_LINE = re.compile(r"\d+ ([-+])")
STYLES = {"-": "red", "+": "green"}
SHOWN_LINES = 60
WORDS = {**YES_OR_NO, "a": "always", "always": "always", "t": "why", "v": "whole"}


async def ask_person(keyboard: Keyboard, mode: Mode, call: ApprovalNeeded) -> Answer:
    """Show the call and ask. An answer that sets a mode sets it in `mode`, for later turns. Ctrl-C ends the turn."""
    console = Console(stderr=True, highlight=False)
    _show(console, call_lines(call))
    always = "a always, " if always_line(call) else ""
    words = WORDS if always else {word: meaning for word, meaning in WORDS.items() if meaning != "always"}
    hint = f"y, n, {'a, ' if always else ''}t or v"
    while True:
        match await keyboard.choose(f"allow? [y/N] {always}t no and why, v whole: ", words, hint):
            case "yes":
                return Answer(approve=True)
            case "no":
                return Answer(approve=False)
            case "why":
                return Answer(approve=False, reason=await keyboard.text("why not? "))
            case "whole":
                _show(console, call_lines(call, is_whole=True))
            case "always" if await keyboard.allows(f"{always_line(call)}? [y/N] "):
                if call.always_mode:
                    mode.set(Policy(call.always_mode))
                return Answer(approve=True, always=True)


def always_line(call: ApprovalNeeded) -> str:
    """What the answer `always` does; empty where a call offers nothing."""
    if call.always_rule:
        return exact(f"always, in this workspace: {call.always_rule}")
    return f"always: mode {exact(call.always_mode)} for this session" if call.always_mode else ""


def call_lines(call: ApprovalNeeded, is_whole: bool = False) -> list[str]:
    """The call to the last character. Where changed lines are to be seen, the arguments are for `is_whole`."""
    has_diff = any(DIFF_LINE.match(line) for line in call.preview[1:])
    head = exact(f"{call.name} wants to {'change' if has_diff else 'run with'}")
    given = [] if has_diff and not is_whole else exact(_indented(call.arguments)).split("\n")
    lines = [*given, *map(exact, call.preview)]
    num_more = 0 if is_whole else len(lines) - SHOWN_LINES
    shown = lines[:SHOWN_LINES] if num_more > 0 else lines
    more = [f"  ({num_more} more lines: v shows them)"] if num_more > 0 else []
    always = [f"  ({always_line(call)})"] if always_line(call) else []
    return [head, *(f"  {line}" for line in shown), *more, *always]


def _show(console: Console, lines: list[str]) -> None:
    console.print(lines[0], style="yellow", markup=False)
    for line in lines[1:]:
        changed = DIFF_LINE.match(line.strip())
        console.print(line, style=STYLES[changed.group(1)] if changed else None, markup=False, soft_wrap=True)


def _indented(arguments: str) -> str:
    """Arguments one under the other, texts with their own line ends."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return "\n".join(line.replace("\n", "\n    ") for line in lines)
