"""Promises of approvals in a turn: who is asked about which call, and that what was asked is what runs."""

import json

import pytest

from holdfast.agent.events import Answer, ApprovalNeeded
from holdfast.agent.permissions.modes import Policy
from tests.agent.scripted_engine import calls, raw, says
from tests.agent.session.world import World, fed_text, shape, turn

pytestmark = pytest.mark.anyio


BROKEN = raw(
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="edit">\n<｜DSML｜parameter name="path" string="true">a.py'
)


@pytest.mark.parametrize("policy", [Policy.ASK, Policy.READ])
async def test_an_edit_is_refused_when_nobody_can_allow_it(world: World, policy: Policy) -> None:
    edit = calls("edit", path="a.py", old="fox", new="cat")
    async with world.session(edit, calls("read", path="a.py"), says("I may not."), policy=policy) as session:
        events = await turn(session)
        assert shape(events) == ["tool_call", "tool_result", "tool_call", "tool_result", "text", "turn_done"]
        assert "error: edit is not allowed" in fed_text(session, 1)
        assert "fox" in (world.workspace / "a.py").read_text()


@pytest.mark.parametrize("answer", [True, False])
async def test_the_person_decides(world: World, answer: bool) -> None:
    asked: list[ApprovalNeeded] = []

    async def ask(call: ApprovalNeeded) -> Answer:
        asked.append(call)
        assert "fox" in (world.workspace / "a.py").read_text()
        return Answer(approve=answer)

    edit = calls("edit", path="a.py", old="fox", new="cat")
    async with world.session(edit, says("ok"), policy=Policy.ASK, ask=ask) as session:
        events = await turn(session)
        assert shape(events) == ["tool_call", "approval_needed", "tool_result", "text", "turn_done"]
        assert json.loads(asked[0].arguments) == {"path": "a.py", "old": "fox", "new": "cat"}
        assert ("cat" in (world.workspace / "a.py").read_text()) is answer
        assert ("the user refused" in fed_text(session)) is not answer


async def test_nobody_is_asked_about_a_call_that_cannot_run(world: World) -> None:
    async def ask(call: ApprovalNeeded) -> Answer:
        raise AssertionError("asked")

    async with world.session(calls("edit", path="a.py"), BROKEN, says("ok"), policy=Policy.ASK, ask=ask) as session:
        assert shape(await turn(session))[-1] == "turn_done"


async def test_nobody_is_asked_about_an_edit_that_would_fail(world: World) -> None:
    async def ask(call: ApprovalNeeded) -> Answer:
        raise AssertionError("asked")

    (world.workspace / "a.py").chmod(0o444)
    missing = calls("edit", path="a.py", old="wolf", new="cat")
    locked = calls("edit", path="a.py", old="fox", new="cat")
    async with world.session(missing, locked, says("ok"), policy=Policy.ASK, ask=ask) as session:
        assert "approval_needed" not in shape(await turn(session))
        assert "<tool_result>error: old text not found in a.py" in fed_text(session, 1)
        assert "<tool_result>error: a.py is read-only" in fed_text(session, 2)


async def test_what_was_asked_is_what_runs(world: World) -> None:
    file, asked = world.workspace / "a.py", []

    async def ask(call: ApprovalNeeded) -> Answer:
        asked.append(call)
        file.write_text("def fox():\n    return fox(2)\n")
        return Answer(approve=True)

    edit = calls("edit", path="a.py", old="fox", new="cat", all=True)
    async with world.session(edit, says("ok"), policy=Policy.ASK, ask=ask) as session:
        await turn(session)
        assert asked[0].preview == ("a.py: 1 replacement, +1 -1", "1 -def fox():", "1 +def cat():")
        assert "error: a.py changed on disk since the edit was shown for approval; read it again" in fed_text(session)
        kept = next(e.payload for e in session.log.events() if e.type == "approval_needed")
        assert set(kept) == {"id", "name", "arguments"}
    assert file.read_text() == "def fox():\n    return fox(2)\n"
