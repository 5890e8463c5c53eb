"""Promises of the scheduler through the engine's public API: who waits for whom, and that waiting changes no token."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from holdfast.engine import SamplingParams
from tests.engine.tiny_engine import fresh, opened, random_ids, run_async, take

pytestmark = pytest.mark.usefixtures("no_thread_stays")


@run_async
async def test_many_sequences_share_few_pages_by_waiting_and_give_the_tokens_they_give_alone(directory: Path) -> None:
    """Each needs two of the six pages while it runs, so three run and the others wait."""
    async with opened(directory, num_pages=6, prefill_chunk=64) as engine:
        prompts = [random_ids(120 + seed, seed) for seed in range(20)]
        alone = [await fresh(engine, ids, 10) for ids in prompts]
        active: set[int] = set()
        most = 0

        async def one(number: int) -> list[int]:
            def on_prefill(done: int, total: int) -> None:
                nonlocal most
                active.add(number)
                most = max(most, len(active))

            seq = await engine.start()
            tokens = await take(engine, seq, prompts[number], 10, on_prefill=on_prefill)
            active.remove(number)
            await engine.release(seq)
            return tokens

        assert await asyncio.gather(*map(one, range(20))) == alone
        assert most >= 3


@run_async
async def test_more_sequences_than_slots_wait_for_a_slot(directory: Path) -> None:
    async with opened(directory, max_sequences=2) as engine:
        prompts = [random_ids(20, seed) for seed in range(7)]
        alone = [await fresh(engine, ids, 10) for ids in prompts]
        assert await asyncio.gather(*(fresh(engine, ids, 10) for ids in prompts)) == alone


@run_async
async def test_one_that_waits_can_be_cancelled_and_one_behind_it_still_runs(directory: Path) -> None:
    async with opened(directory, num_pages=2) as engine:
        holder = await engine.start()
        stream = engine.extend(holder, random_ids(140), SamplingParams(max_tokens=50))
        await anext(stream)  # keeps both pages
        waiting = [asyncio.create_task(fresh(engine, random_ids(9, seed), 5)) for seed in (1, 2)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await stream.aclose()
        assert await waiting[1] == await fresh(engine, random_ids(9, 2), 5)


@run_async
async def test_the_sequence_idle_longest_gives_its_memory_and_comes_back(directory: Path) -> None:
    """Seven sequences take turns in memory for three; without anyone to store it, state is computed again."""
    async with opened(directory, num_pages=6) as engine:
        sequences = [await engine.start() for _ in range(7)]
        fed = [random_ids(140, seed) for seed in range(7)]
        for _ in range(3):
            for seq, ids in zip(sequences, fed):
                tokens = await take(engine, seq, ids[len(seq.token_ids) :], 4)
                assert tokens == await fresh(engine, ids, 4)
                ids += [*tokens, 3]


@run_async
async def test_a_decoding_sequence_goes_on_during_a_long_prefill(directory: Path) -> None:
    async with opened(directory, num_pages=16, prefill_chunk=16) as engine:
        quick, slow, ids = await engine.start(), await engine.start(), random_ids(20)
        async with aclosing(engine.extend(quick, ids, SamplingParams(max_tokens=300))) as stream:
            tokens = [await anext(stream)]
            prefill = asyncio.create_task(take(engine, slow, random_ids(1000), 1))
            while not prefill.done():
                tokens.append(await anext(stream))
        assert len(tokens) > 30  # about one for each of 63 chunks
        assert tokens == await fresh(engine, ids, len(tokens))


@run_async
async def test_a_short_prompt_does_not_wait_for_long_ones(directory: Path) -> None:
    async with opened(directory, num_pages=32, prefill_chunk=16) as engine:
        short = random_ids(20)
        long = [asyncio.create_task(take(engine, await engine.start(), random_ids(1000), 1)) for _ in range(3)]
        await asyncio.sleep(0)
        alone = await fresh(engine, short, 5)
        assert not any(task.done() for task in long)
        assert [len(await task) for task in long] == [1, 1, 1]  # and they do not wait for ever either
        assert alone == await fresh(engine, short, 5)
