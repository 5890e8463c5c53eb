"""State as bytes: a sequence that was stored goes on as if it had never stopped, bit for bit.

A tiny random model; the bytes stay in memory here. What reads them back is a new engine, so nothing survives but bytes.
"""

import asyncio
import random
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from holdfast.engine import Engine, EngineConfig, EngineError, Roll, Sequence, write_checkpoint
from holdfast.engine.checkpoint.writer import random_weights
from holdfast.engine.sequence import Stored
from holdfast.engine.snapshot import cut_tail, pack_page
from holdfast.engine.state.cache import page_bytes
from tests.engine.tiny_engine import CONFIG, opened, random_ids, run_async, take

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
            for key in [*taken.prefix, *taken.pages]:
                data = taken.page_data(key)
                assert self.pages.setdefault(key.id, data) == data  # the same id means the same bytes
            data = taken.tail_data()
            assert self.tails.setdefault(taken.tail_id, data) == data
            self.kept[taken.tail_id] = [key.id for key in [*taken.prefix, *taken.pages]]
            return taken.position

    async def fill(self, engine: Engine, ids: list[int]) -> list[int]:
        """Store a sequence of these ids and release it; the next five tokens."""
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await self.save(engine, seq)
        expected = await take(engine, seq, [], 5)
        await engine.release(seq)
        return expected

    def stored(self, engine: Engine, ids: list[int], rolls: Iterable[Roll] = ()) -> Stored:
        """The state after these tokens."""
        chain = engine.chain(tuple(rolls))
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
        pool = engine._worker.scheduler.pool
        assert pool.num_free == 4
        others = []
        for _ in range(4):  # four pages each would not fit
            other = await engine.start(shelf.stored(engine, ids[:-1]))
            assert await take(engine, other, ids[-1:], 5) == expected
            others.append(other)
        assert (pool.num_free, shelf.num_read) == (0, 4)  # the prefix's page each time, for its rows before rotation
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
async def test_sequences_of_one_stored_state_go_on_apart(directory: Path) -> None:
    shelf, ids = Shelf(), random_ids(PAGE + 40)
    async with opened(directory, num_pages=12) as engine:
        seq = await engine.start()
        await take(engine, seq, ids, 0)
        await shelf.save(engine, seq)
        stored, expected = shelf.stored(engine, ids[:-1]), {}
        for number in range(3):
            more = [ids[-1], *random_ids(PAGE + number)[number:]]
            alone = await engine.start()
            expected[number] = more, await take(engine, alone, [*ids[:-1], *more], 5)
            await engine.release(alone)
        others = [await engine.start(stored) for _ in range(3)]
        for number, other in enumerate(others):
            more, tokens = expected[number]
            assert await take(engine, other, more, 5) == tokens
        assert len({other.chain.page_ids[1] for other in others}) == 3 and len(stored.chain.page_ids) == 1


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
        expected = await shelf.fill(engine, ids)
        free = engine._worker.scheduler.pool.num_free
        good = shelf.stored(engine, ids[:-1])
        broken = OSError("it is gone")

        def fail(numbers: list[int]) -> Iterable[bytes]:
            raise broken

        seq = await engine.start(Stored(good.chain, good.ids, good.page_ids, good.read_tail, fail))
        with pytest.raises(OSError, match="it is gone"):
            await take(engine, seq, ids[-1:], 5)
        assert engine._worker.scheduler.pool.num_free == free
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
        expected = await shelf.fill(engine, ids)
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
        while engine._worker.scheduler.loading:
            await asyncio.sleep(0.01)
        assert await take(engine, await engine.start(), ids, 5) == expected
        assert engine._worker.scheduler.pool.num_free == engine._worker.scheduler.pool.num_pages - 3


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
    first, second = (load(data) for data in shelf.pages.values())
    assert {name: list(rows.shape) for name, rows in first.items() if name not in second} == {
        "layers.2.head_rows": [32, 96],
        "layers.2.head_index_rows": [32, 32],
        "layers.3.head_rows": [1, 96],
        "layers.4.head_rows": [32, 96],
        "layers.4.head_index_rows": [32, 32],
    }
    assert {name: list(rows.shape) for name, rows in second.items()} == {
        "layers.2.rows": [32, 64 + 64 + 8],
        "layers.2.index_rows": [32, 16 + 1],
        "layers.3.rows": [1, 136],
        "layers.4.rows": [32, 136],
        "layers.4.index_rows": [32, 17],
    }


# Rolling.


def next_roll(seq: Sequence) -> Roll:
    """Keep two or three pages and the prefix."""
    return Roll(seq.num_tokens, (seq.num_tokens // PAGE - 2) * PAGE, PAGE)


async def roll_along(engine: Engine, seq: Sequence, ids: list[int], limit: int, rolls: list[Roll]) -> None:
    """Feed ids; whenever `limit` tokens are held, roll, and note it in `rolls`; known rolls happen where they did."""
    known = [r for r in rolls if r not in seq.chain.rolls]
    while len(seq.token_ids) < len(ids):
        end = known[0].position if known else len(seq.token_ids) + limit - (seq.num_tokens - seq.dropped_tokens)
        await engine.feed(seq, ids[len(seq.token_ids) : end])
        if known and seq.num_tokens == known[0].position:
            await engine.roll(seq, known.pop(0))
        elif len(seq.token_ids) < len(ids):
            rolls.append(next_roll(seq))
            await engine.roll(seq, rolls[-1])


@pytest.mark.parametrize("numerics", ["plain", "compact"])
@run_async
async def test_a_long_text_goes_through_a_short_window_and_each_token_is_computed_once(
    directory: Path, numerics: str
) -> None:
    ids = random_ids(5 * 900)
    async with opened(directory, num_pages=8, numerics=numerics, max_context=900) as engine:
        seq, computed, rolls = await engine.start(), 0, []
        run = engine._worker.runner.run

        def counted(plan: list) -> list:
            nonlocal computed
            computed += sum(count for _, count in plan)
            return run(plan)

        engine._worker.runner.run = counted  # type: ignore[method-assign]
        await roll_along(engine, seq, ids, 890, rolls)
        assert len(rolls) > 5 and computed == len(ids) == seq.num_tokens
        assert len(seq.pages) <= 8 and seq.num_tokens - seq.dropped_tokens <= 900


@run_async
async def test_kept_pages_stay_bit_for_bit_and_the_window_is_left_alone(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, cache = await engine.start(), engine._worker.runner.cache
        await engine.feed(seq, random_ids(900))
        before = {page: pack_page(cache, page, None, 0) for page in seq.pages}
        tail = cut_tail(cache, seq.slot, seq.pages[7], 900, None).pack()
        await engine.roll(seq, next_roll(seq))
        assert len(seq.pages) == 4 and seq.dropped_tokens == 4 * PAGE
        assert {page: pack_page(cache, page, None, 0) for page in seq.pages[1:]} == {
            page: before[page] for page in seq.pages[1:]
        }
        assert cut_tail(cache, seq.slot, seq.pages[3], 900, None).pack() == tail


@run_async
async def test_a_rolled_sequence_is_stored_and_goes_on_elsewhere_with_the_same_bits(directory: Path) -> None:
    ids, shelf, rolls = random_ids(3000), Shelf(), []
    async with opened(directory, num_pages=8, max_context=900) as engine:
        seq = await engine.start()
        await roll_along(engine, seq, ids[:2000], 890, rolls)
        await shelf.save(engine, seq)
        await roll_along(engine, seq, ids, 890, rolls)
        expected = await take(engine, seq, [7], 20)
        await shelf.save(engine, seq)
    async with opened(directory, num_pages=8, max_context=900) as engine:
        known = [r for r in rolls if r.position < 1999]
        resumed = await engine.start(shelf.stored(engine, ids[:1999], known))
        again = await engine.start()  # nothing stored: the same rolls at the same places
        for seq in (resumed, again):
            await roll_along(engine, seq, ids, 890, list(rolls))
            assert await take(engine, seq, [7], 20) == expected
            await shelf.save(engine, seq)  # asserts that the bytes are the same


@run_async
async def test_a_head_that_was_moved_still_counts(directory: Path) -> None:
    """Two sequences that differ in the prefix alone differ after a roll; without the prefix's rows they would not."""
    ids = random_ids(1200)
    other = [*random_ids(PAGE, seed=9), *ids[PAGE:]]
    async with opened(directory, num_pages=30) as engine:
        states = []
        for tokens in (ids, other):
            seq = await engine.start()
            await engine.feed(seq, tokens)
            await engine.roll(seq, next_roll(seq))
            page = seq.pages[0]
            states.append(pack_page(engine._worker.runner.cache, page, None, 0))
        assert states[0] != states[1]


@pytest.mark.parametrize(
    "roll",
    [Roll(900, 512, 0), Roll(899, 512, PAGE), Roll(900, 500, PAGE), Roll(900, PAGE, PAGE), Roll(900, 1024, PAGE)],
)
@run_async
async def test_a_roll_that_is_not_possible_is_refused_and_changes_nothing(directory: Path, roll: Roll) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(900)
        await engine.feed(seq, ids)
        pages = list(seq.pages)
        with pytest.raises(EngineError, match="Roll"):
            await engine.roll(seq, roll)
        assert seq.pages == pages and not seq.chain.rolls
        assert await take(engine, seq, [1], 5) == await take(engine, await engine.start(), [*ids, 1], 5)


@pytest.mark.parametrize("first", [PAGE, 40 * PAGE, 2**23])
@run_async
async def test_a_moved_head_is_what_encoding_it_there_gives(directory: Path, first: int) -> None:
    """The compressor runs once more on the same inputs, with the positions of the new place."""
    async with opened(directory, numerics="plain") as engine:
        seq, model, cache = await engine.start(), engine._worker.runner.model, engine._worker.runner.cache
        inputs = []
        complete = model.ops.complete_blocks
        model.ops.complete_blocks = lambda *args: (inputs.append(args), complete(*args))
        await engine.feed(seq, random_ids(PAGE))
        model.ops.complete_blocks = complete
        assert seq.prefix is not None
        layers = [(block, layer) for block, layer in zip(model.layers, cache.layers) if layer.ratio]
        assert len(inputs) == 2 * len(layers)  # of the pages, and of the prefix as it is
        for (block, layer), (mixed, rows, ring, pool, index_pool, weights) in zip(layers, inputs[::2], strict=True):
            moved = rows._replace(positions=rows.positions + first, dropped=rows.dropped + first)
            pool, index_pool = np.full_like(pool, np.nan), np.full_like(index_pool, np.nan)
            complete(mixed, moved, ring, pool, index_pool, weights)
            number, page = layer.number, seq.pages[0]
            got = block.attn.moved(seq.prefix.rows[number], seq.prefix.index_rows[number], first, layer)
            for rows_there, rows_moved in zip((pool, index_pool), got):
                per_page = len(rows_moved)
                expected = torch.from_numpy(rows_there[page * per_page : (page + 1) * per_page])
                at = slice(1 if layer.ratio == 4 else 0, None)  # here the first block finds one before it
                torch.testing.assert_close(rows_moved[at], expected[at], atol=2e-6, rtol=0)
