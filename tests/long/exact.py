"""Saved, ended by SIGKILL and resumed in a new process: the tokens, logits and state bytes of a run that never stopped.

`python -m tests.long.exact` does every boundary length and 200 random ones, and rewinds and forks a session of 30 turns
at every turn. The quick test of the suite does a few of each.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from holdfast.agent.cli.main import main as holdfast
from holdfast.agent.config import POCKET_DIR
from holdfast.agent.models.snapshots import Snapshots
from holdfast.agent.session.session import Session
from holdfast.engine import Engine, EngineConfig, SamplingParams, Stored
from holdfast.engine import Sequence as LiveSequence
from holdfast.memory import BlobStore, Database, SnapshotStore
from tests.agent.real_session import ask, done, killed, make_workspace, opened, session_of

BOUNDARIES = (
    *range(1, 10), *range(127, 131), *range(255, 258), *range(383, 386), *range(511, 514), *range(1023, 1026)
)  # fmt: skip
MOST_TOKENS, NUM_SAMPLED, AT_ONCE = 3000, 64, 8
TEXT = (Path(__file__).parents[2] / "README.md").read_text() + (
    Path(__file__).parents[2] / "CONTRIBUTING.md"
).read_text()


@dataclass(frozen=True)
class Run:
    """What a sequence did after `length` tokens: sampled tokens, hashes of logits, of each page and the tail."""

    tokens: list[int]
    logits: str
    state: dict[str, str]


def prompt(engine: Engine, length: int) -> list[int]:
    """`length` tokens and one more: a stretch of text for even lengths, anything for odd ones."""
    rng = random.Random(length)
    if length % 2:
        return [rng.randrange(engine.model_config.vocab_size) for _ in range(length + 1)]
    ids = engine.tokenizer.encode(TEXT)
    start = rng.randrange(len(ids) - length)
    return ids[start : start + length + 1]


@asynccontextmanager
async def keeping(home: Path) -> AsyncIterator[Snapshots]:
    with closing(Database(home)) as database, closing(SnapshotStore(database, BlobStore(home))) as snapshot_store:
        async with Engine.open(POCKET_DIR, EngineConfig()) as engine:
            with closing(Snapshots(engine, snapshot_store)) as snapshots:
                yield snapshots


async def extended(engine: Engine, seq: LiveSequence, ids: list[int]) -> list[int]:
    async with aclosing(engine.extend(seq, ids, SamplingParams(max_tokens=NUM_SAMPLED))) as tokens:  # type: ignore[type-var]
        return [token async for token in tokens]


async def state_of(engine: Engine, seq: LiveSequence) -> dict[str, str]:
    """Every page and the tail of an idle sequence, by id."""
    taken = await engine.snapshot(seq)
    assert taken is not None
    with taken:
        pages = {key.id.hex(): _hash(taken.page_data(key)) for key in taken.pages}
        return {**pages, taken.tail_id.hex(): _hash(taken.tail_data())}


async def run_on(engine: Engine, seq: LiveSequence, again: LiveSequence, ids: list[int], held: int) -> Run:
    """Go on from two sequences that hold the first `held` of these ids: one samples, the other gives the logits."""
    tokens = await extended(engine, seq, ids[held:])
    state = await state_of(engine, seq)
    scores: list[torch.Tensor] = []
    await engine._wait(again, [*ids[held:], *tokens], scores=scores)
    for one in (seq, again):
        await engine.release(one)
    logits = torch.cat(scores)[len(ids) - held - 1 :]
    assert len(logits) == len(tokens) + 1
    return Run(tokens, _hash(logits.numpy().tobytes()), state)


async def save_at(snapshots: Snapshots, length: int) -> tuple[int, Run, list[int]]:
    """Save after `length` tokens and go on; an uninterrupted run of the same tokens; what the saved one sampled."""
    engine, ids = snapshots.engine, prompt(snapshots.engine, length)
    seq = await engine.start()
    await engine.feed(seq, ids[:length])
    assert await snapshots.save(seq, branch=1, is_followed=True) is not None
    saved = await extended(engine, seq, ids[length:])
    await engine.release(seq)
    return length, await run_on(engine, await engine.start(), await engine.start(), ids, 0), saved


async def found(snapshots: Snapshots, ids: list[int], length: int) -> Stored:
    stored = await snapshots.find(ids, (), branch=1)
    assert stored is not None and len(stored.ids) == length, (length, stored and len(stored.ids))
    return stored


async def resume_at(snapshots: Snapshots, length: int) -> tuple[Run, list[int]]:
    """Go on from what is stored; and, as a fork, from there with another token at the same time."""
    engine, ids = snapshots.engine, prompt(snapshots.engine, length)
    seq, again, fork = [await engine.start(await found(snapshots, ids, length)) for _ in range(3)]
    run, forked = await asyncio.gather(
        run_on(engine, seq, again, ids, length), extended(engine, fork, [_other(ids[length])])
    )
    await engine.release(fork)
    return run, forked


async def fork_alone(engine: Engine, length: int) -> list[int]:
    ids, seq = prompt(engine, length), await engine.start()
    tokens = await extended(engine, seq, [*ids[:length], _other(ids[length])])
    await engine.release(seq)
    return tokens


def save_process(parent: Connection, home: Path, lengths: Sequence[int]) -> None:
    """Saves at all lengths, tells the uninterrupted runs, and waits for its end."""

    async def save() -> None:
        async with keeping(home) as snapshots:
            for start in range(0, len(lengths), AT_ONCE):
                some = lengths[start : start + AT_ONCE]
                runs = await asyncio.gather(*(save_at(snapshots, length) for length in some))
                forks = await asyncio.gather(*(fork_alone(snapshots.engine, length) for length in some))
                parent.send(list(zip(runs, forks, strict=True)))
            parent.send(None)
            await asyncio.Event().wait()

    asyncio.run(save())


def check_lengths(home: Path, lengths: Sequence[int]) -> int:
    """Raises where a resumed run differs; how many state files were compared."""
    expected: dict[int, tuple[Run, list[int]]] = {}
    with killed(save_process, home, lengths) as child:
        while (results := child.recv()) is not None:
            for (length, run, saved), fork in results:
                assert saved == run.tokens, f"{length}: saving changed the tokens"
                expected[length] = run, fork

    async def resume() -> None:
        async with keeping(home) as snapshots:
            for start in range(0, len(lengths), AT_ONCE):
                some = lengths[start : start + AT_ONCE]
                for length, got in zip(some, await asyncio.gather(*(resume_at(snapshots, length) for length in some))):
                    assert got == expected[length], f"{length}: {got} is not {expected[length]}"

    asyncio.run(resume())
    return sum(len(run.state) for run, _ in expected.values())


# A session, rewound and forked at every turn.


def prompts(num_turns: int) -> list[str]:
    """Facts told, asked for later, and questions that call a tool."""
    things = ["staging port", "release branch", "test server", "build number", "owner of billing"]
    kinds = [
        lambda n: f"remember that the {things[n // 3 % 5]} is {4711 + n}",
        lambda n: "where is load_page defined?" if n % 2 else "where is build_fetcher defined?",
        lambda n: f"what is the {things[n // 3 % 5]}?",
    ]
    return [kinds[n % 3](n) for n in range(num_turns)]


async def state_in_log(session: Session) -> dict[str, str]:
    return await state_of(session.window.model, session.window.seq)


def play_process(parent: Connection, home: Path, workspace: Path, num_turns: int) -> None:
    """A session from its first turn to its last, which tells its token log and its state after each."""

    async def play() -> None:
        async with opened(home) as app:
            session = await session_of(app, workspace)
            for text in prompts(num_turns):
                done(await ask(session, text))
                parent.send((session.log.ids.tolist(), await state_in_log(session)))
            parent.send(None)
            await asyncio.Event().wait()

    asyncio.run(play())


def check_turns(home: Path, workspace: Path, num_turns: int) -> tuple[int, int]:
    """Rewind and fork a session at every turn, and say again what was said then. Raises where anything differs; how
    many turns were said again, and of how many no token was prefilled again."""
    expected: list[tuple[list[int], dict[str, str]]] = []
    with killed(play_process, home, workspace, num_turns) as child:
        while (after := child.recv()) is not None:
            expected.append(after)
    os.environ["HOLDFAST_HOME"] = str(home)
    num_free = 0

    async def again() -> None:
        nonlocal num_free
        async with opened(home) as app:
            for turn in reversed(range(num_turns)):
                _command("fork", "work", "--turn", str(turn), "--as", f"fork-{turn}")
                _command("rewind", "work", "--turn", str(turn))
                for name in ("work", f"fork-{turn}"):
                    async with aclosing(await session_of(app, workspace, name)) as session:
                        end = done(await ask(session, prompts(num_turns)[turn]))
                        got = session.log.ids.tolist(), await state_in_log(session)
                        assert got == expected[turn], f"{name} differs after turn {turn + 1}"
                        assert turn == 0 or end.usage.from_disk > 0, (name, turn, end.usage)
                        num_free += end.usage.prefilled_again == 0

    asyncio.run(again())
    _command("rewind", "work", "--branch", "1")
    _command("verify")

    async def original() -> None:
        async with opened(home) as app, aclosing(await session_of(app, workspace)) as session:
            assert session.log.ids.tolist() == expected[-1][0]

    asyncio.run(original())
    return 2 * num_turns, num_free


def _command(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = holdfast(["sessions", *arguments])
    assert code == 0, out.getvalue()


def _other(token: int) -> int:
    return token + 1 if token < 100 else token - 1


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=200, metavar="N", help="random lengths")
    parser.add_argument("--turns", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    started, rng = time.perf_counter(), random.Random(args.seed)
    others = sorted(set(range(1, MOST_TOKENS + 1)) - set(BOUNDARIES))
    lengths = [*BOUNDARIES, *rng.sample(others, args.random)]
    with tempfile.TemporaryDirectory() as directory:
        compared = check_lengths(Path(directory) / "lengths", lengths)
        print(
            f"{len(lengths)} lengths ({len(BOUNDARIES)} boundaries, {args.random} random up to {MOST_TOKENS:,}):"
            f" saved, killed,"
            f" resumed and forked; {NUM_SAMPLED} tokens each, their logits"
            f" and {compared} pages and tails equal bit for bit"
            f" ({time.perf_counter() - started:.0f} s)"
        )
        workspace = make_workspace(Path(directory) / "ws")
        num_said, num_free = check_turns(Path(directory) / "turns", workspace, args.turns)
    print(
        f"a session of {args.turns} turns, killed, then rewound and forked at every turn:"
        f" {num_said} turns said again, all"
        f" equal in tokens and state bytes; {num_free} without prefilling a token again"
        f" ({time.perf_counter() - started:.0f} s in all)"
    )


if __name__ == "__main__":
    main()
