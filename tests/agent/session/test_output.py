"""Promises of what a call puts out while it runs: it is told at once, in order, and only its result is kept."""

import itertools
import threading
import time
from contextlib import aclosing
from typing import Any

import pytest

from holdfast.agent.events import ToolOutput
from holdfast.tools import Context
from holdfast.tools.threads import threaded
from tests.agent.scripted_engine import calls, says
from tests.agent.session.world import World, logged, set_work, shape, turn

pytestmark = pytest.mark.anyio


async def test_what_a_running_call_puts_out_is_told_before_its_result_and_not_logged(world: World) -> None:
    def loud(arguments: Any, context: Context) -> str:
        for number in range(3):
            context.emit(f"line {number}\n")
        return "3 lines"

    async with world.session(calls("search", text="fox"), says("Done.")) as session:
        set_work(session, "search", threaded(loud))
        events = await turn(session)
        assert [event.delta for event in events if isinstance(event, ToolOutput)] == [
            "line 0\n",
            "line 1\n",
            "line 2\n",
        ]
        assert shape(events) == ["tool_call", *["tool_output"] * 3, "tool_result", "text", "turn_done"]
        assert logged(session) == ["user", "tool_call", "tool_result", "text", "turn_done"]


async def test_a_turn_closed_while_a_call_puts_out_keeps_the_outcome(world: World) -> None:
    def endless(arguments: Any, context: Context) -> str:
        for _ in context.cancelled.checked(itertools.count()):
            context.emit("y\n")
            time.sleep(0.001)
        return ""

    async with world.session(calls("search", text="fox"), says("Done.")) as session:
        set_work(session, "search", threaded(endless))
        async with aclosing(session.turn("hello")) as events:
            async for event in events:
                if isinstance(event, ToolOutput):
                    break
        assert logged(session) == ["user", "tool_call", "tool_result", "notice"]
        assert not [thread for thread in threading.enumerate() if "holdfast-tool" in thread.name]
