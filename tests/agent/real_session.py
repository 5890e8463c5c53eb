"""Real sessions for tests: pocket, the real store, a small workspace, and processes that end by SIGKILL."""

import asyncio
import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from holdfast.agent.app import App
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.events import Event, Notice, TurnDone
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.session import Session

SOURCE = """LIMIT = 30


class Fetcher:
    def load_page(self, address):
        return self.cache.get(address, LIMIT)


def build_fetcher(settings):
    return Fetcher()
"""
TELL, WHERE, ASK = "remember that the staging port is 4711", "where is load_page defined?", "what is the staging port?"
THERE, KNOWN = "load_page is defined at net/fetcher.py:5.", "The staging port is 4711."

# A server that has the imports done: its children start in milliseconds, and have no thread of ours.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def make_workspace(directory: Path) -> Path:
    (directory / "net").mkdir(parents=True)
    (directory / "net" / "fetcher.py").write_text(SOURCE)
    return directory


@asynccontextmanager
async def opened(home: Path, model_dir: Path = POCKET_DIR) -> AsyncIterator[App]:
    async with App.open(Settings(home, model_dir, max_output_tokens=200)) as app:
        yield app


async def session_of(app: App, workspace: Path, name: str = "work") -> Session:
    return await app.session(workspace, Approvals(Policy("read")), name)


async def ask(session: Session, prompt: str) -> list[Event]:
    """One turn, and the save after it."""
    async with aclosing(session.turn(prompt)) as events:
        seen = [event async for event in events]
    await session.written()
    return seen


def ask_anew(home: Path, workspace: Path, *prompts: str, name: str = "work") -> list[Event]:
    """The events of some turns of a session that is opened for them and closed."""

    async def turns() -> list[Event]:
        async with opened(home) as app, aclosing(await session_of(app, workspace, name)) as session:
            return [event for prompt in prompts for event in await ask(session, prompt)]

    return asyncio.run(turns())


def done(events: list[Event]) -> TurnDone:
    """The end of the last turn, which was answered."""
    assert isinstance(events[-1], TurnDone), events[-1]
    return events[-1]


def answer(events: list[Event]) -> str:
    return done(events).text.strip()


def notices(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Notice)]


@contextmanager
def killed(target: Callable[..., Any], *args: Any) -> Iterator[Connection]:
    """Another process, which gets a connection and these arguments; SIGKILL ends it with the block."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(theirs, *args))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()
    assert process.exitcode == -signal.SIGKILL, process.exitcode
