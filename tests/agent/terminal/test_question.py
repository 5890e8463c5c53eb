"""Promises of the question whether a call may run: it shows all that would happen, and answers mean what they say."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast.agent.events import ApprovalNeeded
from holdfast.agent.terminal.question import SHOWN_LINES, call_lines
from tests.agent.place import Place
from tests.agent.scripted_engine import calls, says
from tests.agent.terminal.test_render import READY

EDIT = calls("edit", path="a.py", old="fox", new="cat")
BACK = calls("edit", path="a.py", old="cat", new="fox")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def asked(arguments: str, *preview: str, rule: str = "") -> ApprovalNeeded:
    return ApprovalNeeded(id="1", name="shell", arguments=arguments, preview=preview, always_rule=rule)


def test_a_command_is_shown_to_the_last_character() -> None:
    call = asked(
        '{"command": "ls\\r\\u001b[2K\\u202ex\\u200b\\u00a0y"}', "in src", "sandbox: full", rule='allow: shell "ls\x1b"'
    )
    assert call_lines(call) == [
        "shell wants to run with",
        "  command: ls\\r\\x1b[2K\\u202ex\\u200b\\xa0y",
        "  in src",
        "  sandbox: full",
        '  (always, in this workspace: allow: shell "ls\\x1b")',
    ]


def test_a_long_change_is_cut_and_said_to_be_until_it_is_wanted_whole() -> None:
    call = asked('{"path": "a.py"}', "a.py: +200 -0", *(f"{n} +line {n}" for n in range(200)))
    short, whole = call_lines(call), call_lines(call, is_whole=True)
    assert len(short) == SHOWN_LINES + 2 and short[-1] == f"  ({201 - SHOWN_LINES} more lines: v shows them)"
    assert whole[1:] == ["  path: a.py", *(f"  {line}" for line in call.preview)]


@pytest.mark.parametrize("is_attached", [False, True])
def test_every_answer_means_what_it_says(place: Place, is_attached: bool) -> None:
    place.script(EDIT, says("Refused."), EDIT, BACK, says("Done."), EDIT, says("Again."))
    if is_attached:
        place.serve()
    screen = place.chat(own_engine=not is_attached)
    screen.type("edit it\r")
    screen.expect("edit wants to change")
    screen.expect("a.py: 1 replacement, +1 -1")
    screen.expect("1 +cat = 1")
    screen.expect("always: mode edit for this session")
    screen.expect("allow? [y/N]")
    screen.type("v\r")
    screen.expect("old: fox")
    screen.expect("allow? [y/N]")
    screen.type("t\r")
    screen.expect("why not?")
    screen.type("wolves only\r")
    screen.expect("the user refused this call of edit: wolves only")
    screen.expect("Refused.")
    screen.expect(READY)
    assert place.file.read_text() == "fox = 1\n"
    screen.type("do it\r")
    screen.expect("allow? [y/N]")
    screen.type("a\r")
    screen.expect("always: mode edit for this session? [y/N]")
    screen.type("n\r")
    screen.expect("allow? [y/N]")
    screen.type("a\r")
    screen.expect("always: mode edit for this session? [y/N]")
    screen.type("y\r")
    screen.expect("Done.")
    screen.expect(READY)
    assert place.file.read_text() == "fox = 1\n"  # there and back, asked once
    screen.type("/mode\r")
    screen.expect("mode edit; there are plan, ask, read, edit, all")
    screen.expect(READY)
    screen.type("and again\r")
    screen.expect("Again.")
    assert place.file.read_text() == "cat = 1\n"


def test_a_plan_is_carried_out_after_a_question_in_the_mode_from_before(place: Place) -> None:
    place.script(EDIT, says("I would edit it."), EDIT, says("Done.")).serve()
    screen = place.chat("--approve", "edit")
    screen.type("/mode plan\r")
    screen.expect("mode plan")
    screen.expect(READY)
    screen.type("edit it\r")
    screen.expect("not allowed in plan mode")
    screen.expect("carry out the plan? [y/N]")
    assert place.file.read_text() == "fox = 1\n"
    screen.type("y\r")
    screen.expect("mode edit")
    screen.expect("Done.")
    assert place.file.read_text() == "cat = 1\n"
    assert place.prompts() == ["edit it", "Carry out the plan."]
