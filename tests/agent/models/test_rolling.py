"""Sessions longer than their window, with pocket: they go on, read nothing twice, and find what left the view."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.agent.app import App
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.events import Event, Notice, TurnDone
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.session import Session
from holdfast.tools import Context, run_tool

CONTEXT = 2048
FACTS = [(f"item{n}", f"box{n * 37 % 90}") for n in range(90)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home", POCKET_DIR, max_context=CONTEXT, max_output_tokens=80)


@asynccontextmanager
async def opened(app: App, workspace: Path) -> AsyncIterator[Session]:
    """The workspace's session, closed at the end."""
    session = await app.session(workspace, Approvals(Policy("all"), None))
    async with aclosing(session):
        yield session


async def ask(session: Session, prompt: str) -> list[Event]:
    async with aclosing(session.turn(prompt)) as events:
        return [event async for event in events]


async def tell(session: Session, start: int, stop: int) -> tuple[list[TurnDone], list[str]]:
    """Turns that each tell a fact: how they ended, and the notices."""
    done, notices = [], []
    for name, value in FACTS[start:stop]:
        events = await ask(session, f"remember that the {name} is {value}")
        assert isinstance(events[-1], TurnDone), events[-1]
        done.append(events[-1])
        notices += [event.message for event in events if isinstance(event, Notice)]
    return done, notices


def test_a_session_rolls_past_its_window_over_processes_and_nothing_is_read_twice(
    settings: Settings, tmp_path: Path
) -> None:
    async def run(home: Path, parts: list[tuple[int, int]]) -> list[list[int]]:
        logs = []
        for start, stop in parts:
            async with App.open(replace(settings, home=home)) as app, opened(app, tmp_path) as session:
                done, notices = await tell(session, start, stop)
                assert all(d.usage.prefilled_again == 0 for d in done)
                assert all(d.usage.context_used <= CONTEXT for d in done)
                assert any("left the window" in notice for notice in notices) == (stop == len(FACTS))
                logs.append(session.log.ids.tolist())
                if stop == len(FACTS):
                    tools, context = session.toolbox.tools, Context(session.toolbox.workspace)
                    found = await run_tool(tools, "recall", '{"query": "item3 box21"}', context)
                    assert found.ok and "box21" in found.output and "turn 4" in found.output
        return logs

    in_parts = asyncio.run(run(tmp_path / "a", [(0, 20), (20, 21), (21, 90)]))[-1]
    at_once = asyncio.run(run(tmp_path / "b", [(0, 90)]))[-1]
    assert len(at_once) > 1.4 * CONTEXT
    assert in_parts == at_once


def test_a_rolled_session_without_its_state_is_computed_again_and_goes_on_the_same(
    settings: Settings, tmp_path: Path
) -> None:
    async def begin() -> None:
        async with App.open(settings) as app, opened(app, tmp_path) as session:
            await tell(session, 0, len(FACTS))

    async def go_on() -> tuple[list[int], TurnDone]:
        async with App.open(settings) as app, opened(app, tmp_path) as session:
            *_, last = await ask(session, "what is the item68?")
            assert isinstance(last, TurnDone)
            return session.log.ids.tolist(), last

    asyncio.run(begin())
    for path in (settings.home / "blobs").rglob("*.safetensors"):
        path.unlink()
    ids, done = asyncio.run(go_on())
    assert done.usage.prefilled_again > 1000 and done.usage.why == "no stored state"

    settings = replace(settings, home=tmp_path / "other")
    asyncio.run(begin())
    undamaged, done = asyncio.run(go_on())
    assert done.usage.prefilled_again == 0 and undamaged == ids


def test_a_session_that_begins_like_another_goes_on_from_its_state(settings: Settings, tmp_path: Path) -> None:
    """A long first prompt is saved on the way, and found by the next session that begins with it."""
    text = " ".join(f"word{n % 7}" for n in range(600))

    async def run(home: Path, *ends: str) -> tuple[int, list[int]]:
        """How much the last of these sessions had from disk, and its tokens."""
        async with App.open(replace(settings, home=home, max_context=None, save_every=512)) as app:
            for end in ends:
                session = await app.session(tmp_path, Approvals(Policy("all"), None), is_new=True)
                async with aclosing(session):
                    last = (await ask(session, f"{text} {end}"))[-1]
                    assert isinstance(last, TurnDone)
        return last.usage.from_disk, session.log.ids.tolist()

    alone = asyncio.run(run(tmp_path / "a", "second"))
    after_another = asyncio.run(run(tmp_path / "b", "first", "second"))
    assert alone[0] == 0
    assert after_another[0] >= 1024 and after_another[0] % 512 == 0
    assert after_another[1] == alone[1]


def test_a_rewound_session_goes_on_from_there_and_the_branch_can_be_opened_again(
    settings: Settings, tmp_path: Path
) -> None:
    async def run() -> None:
        async with App.open(settings) as app, opened(app, tmp_path) as session:
            await tell(session, 0, 3)
            branch = session.log.session.branch
            await session.rewind(2)
            (done,), _ = await tell(session, 5, 6)
            assert done.turn == 3 and done.usage.prefilled_again == 0 and done.usage.from_disk > 0
            once = session.log.ids.tolist()
            await session.rewind(2)
            await tell(session, 5, 6)
            assert session.log.ids.tolist() == once
            session.log.switch(branch)
            text = (await ask(session, f"what is the {FACTS[2][0]}?"))[-1]
            assert isinstance(text, TurnDone) and text.turn == 4 and FACTS[2][1] in text.text

    asyncio.run(run())
