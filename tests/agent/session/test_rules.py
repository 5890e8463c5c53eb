"""Promises of permission: rules beat modes, denials beat rules, and an answer may say why or always."""

from dataclasses import replace
from typing import Any

import pytest

from holdfast.agent.events import Answer, ApprovalNeeded, ToolResultGiven
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.permissions.rules import rule_of
from holdfast.agent.permissions.rules_file import RulesFile
from holdfast.tools import Context, Permission, Risk
from tests.agent.scripted_engine import calls, says
from tests.agent.session.world import World, fed_text, turn

pytestmark = pytest.mark.anyio


def remembered(world: World, *rules: str) -> None:
    for rule in rules:
        RulesFile(world.root / "home").add(str(world.workspace), rule_of(rule))


FOX = calls("edit", path="a.py", old="fox", new="cat")


async def test_a_rule_allows_without_asking_and_a_denial_beats_every_mode(world: World) -> None:
    remembered(world, 'allow: edit "*.py"')
    async with world.session(FOX, says("ok"), policy=Policy.READ) as session:
        assert [e.refused for e in await turn(session) if isinstance(e, ToolResultGiven)] == [False]
        assert "cat" in (world.workspace / "a.py").read_text()
    remembered(world, 'deny: edit "a.*"')
    back = calls("edit", path="a.py", old="cat", new="fox")
    async with world.session(back, says("ok"), policy=Policy.ALL) as session:
        assert [e.refused for e in await turn(session) if isinstance(e, ToolResultGiven)] == [True]
        assert """edit is not allowed: the user's rule deny: edit "a.*" forbids it""" in fed_text(session)
    assert "cat" in (world.workspace / "a.py").read_text()


async def test_a_denied_file_reaches_no_tool_under_any_name(world: World) -> None:
    (world.workspace / ".env").write_text("SECRET = 'swordfish'\n")
    (world.workspace / "alias.py").symlink_to(".env")
    (world.workspace / "sub").mkdir()
    remembered(world, 'deny: read ".env*/"')
    attempts = [calls("read", path=path) for path in (".env", "./.env", "sub/../.env", "alias.py", ".ENV", ".env/")]
    attempts += [calls("search", text="swordfish"), calls("search", text="swordfish", path=".env")]
    attempts += [calls("outline", path="alias.py"), calls("find_symbol", name="SECRET")]
    attempts += [calls("edit", path=path, old="swordfish", new="x") for path in (".env", "alias.py")]
    async with world.session(*attempts, says("ok"), policy=Policy.ALL) as session:
        results = [event for event in await turn(session) if isinstance(event, ToolResultGiven)]
        assert len(results) == len(attempts)
        assert not any("'swordfish'" in result.output or "SECRET =" in result.output for result in results)
        refused = [result.refused for result in results]
        assert refused[0] and refused[2] and refused[3] and refused[-1] and refused[-2]
    assert (world.workspace / ".env").read_text() == "SECRET = 'swordfish'\n"


async def test_nothing_runs_on_rules_that_cannot_be_read(world: World) -> None:
    remembered(world, 'allow: edit "*"')
    file = RulesFile(world.root / "home").path
    file.write_text(file.read_text() + "deny read .env\n")
    async with world.session(calls("read", path="a.py"), FOX, says("ok"), policy=Policy.ALL) as session:
        results = [event for event in await turn(session) if isinstance(event, ToolResultGiven)]
        assert [result.refused for result in results] == [True, True]
        assert "line 6: deny read .env is no rule" in results[0].output and "a.py" not in results[0].output
    assert "fox" in (world.workspace / "a.py").read_text()


async def test_a_plan_changes_nothing_whatever_rules_allow(world: World) -> None:
    remembered(world, 'allow: edit "*"')
    async with world.session(calls("read", path="a.py"), FOX, says("My plan."), policy=Policy.PLAN) as session:
        results = [event for event in await turn(session) if isinstance(event, ToolResultGiven)]
        assert [result.refused for result in results] == [False, True]
        assert "edit is not allowed in plan mode: read, and answer with a plan" in results[1].output
    assert "fox" in (world.workspace / "a.py").read_text()


async def test_always_lets_edits_run_for_this_session_and_why_not_reaches_the_model(world: World) -> None:
    answers = [Answer(approve=False, reason="use\nwolf instead"), Answer(approve=True, always=True)]
    asked: list[ApprovalNeeded] = []

    async def ask(call: ApprovalNeeded) -> Answer:
        asked.append(call)
        return answers[len(asked) - 1]

    back = calls("edit", path="a.py", old="cat", new="fox")
    async with world.session(FOX, FOX, back, says("ok"), policy=Policy.ASK, ask=ask) as session:
        await turn(session)
        assert [call.always_mode for call in asked] == ["edit", "edit"] and session.toolbox.approvals.policy == "edit"
        assert "error: the user refused this call of edit: use wolf instead" in fed_text(session, 1)
    assert "fox" in (world.workspace / "a.py").read_text()


async def test_always_writes_the_rule_that_was_shown_and_the_next_session_keeps_to_it(world: World) -> None:
    def permission(args: Any, context: Context) -> Permission:
        return Permission(Risk.EXECUTE, (args.text,))

    async def ran(args: Any, context: Context) -> str:
        return f"ran {args.text}"

    async def ask(call: ApprovalNeeded) -> Answer:
        asked.append(call.always_rule)
        return Answer(approve=len(asked) == 1, always=len(asked) == 1)

    asked: list[str] = []
    lines = ("make test", "make test", "make test; rm x", "make clean")
    for replies in (
        [calls("shell", text=line) for line in lines[:1]],
        [calls("shell", text=line) for line in lines[1:]],
    ):
        async with world.session(*replies, says("ok"), policy=Policy.ASK, ask=ask) as session:
            shell = replace(session.toolbox.tools["search"], name="shell", permission=permission, work=ran)
            session.toolbox.tools = {**session.toolbox.tools, "shell": shell}
            await turn(session)
    assert asked == ['allow: shell "make test"', "", 'allow: shell "make clean"']
    assert [str(rule) for rule in RulesFile(world.root / "home").load(world.workspace).rules] == asked[:1]
