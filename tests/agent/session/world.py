"""A workspace, a scripted model and a session on them, for tests of a turn.

The engine is scripted (see scripted_engine): a real model cannot be told to misbehave. Everything else is real.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import holdfast.agent.models.opened
from holdfast.agent.app import App
from holdfast.agent.config import Settings
from holdfast.agent.events import Ask, Changes, Error, Event, PrefillProgress
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.session import Session
from holdfast.tools import Context
from tests.agent.scripted_engine import Reply, ScriptedEngine, make_model


class World:
    """A workspace with a.py, a data directory, a scripted model, and one session on them."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(holdfast.agent.models.opened, "Engine", ScriptedEngine)
        self.root = tmp_path
        self.workspace = tmp_path / "ws"
        self.workspace.mkdir()
        (self.workspace / "a.py").write_text("def fox():\n    return 1\n")
        self.num_opened = 0

    @asynccontextmanager
    async def session(
        self,
        *replies: Reply,
        policy: Policy = Policy.EDIT,
        ask: Ask | None = None,
        max_context: int = 4096,
        has_all_tools: bool = False,
        **settings: Any,
    ) -> AsyncIterator[Session]:
        """The workspace's session, as a new process would open it."""
        self.num_opened += 1
        model = make_model(self.root / f"model-{self.num_opened}", replies, max_context)
        if has_all_tools:
            (model / "tools.json").unlink()
        async with (
            App.open(Settings(self.root / "home", model, **settings)) as app,
            aclosing(await app.session(self.workspace, Approvals(policy, ask))) as session,
        ):
            yield session


async def turn(session: Session, prompt: str = "hello") -> list[Event]:
    async with aclosing(session.turn(prompt)) as events:
        return [event async for event in events]


async def cancelled_turn(
    session: Session, is_time: Callable[[Event], bool], begun: asyncio.Event | None = None
) -> list[Event]:
    """A turn whose task is cancelled a moment after the first event for which `is_time`.

    Or once what follows that event has begun.
    """
    seen: list[Event] = []
    waiting: list[asyncio.Future[None]] = []

    async def cancel() -> None:
        await (begun.wait() if begun else asyncio.sleep(0.02))
        task.cancel()

    async def run() -> None:
        async with aclosing(session.turn("hello")) as events:
            async for event in events:
                seen.append(event)
                if is_time(event):
                    waiting.append(asyncio.ensure_future(cancel()))

    task = asyncio.ensure_future(run())
    with pytest.raises(asyncio.CancelledError):
        await task
    return seen


def set_work(session: Session, name: str, work: Callable[[Any, Context], Awaitable[str]]) -> None:
    """Give a tool of this session other work."""
    session.toolbox.tools = {**session.toolbox.tools, name: replace(session.toolbox.tools[name], work=work)}


def engine_of(session: Session) -> ScriptedEngine:
    assert isinstance(session.window.model, ScriptedEngine)
    return session.window.model


def fed_text(session: Session, request: int = -1) -> str:
    engine = engine_of(session)
    return engine.tokenizer.decode(engine.fed[request])


def log_text(session: Session) -> str:
    return engine_of(session).tokenizer.decode(session.log.ids.tolist())


def shape(events: list[Event]) -> list[str]:
    """Types of events in order, without progress and what changed; pieces of text counted once."""
    types = [event.type for event in events if not isinstance(event, Changes | PrefillProgress)]
    return [t for i, t in enumerate(types) if i == 0 or t != types[i - 1] or t not in ("text", "thinking")]


def logged(session: Session) -> list[str]:
    """Types of what was said and done."""
    return [event.type for event in session.log.events() if event.type != "shown"]


def last_error(events: list[Event]) -> str:
    assert isinstance(events[-1], Error), events[-1]
    return events[-1].message
