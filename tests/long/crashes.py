"""SIGKILL at every write, fsync, rename and commit of a save, in a real session; the next process finds it whole.

`python -m tests.long.crashes` does every point of two saves. The quick test of the suite does the first of each kind.
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from holdfast.memory import BlobStore, Database, SessionStore, SnapshotStore, blobs
from tests.agent.real_session import (
    ASK,
    KNOWN,
    PROCESSES,
    TELL,
    WHERE,
    answer,
    ask,
    ask_anew,
    done,
    make_workspace,
    opened,
    session_of,
)

LONG = TELL + ". " + "It is a long story, and it is told here in full. " * 30  # more than one page


def save_process(parent: Connection, home: Path, workspace: Path, die_at: int) -> None:
    """Three turns, the first one long; ends itself at one crash point (0: never), tells each turn and point."""
    passed = 0

    def crash_point(name: str) -> None:
        nonlocal passed
        passed += 1
        if passed == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        parent.send(name)

    blobs.crash_point = crash_point

    async def turns() -> None:
        async with opened(home) as app:
            session = await session_of(app, workspace)
            for prompt in (LONG, TELL, WHERE):
                parent.send(done(await ask(session, prompt)).turn)
            await session.aclose()

    asyncio.run(turns())


def run_until(home: Path, workspace: Path, die_at: int) -> tuple[list[str], int]:
    """The crash points that were passed, and the last turn whose end was told."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=save_process, args=(theirs, home, workspace, die_at))
    process.start()
    theirs.close()
    points: list[str] = []
    last_turn = 0
    try:
        while True:
            told = ours.recv()
            if isinstance(told, str):
                points.append(told)
            else:
                last_turn = told
    except (EOFError, ConnectionResetError):
        process.join()
    assert process.exitcode == (-signal.SIGKILL if die_at else 0), process.exitcode
    return points, last_turn


def check(directory: Path, workspace: Path, die_at: int) -> str:
    """Die at one point, then go on in this process: what it answers. Raises where something is lost or left behind."""
    home = directory / f"die-at-{die_at}"
    _, last_turn = run_until(home, workspace, die_at)
    with closing(Database(home)) as database:
        session = SessionStore(database).find("work")
        assert session is not None
        turns = SessionStore(database).turn_list(session)
        assert [turn.state for turn in turns][:last_turn] == ["done"] * last_turn
    said = answer(ask_anew(home, workspace, TELL, ASK))
    assert said == KNOWN
    stale_s, blobs.STALE_S = blobs.STALE_S, -1.0  # what an ended process left is looked at at once
    try:
        check_files(home)
    finally:
        blobs.STALE_S = stale_s
    return said


def check_files(home: Path) -> None:
    """The stored state is sound, and nothing else is there after a collection."""
    with closing(Database(home)) as database, closing(SnapshotStore(database, BlobStore(home))) as snapshots:
        assert snapshots.verify().damaged == []
        snapshots.gc()
        named = {row[0].hex() for row in database.rows("SELECT id FROM pages UNION SELECT id FROM tails")}
        present = [path.name.removesuffix(".safetensors") for path in (home / "blobs").rglob("*") if path.is_file()]
        assert sorted(present) == sorted(named)
        assert snapshots.verify().damaged == []


def points(directory: Path, workspace: Path) -> list[str]:
    """The crash points of an undisturbed run, in order."""
    return run_until(directory / "undisturbed", workspace, 0)[0]


def firsts(names: Iterable[str]) -> dict[str, int]:
    """Each name with the number of its first point, counted from 1."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        numbers.setdefault(name, number)
    return numbers


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        workspace = make_workspace(directory / "ws")
        names = points(directory, workspace)
        for number in range(1, len(names) + 1):
            check(directory, workspace, number)
    kinds = ", ".join(firsts(names))
    print(
        f"{len(names)} crash points of the saves of one session ({kinds}): killed at each, the next process"
        f" answered right, verify was clean, gc left nothing behind ({time.perf_counter() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
