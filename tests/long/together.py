"""Sessions of two processes on one data directory, with memory for a few: each gives the tokens it gives alone.

`python -m tests.long.together` has 8 sessions in each process and 6 rounds of turns.
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import holdfast.agent.app
from holdfast.agent.config import POCKET_DIR
from holdfast.agent.session.session import Session
from holdfast.engine import EngineConfig, ModelConfig
from holdfast.engine.state.cache import page_bytes
from holdfast.memory import StoreError
from tests.agent.real_session import ask, done, killed, make_workspace, opened, session_of

THINGS = ("staging port", "release branch", "test server", "build number")
ANSWER_S = 60  # a deadlock is an end too


def prompts(number: int, rounds: int) -> list[str]:
    """What session `number` is told and asked."""
    kinds = (
        f"remember that the {THINGS[number % 4]} is {5000 + number}",
        "where is load_page defined?",
        f"what is the {THINGS[number % 4]}?",
    )
    return [kinds[(number + turn) % 3] for turn in range(rounds)]


def sessions_process(
    parent: Connection, home: Path, workspace: Path, numbers: list[int], rounds: int, num_pages: int, num_slots: int
) -> None:
    """Opens these sessions; when told to go, has all their turns at once, and tells how often state was parked."""
    num_parked = 0

    @dataclass(frozen=True)
    class SmallConfig(EngineConfig):
        memory_bytes: int = num_pages * page_bytes(ModelConfig.from_dir(POCKET_DIR), 256)
        max_sequences: int = num_slots

    holdfast.agent.app.EngineConfig = SmallConfig  # type: ignore[misc]

    async def turns(session: Session, number: int) -> list[int]:
        for prompt in prompts(number, rounds):
            done(await ask(session, prompt))
        return session.log.ids.tolist()

    async def run() -> None:
        async with opened(home) as app:
            park = app.engine.park

            async def counted(*args: object) -> bool:
                nonlocal num_parked
                is_parked = await park(*args)  # type: ignore[arg-type]
                num_parked += is_parked
                return is_parked

            app.engine.park = counted  # type: ignore[method-assign,assignment]
            sessions = [await session_of(app, workspace, f"s{number}") for number in numbers]
            parent.send(None)
            await asyncio.to_thread(parent.recv)
            logs = await asyncio.gather(*map(turns, sessions, numbers))
            for session in sessions:
                await session.aclose()
            parent.send((logs, num_parked))

    asyncio.run(run())
    parent.recv()


def check(directory: Path, per_process: int, rounds: int, num_pages: int = 6, num_slots: int = 3) -> int:
    """Raises where a session differs from the same one alone, or none ends; how often one gave its memory up."""
    workspace = make_workspace(directory / "ws")
    numbers = list(range(2 * per_process))
    alone: list[list[int]] = []
    for number in numbers:
        with killed(sessions_process, directory / "alone", workspace, [number], rounds, 64, 32) as child:
            alone += _results(child)[0]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                killed(sessions_process, directory / "both", workspace, some, rounds, num_pages, num_slots)
            )
            for some in (numbers[:per_process], numbers[per_process:])
        ]
        for child in children:
            child.recv()
        _refused(directory / "both", workspace)
        for child in children:
            child.send(None)
        results = [_wait(child) for child in children]
    for number, log in zip(numbers, [log for logs, _ in results for log in logs], strict=True):
        assert log == alone[number], f"session {number} differs from the same one alone"
    return sum(num_parked for _, num_parked in results)


def _results(child: Connection) -> tuple[list[list[int]], int]:
    child.recv()
    child.send(None)
    return _wait(child)


def _wait(child: Connection) -> tuple[list[list[int]], int]:
    assert child.poll(ANSWER_S), "no session goes on any more"
    return child.recv()  # type: ignore[no-any-return]


def _refused(home: Path, workspace: Path) -> None:
    """A third process is told who has a session open."""

    async def open_one() -> None:
        async with opened(home) as app:
            await session_of(app, workspace, "s1")

    try:
        asyncio.run(open_one())
    except StoreError as e:
        assert str(e).startswith("session s1 is open in another process (pid "), e
    else:
        raise AssertionError("a session was opened twice")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started = time.perf_counter()
    for num_pages, num_slots in ((6, 3), (4, 1), (9, 8), (64, 2)):
        with tempfile.TemporaryDirectory() as name:
            num_parked = check(Path(name), per_process=8, rounds=6, num_pages=num_pages, num_slots=num_slots)
        print(
            f"16 sessions in two processes, {num_pages} pages and {num_slots} slots each: 96 turns, the state of a"
            f" session stored and given up {num_parked} times; all tokens as alone"
            f" ({time.perf_counter() - started:.0f} s)"
        )


if __name__ == "__main__":
    main()
