"""Promises of a turn that is cut: the log stays well formed, and what was done is known."""

import asyncio
import itertools
import threading
from contextlib import aclosing
from typing import Any

import pytest

from holdfast.agent.events import Answer, ApprovalNeeded, Notice, PrefillProgress, Text, TurnDone
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.session import UNREAD
from holdfast.tools import Context, ToolError
from holdfast.tools.files import EDIT
from holdfast.tools.threads import threaded
from tests.agent.scripted_engine import HANG, Reply, calls, says
from tests.agent.session.world import (
    World,
    cancelled_turn,
    fed_text,
    log_text,
    logged,
    set_work,
    shape,
    turn,
)

pytestmark = pytest.mark.anyio


EOS = "<｜end▁of▁sentence｜>"


async def test_a_turn_cut_inside_a_message_goes_on_well_formed(world: World) -> None:
    cut: Reply = [("I was about to", False), HANG]
    async with world.session(cut, says("Yes?")) as session:
        await cancelled_turn(session, lambda event: isinstance(event, Text))
        assert session.log.turns() == [(1, "interrupted")]
        assert log_text(session).endswith("</think>I was about to")
        assert [e.payload.get("delta") for e in session.log.events() if e.type == "text"] == ["I was about to"]
        events = await turn(session, "go on")
        assert shape(events) == ["text", "turn_done"]
        assert f"I was about to{EOS}<｜User｜>go on<｜Assistant｜></think>Yes?{EOS}" in log_text(session)
        assert session.log.ids.tolist() == session.window.seq.token_ids


async def test_closing_the_events_early_ends_the_turn_like_a_cancel(world: World) -> None:
    async with world.session(says("a long answer of many tokens"), says("Yes?")) as session:
        async with aclosing(session.turn("hello")) as events:
            async for event in events:
                if isinstance(event, Text):
                    break
        assert session.log.turns() == [(1, "interrupted")]
        assert session.log.ids.tolist() == session.window.seq.token_ids
        assert shape(await turn(session)) == ["text", "turn_done"]


@pytest.mark.parametrize("is_killed", [False, True])
async def test_an_interrupted_prompt_without_an_answer_is_not_read_later(world: World, is_killed: bool) -> None:
    async with world.session(says("Yes?"), [HANG], says("Here."), says("Bye.")) as session:
        await turn(session)
        held = session.log.ids.tolist()
        if is_killed:  # between the two writes that end such a turn
            session._take_back_unread = lambda: False  # type: ignore[method-assign]
        await cancelled_turn(session, lambda event: isinstance(event, PrefillProgress))
        if not is_killed:
            assert session.log.ids.tolist() == held
            events = await turn(session, "again")
            assert f"Yes?{EOS}<｜User｜>again<｜Assistant｜></think>Here.{EOS}" in log_text(session)
            assert session.log.ids.tolist() == session.window.seq.token_ids
    async with world.session(says("Here.")) as session:
        if is_killed:
            assert session.log.ids.tolist() == held
            events = await turn(session, "again")
            assert [e.message for e in events if isinstance(e, Notice)] == [UNREAD]
        assert isinstance(events[-1], TurnDone) and events[-1].turn == 3
        assert session.log.turns() == [(1, "done"), (2, "interrupted"), (3, "done")]
        assert [prompt for _, prompt in await session.turns()] == ["hello", "hello", "again"]
        for number, length in ((2, len(held)), (1, len(held)), (0, 0)):
            await session.rewind(number)
            assert len(session.log.ids) == length and session.num_turns == number


async def test_a_call_that_has_begun_keeps_its_outcome_when_the_turn_is_cut(world: World) -> None:
    async with world.session(calls("edit", path="a.py", old="fox", new="cat"), says("Done before.")) as session:
        begun = asyncio.Event()

        async def slow(arguments: Any, context: Context) -> str:
            begun.set()
            while True:  # it does not end early, and what it does then is kept
                await asyncio.sleep(0.01)
                try:
                    context.cancelled.check()
                except ToolError:
                    return await EDIT.work(arguments, context)

        set_work(session, "edit", slow)
        await cancelled_turn(session, lambda event: event.type == "tool_call", begun)
        assert "cat" in (world.workspace / "a.py").read_text()
        assert logged(session) == ["user", "tool_call", "tool_result", "notice"]
        await turn(session, "did it work?")
        assert "<tool_result>edited a.py: 1 replacement" in fed_text(session)


async def test_a_tool_that_would_run_for_ever_ends_when_the_turn_is_cut(world: World) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def endless(arguments: Any, context: Context) -> str:
        loop.call_soon_threadsafe(begun.set)
        return str(sum(context.cancelled.checked(itertools.count())))

    async with world.session(calls("search", text="fox"), says("Done.")) as session:
        set_work(session, "search", threaded(endless))
        await cancelled_turn(session, lambda event: event.type == "tool_call", begun)
        assert not [thread for thread in threading.enumerate() if "holdfast-tool" in thread.name]
        assert logged(session) == ["user", "tool_call", "tool_result", "notice"]
        await turn(session, "did it work?")
        assert "<tool_result>error: cancelled" in fed_text(session)


async def test_a_call_of_which_the_outcome_is_lost_is_never_run_again(world: World) -> None:
    async def ask(call: ApprovalNeeded) -> Answer:
        await asyncio.Event().wait()
        return Answer(approve=True)

    edit = calls("edit", path="a.py", old="fox", new="cat")
    async with world.session(edit, policy=Policy.ASK, ask=ask) as session:
        await cancelled_turn(session, lambda event: isinstance(event, ApprovalNeeded))
    async with world.session(says("I see."), policy=Policy.ALL) as session:
        await turn(session, "well?")
        assert "error: the turn was interrupted before this call gave a result" in fed_text(session)
        assert "fox" in (world.workspace / "a.py").read_text()
