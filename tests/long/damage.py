"""Damage to a data directory: flipped bits, truncated and missing files.

It is found or changes nothing.

`python -m tests.long.damage --flips 10000 --seed N` flips bits of every kind of file, and truncates every file at every
4 KiB and removes it. After each the sessions, their events, their tokens and their stored state are read and compared,
and after every eleventh a real turn is asked of the damaged session. The quick test of the suite does a few hundred
flips.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from holdfast.agent.app import App
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.encoding.encode import ProtocolTexts
from holdfast.agent.models.snapshots import Snapshots
from holdfast.engine import Engine
from holdfast.memory import BlobStore, DamagedBlob, Database, SessionStore, SnapshotStore, StoreError
from holdfast.tools import ToolChoice
from tests.agent.real_session import (
    ASK,
    KNOWN,
    TELL,
    THERE,
    WHERE,
    answer,
    ask,
    done,
    killed,
    make_workspace,
    opened,
    session_of,
)
from tests.long.crashes import LONG

BLOCK = 4096
KINDS = ("pages", "tails", "database", "log", "index", "lock")
Log = tuple[list[int], list[str]]  # tokens and events of a branch


@dataclass
class Home:
    """A data directory, and what is true of it."""

    path: Path
    workspace: Path
    logs: dict[tuple[str, int], Log] = field(default_factory=dict)  # session, branch
    blobs: dict[str, bytes] = field(default_factory=dict)  # id -> bytes

    def files(self) -> list[Path]:
        """Names relative to `path`."""
        return sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())


def kind_of(file: Path) -> str:
    by_suffix = {".safetensors": file.parent.name, ".db": "database", ".db-wal": "log", ".db-shm": "index"}
    return by_suffix.get(file.suffix, "lock")


def fill_process(parent: Connection, home: Path, workspace: Path, closes: bool) -> None:
    """Two sessions, one with a branch left behind; `closes`: as a stopped process leaves them, else as a killed one."""

    async def fill() -> None:
        async with opened(home) as app:
            first, second = await session_of(app, workspace), await session_of(app, workspace, "second")
            for prompt in (LONG, TELL, WHERE, ASK):
                done(await ask(first, prompt))
            first.log.rewind(turn=3)
            for session in (first, second):
                done(await ask(session, TELL))
            if closes:
                await first.aclose()
                await second.aclose()
            else:
                parent.send(None)
                await asyncio.Event().wait()
        parent.send(None)
        await asyncio.Event().wait()

    asyncio.run(fill())


def filled(directory: Path, closes: bool) -> Home:
    """A data directory with everything in it; its truth is read from a copy."""
    name = "closed" if closes else "killed"
    home = Home(directory / name, make_workspace(directory / f"{name}-ws"))
    with killed(fill_process, home.path, home.workspace, closes) as child:
        child.recv()
    shutil.copytree(home.path, directory / f"{name}-read")
    with closing(Database(directory / f"{name}-read")) as database:
        home.logs = read_logs(database)
    home.blobs = {path.stem: path.read_bytes() for path in home.path.rglob("*.safetensors")}
    assert len(home.logs) == 3 and len(home.blobs) > 5, (home.logs.keys(), home.blobs.keys())
    return home


def read_logs(database: Database) -> dict[tuple[str, int], Log]:
    """Every branch of every session. Raises StoreError, also for a session that lists leave out and name apart."""
    store, logs = SessionStore(database), {}
    if problems := store.problems():
        raise StoreError(problems[0])
    for session in store.all():
        log = store.open(session)
        try:
            for branch in store.branches(session):
                log.switch(branch.id)
                logs[session.name, branch.id] = log.ids.tolist(), [repr(event) for event in log.events()]
            log.switch(session.branch)
        finally:
            log.close()
    return logs


class Inspector:
    """Looks at damaged copies of a home, with one engine for all. `outcomes` counts, `faults` has what must not be."""

    def __init__(self, engine: Engine, home: Home, directory: Path):
        self.engine, self.home, self.copy = engine, home, directory / "copy"
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []

    async def look(self, file: Path, what: str, damage: Callable[[Path], None], has_turn: bool) -> None:
        """Damage a file of a fresh copy, then read everything and maybe ask something."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.home.path, self.copy)
        damage(self.copy / file)
        try:
            outcome = await self._read(kind_of(file))
            if has_turn:
                outcome = await self._turn(outcome)
        except (StoreError, DamagedBlob) as e:
            outcome = self._named(e)
        except AssertionError as e:
            outcome = f"WRONG: {e}"
        except Exception as e:  # what a user would see as a traceback
            outcome = f"TRACEBACK: {type(e).__name__}: {e}"
        if outcome.startswith(("WRONG", "TRACEBACK")):
            self.faults.append(f"{file} {what}: {outcome}")
            outcome = outcome.split(":")[0]
        self.outcomes[kind_of(file), outcome] += 1

    async def _read(self, kind: str) -> str:
        """Sessions, tokens, events, and the state that is stored of each branch."""
        with (
            closing(Database(self.copy)) as database,
            closing(SnapshotStore(database, BlobStore(self.copy))) as snapshot_store,
            closing(Snapshots(self.engine, snapshot_store)) as snapshots,
        ):
            logs = read_logs(database)
            assert logs == self.home.logs, "the logs are not what they were, and it was not reported"
            reported = snapshot_store.verify().damaged
            assert reported or kind not in ("pages", "tails"), "verify found nothing"
            for (_, branch), (ids, _) in logs.items():
                await self._read_state(snapshots, ids, branch)
            assert snapshot_store.verify(repair=True).damaged == [] or reported, "damage that was not reported"
            return "found in the stored state" if reported else "changed nothing"

    async def _read_state(self, snapshots: Snapshots, ids: list[int], branch: int) -> None:
        while (stored := await snapshots.find(ids, (), branch)) is not None:
            try:
                tail, pages = stored.read_tail(), list(stored.read_pages(list(range(len(stored.page_ids)))))
            except DamagedBlob as e:
                await snapshots.forget(e, stored)
                continue
            names = [id_.hex() for id_ in stored.page_ids]
            assert dict(zip(names, pages)).items() <= self.home.blobs.items(), "a page is not what was written"
            assert tail in self.home.blobs.values(), "a tail is not what was written"
            return

    async def _turn(self, outcome: str) -> str:
        """The session goes on, says the right thing, and says what it had to read again."""
        async with (
            app_on(self.engine, self.copy) as app,
            aclosing(await session_of(app, self.home.workspace)) as session,
        ):
            events = [*await ask(session, WHERE), *await ask(session, ASK)]
            assert answer(events) == KNOWN and THERE in "".join(map(str, events)), answer(events)
        return f"{outcome}; answered right"

    def _named(self, error: StoreError) -> str:
        text = str(error)
        assert "\n" not in text
        is_named = str(self.copy) in text or "session" in text or isinstance(error, DamagedBlob)
        return "StoreError that names it" if is_named else f"WRONG: {text}"


@asynccontextmanager
async def app_on(engine: Engine, home: Path) -> AsyncIterator[App]:
    """As `App.open`, on an engine that is open already."""
    with (
        closing(Database(home)) as database,
        closing(SnapshotStore(database, BlobStore(home))) as snapshot_store,
        closing(Snapshots(engine, snapshot_store)) as snapshots,
    ):
        settings = Settings(home, POCKET_DIR, max_output_tokens=200)
        yield App(
            settings, engine, database, snapshots, ProtocolTexts.from_dir(POCKET_DIR), ToolChoice.read(POCKET_DIR)
        )


def flips(home: Home, count: int, rng: random.Random) -> Iterator[tuple[Path, str, Callable[[Path], None]]]:
    """Bits to flip, as many in each kind of file."""
    by_kind: dict[str, list[Path]] = {}
    for file in home.files():
        by_kind.setdefault(kind_of(file), []).append(file)
    kinds = sorted(by_kind)
    for number in range(count):
        file = rng.choice(by_kind[kinds[number % len(kinds)]])
        bit = rng.randrange(8 * (home.path / file).stat().st_size)
        yield file, f"bit {bit}", lambda path, bit=bit: flip(path, bit)


def truncations(home: Home) -> Iterator[tuple[Path, str, Callable[[Path], None]]]:
    """Every file, cut at every block, and removed."""
    for file in home.files():
        for end in range(0, (home.path / file).stat().st_size, BLOCK):
            yield file, f"cut at {end}", lambda path, end=end: cut(path, end)
        yield file, "removed", Path.unlink


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def cut(path: Path, end: int) -> None:
    with path.open("r+b") as file:
        file.truncate(end)


async def inspect(
    directory: Path, home: Home, damages: Iterator[tuple[Path, str, Callable[[Path], None]]], every_turn: int
) -> Inspector:
    async with opened(directory / "engine") as app:
        inspector = Inspector(app.engine, home, directory)
        for number, (file, what, damage) in enumerate(damages):
            await inspector.look(file, what, damage, has_turn=number % every_turn == 0)
        return inspector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", help="where the copies lie (default: the temporary directory)")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        for closes in (True, False):
            home = filled(Path(name), closes)
            rng = random.Random(args.seed)
            for title, damages in (
                (f"{args.flips // 2:,} flipped bits", flips(home, args.flips // 2, rng)),
                ("cut and missing files", truncations(home)),
            ):
                inspector = asyncio.run(inspect(Path(name), home, damages, every_turn=11))
                print(f"{title} of a process that was {'stopped' if closes else 'killed'}:")
                for (kind, outcome), count in sorted(inspector.outcomes.items()):
                    print(f"  {count:>6} {kind:<9} {outcome}")
                for fault in inspector.faults[:20]:
                    print(f"    {fault}")
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
