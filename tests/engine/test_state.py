"""State as bytes: a sequence that was stored goes on as if it had never stopped, bit for bit.

A tiny random model; the bytes stay in memory here. What reads them back is a new engine, so nothing survives but bytes.
"""

import asyncio
import random
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from safetensors.torch import load

from engine import Engine, EngineError, Sequence, write_checkpoint
from engine.cache import page_bytes
from engine.checkpoint_writer import random_weights
from engine.engine import EngineConfig
from engine.sequence import Stored
from tests.engine.test_engine import CONFIG, opened, random_ids, run_async, take

PAGE = 128  # of `opened`
LENGTHS = (*range(2, 10), *range(127, 131), *range(255, 258), *range(383, 386), *range(511, 514))


class Shelf:
    """Where snapshots lie: bytes by content id."""

    def __init__(self) -> None:
        self.tails: dict[bytes, bytes] = {}
        self.pages: dict[bytes, bytes] = {}
        self.kept: dict[bytes, list[bytes]] = {}
        self.num_read = 0

    async def save(self, engine: Engine, seq: Sequence) -> int:
        """Store the sequence; the position of the snapshot."""
        taken = await engine.snapshot(seq)
        assert taken is not None
        with taken:
            for key in [*taken.head, *taken.pages]:
                data = taken.page_data(key)
                assert self.pages.setdefault(key.id, data) == data  # the same id means the same bytes
            data = taken.tail_data()
            assert self.tails.setdefault(taken.tail_id, data) == data
            self.kept[taken.tail_id] = [key.id for key in [*taken.head, *taken.pages]]
            return taken.position

    def stored(self, engine: Engine, ids: list[int]) -> Stored:
        """The state after these tokens."""
        chain = engine.chain()
        tail_id = chain.tail_id(ids, len(ids))
        page_ids = self.kept[tail_id]

        def read(numbers: list[int]) -> Iterable[bytes]:
            for number in numbers:
                self.num_read += 1
                yield self.pages[page_ids[number]]

        return Stored(chain, ids, page_ids, lambda: self.tails[tail_id], read)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, CONFIG, random_weights(CONFIG, seed=11))
    return path


@pytest.mark.parametrize("numerics", ["plain", "compact"])
@run_async
async def test_a_stored_sequence_goes_on_in_another_engine_with_the_same_tokens_and_the_same_bytes(
    directory: Path, numerics: str
) -> None:
    shelf, expected = Shelf(), {}
    async with opened(directory, num_pages=12, numerics=numerics) as engine:
        for length in LENGTHS:
            seq = await engine.start()
            await take(engine, seq, random_ids(length), 0)
            assert await shelf.save(engine, seq) == length - 1
            expected[length] = await take(engine, seq, [], 12)
            await shelf.save(engine, seq)
            await engine.release(seq)
    async with opened(directory, num_pages=12, numerics=numerics) as engine:
        for length in LENGTHS:
            ids = random_ids(length)
            seq = await engine.start(shelf.stored(engine, ids[:-1]))
            assert await take(engine, seq, ids[-1:], 12) == expected[length]
            await shelf.save(engine, seq)  # asserts that the bytes are those of the uninterrupted run
            await engine.release(seq)


@run_async
async def test_stored_and_read_again_and_again_ends_where_an_uninterrupted_run_ends(directory: Path) -> None:
    rng, shelf, ids = random.Random(1), Shelf(), random_ids(40)
    for _ in range(12):
        async with opened(directory, num_pages=12) as engine:
            position = len(ids) - 1
            stored = shelf.stored(engine, ids[:position]) if shelf.tails else None
            seq = await engine.start(stored)
            ids += await take(engine, seq, ids[len(seq.token_ids) :], rng.randint(1, 90))
            assert seq.token_ids == ids
            await shelf.save(engine, seq)
    async with opened(directory, num_pages=12) as engine:
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await shelf.save(engine, seq)


@run_async
async def test_sequences_with_the_same_beginning_hold_its_pages_once(directory: Path) -> None:
    shelf, ids = Shelf(), random_ids(3 * PAGE + 40)
    async with opened(directory, num_pages=8) as engine:
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await shelf.save(engine, seq)
        expected = await take(engine, seq, [], 5)
        pool = engine._scheduler.pool
        assert pool.num_free == 4
        others = []
        for _ in range(4):  # four pages each would not fit
            other = await engine.start(shelf.stored(engine, ids[:-1]))
            assert await take(engine, other, ids[-1:], 5) == expected
            others.append(other)
        assert (pool.num_free, shelf.num_read) == (0, 0)
        alike = await engine.start()  # computed anew, it finds them too
        await engine.release(others.pop())
        await engine.release(others.pop())
        await engine.release(others.pop())
        assert await take(engine, alike, ids[: 2 * PAGE + 20], 0) == []
        assert alike.pages[:2] == seq.pages[:2]
        await engine.release(seq)
        await engine.release(alike)
        await engine.release(others.pop())
        assert pool.num_free == 8


@run_async
async def test_under_pressure_the_owner_parks_the_sequence_idle_longest(directory: Path) -> None:
    shelf = Shelf()
    async with opened(directory, num_pages=6) as engine:
        by_id: dict[int, Sequence] = {}
        parked: list[int] = []

        async def park(seq: Sequence) -> None:
            position = await shelf.save(engine, seq)
            if await engine.park(seq, shelf.stored(engine, seq.token_ids[:position])):
                parked.append(seq.id)

        tasks = []
        engine.on_pressure = lambda seq: tasks.append(asyncio.get_running_loop().create_task(park(seq)))
        sequences = [await engine.start() for _ in range(5)]
        fed = [random_ids(140, seed) for seed in range(5)]
        for _ in range(3):
            for seq, ids in zip(sequences, fed):
                by_id[seq.id] = seq
                ids += await take(engine, seq, ids[len(seq.token_ids) :], 4)
                ids.append(3)
        assert parked[:2] == [0, 1] and len(parked) >= 10
        engine.on_pressure = None
        for ids in fed:
            check = await engine.start()
            assert await take(engine, check, ids[:140], 4) == ids[140:144]
            await engine.release(check)


@run_async
async def test_state_that_cannot_be_read_ends_the_request_and_leaves_the_sequence_stored(directory: Path) -> None:
    shelf, ids = Shelf(), random_ids(300)
    async with opened(directory) as engine:
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await shelf.save(engine, seq)
        expected = await take(engine, seq, [], 5)
        await engine.release(seq)
        free = engine._scheduler.pool.num_free
        good = shelf.stored(engine, ids[:-1])
        broken = OSError("it is gone")

        def fail(numbers: list[int]) -> Iterable[bytes]:
            raise broken

        seq = await engine.start(Stored(good.chain, good.ids, good.page_ids, good.read_tail, fail))
        with pytest.raises(OSError, match="it is gone"):
            await take(engine, seq, ids[-1:], 5)
        assert engine._scheduler.pool.num_free == free
        for wrong_tail, wrong_pages in (
            (b"", good.read_pages),
            (b"\x00" * 40, good.read_pages),
            (next(iter(shelf.pages.values())), good.read_pages),
            (good.read_tail(), lambda numbers: [good.read_tail()] * len(numbers)),
            (good.read_tail(), lambda numbers: good.read_pages(numbers[:-1])),
        ):
            seq = await engine.start(Stored(good.chain, good.ids, good.page_ids, lambda: wrong_tail, wrong_pages))  # noqa: B023
            with pytest.raises(EngineError, match="stored state"):
                await take(engine, seq, ids[-1:], 5)
        seq = await engine.start(good)
        assert await take(engine, seq, ids[-1:], 5) == expected


@run_async
async def test_cancelled_while_it_loads_the_sequence_can_be_used_again(directory: Path) -> None:
    shelf, ids = Shelf(), random_ids(300)
    async with opened(directory) as engine:
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await shelf.save(engine, seq)
        expected = await take(engine, seq, [], 5)
        await engine.release(seq)
        for then in ("extend", "release"):
            good, may_read = shelf.stored(engine, ids[:-1]), threading.Event()

            def slow(numbers: list[int]) -> Iterable[bytes]:
                may_read.wait()  # noqa: B023
                return good.read_pages(numbers)  # noqa: B023

            seq = await engine.start(Stored(good.chain, good.ids, good.page_ids, good.read_tail, slow))
            task = asyncio.create_task(take(engine, seq, ids[-1:], 5))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if then == "extend":
                again = asyncio.create_task(take(engine, seq, [], 5))
                await asyncio.sleep(0.05)
                may_read.set()
                assert await again == expected
            await engine.release(seq)
            may_read.set()
        await asyncio.sleep(0.05)
        assert await take(engine, await engine.start(), ids, 5) == expected
        assert engine._scheduler.pool.num_free == engine._scheduler.pool.num_pages - 3


@run_async
async def test_other_weights_numerics_or_pages_give_other_ids(directory: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, random_weights(CONFIG, seed=12))
    ids, tails = random_ids(300), set()
    configs = [(directory, {}), (directory, {"numerics": "plain"}), (tmp_path, {})]
    for path, fields in configs:
        async with opened(path, **fields) as engine:
            tails.add(engine.chain().tail_id(ids, 290))
    config = EngineConfig(device="cpu", page_tokens=256, memory_bytes=8 * page_bytes(CONFIG, 256), threads=1)
    async with Engine.open(directory, config) as engine:
        tails.add(engine.chain().tail_id(ids, 290))
    assert len(tails) == 4


@run_async
async def test_bytes_are_packed_rows(directory: Path) -> None:
    shelf = Shelf()
    async with opened(directory) as engine:
        seq = await engine.start()
        await take(engine, seq, random_ids(300), 0)
        await shelf.save(engine, seq)
    page = load(next(iter(shelf.pages.values())))
    assert {name: list(rows.shape) for name, rows in page.items()} == {
        "layers.2.rows": [32, 64 + 64 + 8],
        "layers.2.index_rows": [32, 16 + 1],
        "layers.3.rows": [1, 136],
        "layers.4.rows": [32, 136],
        "layers.4.index_rows": [32, 17],
    }
