"""What durable sessions cost: `holdfast bench --sessions`. Save, resume, fork, rewind and roll, beside reading again.

One process grows a session of random tokens, with a durable point every 8,192 and turns of 512 at the end, and is
killed; others resume it with the files dropped from the page cache (posix_fadvise), of which the median counts, and
another one measures the rest. Seconds are of this machine; what compares are the ratios, taken in one run.
"""

import asyncio
import os
import random
import resource
import signal
import statistics
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from holdfast.agent.models.rolling import next_roll
from holdfast.agent.models.snapshots import Snapshots
from holdfast.engine import Engine, EngineConfig, SamplingParams, Sequence
from holdfast.memory import BlobStore, Database, SessionLog, SessionStore, SnapshotStore

SAVE_EVERY, LAST_TURNS, LAST_TURN_TOKENS = 8192, 8, 512
REWOUND_TOKENS, RESUMES, WARM_UP_TOKENS = 37, 3, 4096
ROUNDS, BESIDE_TOKENS = 15, 4000  # of decoding alone, beside a save, and alone; tokens of each
MOST_READ_AGAIN = 300_000  # tokens; of a longer context the seconds of growing it stand for reading it again
ROLLED_SHARE = 10  # a tenth of the context more goes through the full window
MEMORY_BYTES = 2**30
Row = dict[str, Any]


def run_sessions_bench(model: Path, contexts: list[int]) -> Iterator[Row]:
    """One row per context and operation, and one that depends on no context, which takes some minutes."""
    for context in contexts:
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as home:
            grown = _in_process(_grow, model, Path(home), context)
            yield from grown
            resumed = [_in_process(_resume_once, model, Path(home), context)[0] for _ in range(RESUMES)]
            median = sorted(resumed, key=lambda row: row["seconds"])[RESUMES // 2]
            yield from _in_process(_go_on, model, Path(home), context, median, grown[0]["seconds"])
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as home:
        yield from _in_process(_beside_saving, model, Path(home))


def _in_process(work: Any, *args: Any) -> list[Row]:
    """Run in a child process, which is killed once it has printed its rows."""
    theirs: Connection
    ours, theirs = get_context("spawn").Pipe(duplex=False)
    child = get_context("spawn").Process(target=_child, args=(theirs, work, *args))
    child.start()
    theirs.close()
    try:
        rows: list[Row] = ours.recv()
    except EOFError:
        raise RuntimeError(f"the bench process ended early with exit code {child.exitcode}") from None
    finally:
        child.join()
    return rows


def _child(pipe: Connection, work: Any, *args: Any) -> None:
    pipe.send(asyncio.run(work(*args)))
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Bench:
    engine: Engine
    snapshots: Snapshots
    sessions: SessionStore
    home: Path

    def open_log(self) -> SessionLog:
        found = self.sessions.find("bench") or self.sessions.create("/bench", self.engine.identity, "bench")
        return self.sessions.open(found)


@asynccontextmanager
async def _opened(model: Path, home: Path, max_context: int | None = None) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        database = stack.enter_context(closing(Database(home)))
        snapshot_store = stack.enter_context(closing(SnapshotStore(database, BlobStore(home))))
        config = EngineConfig(memory_bytes=MEMORY_BYTES, max_context=max_context, num_drafts=0)  # one token a step
        engine = await stack.enter_async_context(Engine.open(model, config))
        snapshots = stack.enter_context(closing(Snapshots(engine, snapshot_store)))
        yield Bench(engine, snapshots, SessionStore(database), home)


def _tokens(engine: Engine, count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, engine.model_config.vocab_size), k=count)


async def _grow(model: Path, home: Path, context: int) -> list[Row]:
    async with _opened(model, home) as bench:
        engine, snapshots, log = bench.engine, bench.snapshots, bench.open_log()
        ids, seq = _tokens(engine, context), await engine.start()
        ends = list(range(SAVE_EVERY, context - LAST_TURNS * LAST_TURN_TOKENS, SAVE_EVERY))
        ends += [context - LAST_TURN_TOKENS * left for left in range(min(LAST_TURNS, context // LAST_TURN_TOKENS))][
            ::-1
        ]
        saves, started = [], time.perf_counter()
        for end in ends:
            log.start_turn([], ids[len(log.ids) : end])
            await engine.feed(seq, ids[len(seq.token_ids) : end])
            log.end_turn("done")
            saving = time.perf_counter()
            await snapshots.save(seq, log.session.branch, is_followed=end < context)
            saves.append(time.perf_counter() - saving)
        usage = snapshots.store.usage()
        pages = sum(f.stat().st_size for f in (home / "blobs" / "pages").iterdir())
        grown = {"row": "grow", "context": context, "seconds": time.perf_counter() - started - sum(saves)}
        saved = {
            "row": "save",
            "context": context,
            "durable_points": len(saves),
            "median_s": statistics.median(saves),
            "bytes_written": snapshots.bytes_written,
            "bytes_kept": usage.bytes,
            "written_per_kept": snapshots.bytes_written / usage.bytes,
            "bytes_of_pages": pages,
        }
        return [grown, saved]


async def _beside_saving(model: Path, home: Path) -> list[Row]:
    """Times between tokens of a decoding sequence while a stretch of another is saved, against none: a durable point.

    A shared machine's moods are larger than what is measured. So a round is alone, saving, alone: its ratio is that of
    the middle to the mean of its neighbours, and `nothing` is what the second of them is to the first, with no save at
    all.
    """
    async with _opened(model, home) as bench:
        engine = bench.engine
        decoding, saved = await engine.start(), await engine.start()
        await engine.feed(saved, _tokens(engine, SAVE_EVERY))
        await engine.feed(decoding, _tokens(engine, 1000, seed=1))
        p99, nothing, medians = [], [], []
        for _ in range(ROUNDS):
            async with _elsewhere(engine) as snapshots:
                before = await _gaps(engine, decoding, BESIDE_TOKENS)
                saving = await snapshots.begin_save(saved, 0)
                assert saving is not None
                beside = await _gaps(engine, decoding, 8 * BESIDE_TOKENS, saving)
                await saving
                after = await _gaps(engine, decoding, BESIDE_TOKENS)
            p99.append(2 * _p99(beside) / (_p99(before) + _p99(after)))
            nothing.append(_p99(after) / _p99(before))
            medians.append(statistics.median(beside) / statistics.median(before + after))
    return [
        {
            "row": "decode beside a save",
            "rounds": ROUNDS,
            "p99_ratio": statistics.median(p99),
            "p99_ratio_of_nothing": statistics.median(nothing),
            "median_ratio": statistics.median(medians),
            "p99_ratios": [round(ratio, 3) for ratio in p99],
            "p99_ratios_of_nothing": [round(ratio, 3) for ratio in nothing],
        }
    ]


def _p99(gaps: list[float]) -> float:
    return sorted(gaps)[int(len(gaps) * 0.99)]


@asynccontextmanager
async def _elsewhere(engine: Engine) -> AsyncIterator[Snapshots]:
    """`Snapshots` on an empty data directory: everything has to be written."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        home = Path(directory)
        with (
            closing(Database(home)) as database,
            closing(SnapshotStore(database, BlobStore(home))) as snapshot_store,
            closing(Snapshots(engine, snapshot_store)) as snapshots,
        ):
            yield snapshots


async def _gaps(engine: Engine, seq: Sequence, count: int, beside: "asyncio.Task[Any] | None" = None) -> list[float]:
    """Seconds between tokens; those that came while `beside` was running, if it is given."""
    gaps, last = [], time.perf_counter()
    sampled = engine.extend(seq, [] if seq.num_waiting else [2], SamplingParams(max_tokens=count))
    async with aclosing(sampled) as tokens:  # type: ignore[type-var]
        async for _ in tokens:
            now = time.perf_counter()
            if beside is not None and beside.done():
                break
            gaps.append(now - last)
            last = now
    return gaps[1:]


async def _load_kernels(engine: Engine) -> None:
    """Those of long contexts too."""
    seq = await engine.start()
    await _first_token(engine, seq, _tokens(engine, WARM_UP_TOKENS, seed=3))
    await engine.release(seq)


async def _resume_once(model: Path, home: Path, context: int) -> list[Row]:
    async with _opened(model, home) as bench:
        await _load_kernels(bench.engine)
        log = bench.open_log()
        return [{"row": "resume", "context": context, **await _resume(bench, log.ids, log.session.branch)}]


async def _go_on(model: Path, home: Path, context: int, resumed: Row, grow_s: float) -> list[Row]:
    async with _opened(model, home) as bench:
        engine = bench.engine
        await _load_kernels(engine)
        log = bench.open_log()
        ids, again_s = log.ids, grow_s
        if context <= MOST_READ_AGAIN:
            seq, started = await engine.start(), time.perf_counter()
            await _first_token(engine, seq, ids.tolist())
            again_s = time.perf_counter() - started
            await engine.release(seq)
        rows = [resumed | {"read_again_s": again_s, "times_faster": again_s / resumed["seconds"]}]
        rows.append(_fork(bench, context))
        log.rewind(position=context - REWOUND_TOKENS)
        rewound = await _resume(bench, log.ids, log.session.branch)
        share = rewound["seconds"] / again_s
        rows.append({"row": f"rewind {REWOUND_TOKENS}", "context": context, **rewound, "share_of_read_again": share})
        log.close()
    rows.append(await _roll(model, home, ids, context))
    return rows


async def _resume(bench: Bench, ids: "array[int]", branch: int) -> Row:
    """From files that are not in the page cache to the first token; and how long those files take to read in a row."""
    engine, snapshots = bench.engine, bench.snapshots
    _drop_from_page_cache(bench.home)
    started = time.perf_counter()
    stored = await snapshots.find(ids, (), branch)
    assert stored is not None
    seq = await engine.start(stored)
    await engine.load(seq)
    loaded = time.perf_counter()
    await _first_token(engine, seq, ids[len(seq.token_ids) :].tolist())
    ended = time.perf_counter()
    await engine.release(seq)
    num_bytes, read_s = _read_in_a_row(bench.home, stored.page_ids)
    return {
        "seconds": ended - started,
        "load_s": loaded - started,
        "bytes": num_bytes,
        "read_s": read_s,
        "times_reading": (ended - started) / read_s,
        "computed_tokens": len(ids) - len(stored.ids),
    }


async def _first_token(engine: Engine, seq: Sequence, ids: list[int]) -> None:
    async for _ in engine.extend(seq, ids, SamplingParams(max_tokens=1)):
        pass


def _fork(bench: Bench, context: int) -> Row:
    """The rows of a fork, counted as the growth of the write-ahead log."""
    source = bench.sessions.find("bench")
    assert source is not None
    wal = bench.home / "holdfast.db-wal"
    before, started = wal.stat().st_size, time.perf_counter()
    fork = bench.sessions.fork(source)
    bench.snapshots.store.inherit(fork.branch, [(source.branch, context)])
    seconds = time.perf_counter() - started
    return {"row": "fork", "context": context, "seconds": seconds, "bytes_written": wal.stat().st_size - before}


async def _roll(model: Path, home: Path, ids: "array[int]", context: int) -> Row:
    """Let a tenth more through a window that is full."""
    async with _opened(model, home, max_context=context + 256) as bench:
        engine = bench.engine
        await _first_token(engine, await engine.start(), [5])
        stored = await bench.snapshots.find(ids, (), 1)
        seq = await engine.start(stored)
        await engine.feed(seq, ids[len(seq.token_ids) :].tolist())
        more, rolls, computed_before = _tokens(engine, context // ROLLED_SHARE, seed=2), [], seq.num_tokens
        started = time.perf_counter()
        while more:
            room = engine.max_context - (seq.num_tokens - seq.dropped_tokens)
            if room < min(len(more), SAVE_EVERY):
                rolling = time.perf_counter()
                roll = next_roll(engine, seq, min(len(more), SAVE_EVERY) - room)
                assert roll is not None
                await engine.roll(seq, roll)
                rolls.append(time.perf_counter() - rolling)
            await engine.feed(seq, more[:SAVE_EVERY])
            more = more[SAVE_EVERY:]
        seconds = time.perf_counter() - started
        num_tokens = seq.num_tokens - computed_before
    return {
        "row": "roll",
        "context": context,
        "tokens": num_tokens,
        "rolls": len(rolls),
        "roll_s": statistics.median(rolls),
        "tokens_per_s": num_tokens / seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _blobs(home: Path) -> list[Path]:
    return sorted((home / "blobs").rglob("*.safetensors"))


def _drop_from_page_cache(home: Path) -> None:
    for path in [*_blobs(home), home / "holdfast.db"]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_in_a_row(home: Path, page_ids: list[bytes]) -> tuple[int, float]:
    """Bytes of these pages' files and the seconds it takes to read one after the other, from the disk."""
    _drop_from_page_cache(home)
    num_bytes, started = 0, time.perf_counter()
    for page_id in page_ids:
        num_bytes += len((home / "blobs" / "pages" / f"{page_id.hex()}.safetensors").read_bytes())
    return num_bytes, time.perf_counter() - started
