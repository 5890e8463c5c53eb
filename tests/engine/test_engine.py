"""The engine through its public API: what a sequence holds after every way to end a request."""

import asyncio
import contextlib
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.engine import EngineError, SamplingParams
from holdfast.engine.runner import Runner
from tests.engine.tiny_engine import TIMEOUT_S, fresh, opened, random_ids, run_async, take

pytestmark = pytest.mark.usefixtures("no_thread_stays")


@run_async
async def test_extending_several_times_equals_one_long_extend(directory: Path) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
        fed: list[int] = []
        for seed, (count, max_tokens) in enumerate([(5, 3), (140, 7), (1, 1), (3, 0), (60, 12)]):
            ids = random_ids(count, seed)
            fed += ids
            expected = await fresh(engine, fed, max_tokens)
            assert await take(engine, seq, ids, max_tokens) == expected
            fed += expected
            assert seq.token_ids == fed


@run_async
async def test_sampling_goes_on_without_new_tokens(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(50)
        tokens = await take(engine, seq, ids, 6) + await take(engine, seq, [], 5)
        assert tokens == await fresh(engine, ids, 11)


@pytest.mark.parametrize("taken", [1, 2, 5, 19])
@run_async
async def test_closing_early_leaves_the_fed_and_the_yielded_tokens(directory: Path, taken: int) -> None:
    async with opened(directory) as engine:
        seq, ids, more = await engine.start(), random_ids(130), random_ids(9, seed=1)
        expected = await fresh(engine, ids, 20)
        tokens = []
        async with aclosing(engine.extend(seq, ids, SamplingParams(max_tokens=20))) as stream:
            async for token in stream:
                tokens.append(token)
                await asyncio.sleep(0.03)  # the engine has sampled ahead by now
                if len(tokens) == taken:
                    break
        assert tokens == expected[:taken]
        assert seq.token_ids == ids + tokens
        assert await take(engine, seq, more, 8) == await fresh(engine, ids + tokens + more, 8)


@run_async
async def test_closing_again_and_again_changes_no_token(directory: Path) -> None:
    """Each time the engine has run ahead, and tokens that were not taken are taken back."""
    async with opened(directory) as engine:
        seq, fed = await engine.start(), random_ids(120)
        new = fed
        for number in range(8):
            async with aclosing(engine.extend(seq, new, SamplingParams(max_tokens=40))) as stream:
                tokens = [await anext(stream) for _ in range(3)]
                await asyncio.sleep(0.05)
            assert tokens == await fresh(engine, fed, 3)
            new = [number]
            fed = fed + tokens + new
            assert seq.token_ids == fed[:-1]


@run_async
async def test_cancelling_in_the_middle_of_a_prefill_leaves_what_was_fed(directory: Path) -> None:
    async with opened(directory, num_pages=16, prefill_chunk=16) as engine:
        seq, ids = await engine.start(), random_ids(900)
        begun = asyncio.Event()
        done: list[int] = []

        def on_prefill(count: int, total: int) -> None:
            done.append(count)
            begun.set()

        task = asyncio.create_task(take(engine, seq, ids, 10, on_prefill=on_prefill))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done[-1] < 900, "the prefill was over already"
        assert seq.token_ids == ids
        assert seq.num_tokens < 900
        assert await take(engine, seq, [7], 10) == await fresh(engine, [*ids, 7], 10)


@run_async
async def test_a_cancelled_feed_is_over_at_once(directory: Path) -> None:
    async with opened(directory, num_pages=16, prefill_chunk=16) as engine:
        seq, ids, begun = await engine.start(), random_ids(900), asyncio.Event()
        task = asyncio.create_task(engine.feed(seq, ids, lambda done, total: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seq.num_tokens < 900, "the prefill was over already"
        assert await take(engine, seq, [7], 10) == await fresh(engine, [*ids, 7], 10)


@run_async
async def test_a_stop_token_ends_the_request_and_is_the_last(directory: Path) -> None:
    async with opened(directory) as engine:
        ids = random_ids(40)
        expected = await fresh(engine, ids, 30)
        stop = expected[12]
        first = expected.index(stop)
        seq = await engine.start()
        params = SamplingParams(max_tokens=30, stop_ids=frozenset([stop]))
        tokens = [token async for token in engine.extend(seq, ids, params)]
        assert tokens == expected[: first + 1]
        assert seq.token_ids == ids + tokens
        assert await take(engine, seq, [], 5) == (await fresh(engine, ids, first + 6))[first + 1 :]


@run_async
async def test_zero_tokens_feed_and_yield_nothing(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(70)
        assert await take(engine, seq, ids, 0) == []
        assert seq.token_ids == ids and seq.num_tokens == 70
        with pytest.raises(EngineError, match="nothing to feed"):
            await take(engine, seq, [], 0)
        tokens = await take(engine, seq, [], 5)
        assert tokens == await fresh(engine, ids, 5)
        assert await take(engine, seq, [3], 5) == await fresh(engine, [*ids, *tokens, 3], 5)


@run_async
async def test_prefill_is_reported_in_growing_steps_up_to_its_total(directory: Path) -> None:
    async with opened(directory, prefill_chunk=32) as engine:
        seq = await engine.start()
        for ids, feeds in ((random_ids(150), 150), (random_ids(40, seed=1), 41), ([5], 2)):
            reports: list[tuple[int, int]] = []
            await take(engine, seq, ids, 4, on_prefill=lambda done, total, to=reports: to.append((done, total)))
            counts = [done for done, _ in reports]
            assert counts == sorted(set(counts)) and counts[0] > 0
            assert {total for _, total in reports} == {feeds} and counts[
                -1
            ] == feeds  # the last sampled token waits too
            assert len(reports) >= feeds / 32


@run_async
async def test_seeded_sampling_does_not_depend_on_who_else_runs(directory: Path) -> None:
    async with opened(directory) as engine:
        params = [SamplingParams(temperature=1.5, top_k=50, seed=seed, max_tokens=15) for seed in (1, 2, 3)]
        ids = random_ids(30)

        async def one(p: SamplingParams) -> list[int]:
            return [token async for token in engine.extend(await engine.start(), ids, p)]

        alone = [await one(p) for p in params]
        assert await asyncio.gather(*map(one, params)) == alone
        assert len({tuple(tokens) for tokens in alone}) == 3


@run_async
async def test_guesses_change_no_token(directory: Path) -> None:
    """Prompts that repeat themselves, so that many guesses are made.

    Greedy, sampled, with a stop token, and with forbidden ones.
    """
    ids = random_ids(12) * 8
    runs = []
    for num_drafts in (0, 1, 3):
        async with opened(directory, num_drafts=num_drafts) as engine:
            params = [SamplingParams(max_tokens=60), SamplingParams(temperature=0.5, top_k=2, seed=1, max_tokens=60)]
            tokens = [[token async for token in engine.extend(await engine.start(), ids, p)] for p in params]
            stop = SamplingParams(max_tokens=60, stop_ids=frozenset([tokens[0][41]]))
            tokens.append([token async for token in engine.extend(await engine.start(), ids, stop)])
            assert tokens[2] == tokens[0][: tokens[0].index(tokens[0][41]) + 1]
            others = SamplingParams(max_tokens=60, never=frozenset([*tokens[0], 10**6]))
            tokens.append([token async for token in engine.extend(await engine.start(), ids, others)])
            assert len(tokens[3]) == 60 and not {*tokens[3]} & others.never
            runs.append(tokens)
    assert runs[0] == runs[1] == runs[2]


@run_async
async def test_cancelling_while_the_request_is_handed_over_frees_the_sequence(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(60)
        task = asyncio.create_task(take(engine, seq, ids, 100))
        await asyncio.sleep(0)  # it waits for the engine's thread now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)
        assert seq.token_ids in ([], ids)
        fed = [*seq.token_ids, 3]
        assert await take(engine, seq, [3], 5) == await fresh(engine, fed, 5)


@run_async
async def test_an_old_generator_read_on_does_not_harm_a_newer_request(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(20)
        old = engine.extend(seq, ids, SamplingParams(max_tokens=6))
        async with aclosing(old):
            tokens = [await anext(old)]
            while engine.is_decoding:  # until all six are sampled
                await asyncio.sleep(0.01)
            tokens += [3, *await take(engine, seq, [3], 4)]
            with contextlib.suppress(EngineError):
                async for _ in old:
                    pass
        assert seq.token_ids == ids + tokens
        assert tokens[2:] == await fresh(engine, ids + tokens[:2], 4)


@run_async
async def test_sampling_goes_on_without_new_tokens_after_closing_early(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(50)
        async with aclosing(engine.extend(seq, ids, SamplingParams(max_tokens=30))) as stream:
            tokens = [await anext(stream) for _ in range(3)]
            await asyncio.sleep(0.3)
        tokens += await take(engine, seq, [], 5)
        assert tokens == await fresh(engine, ids, 8)


@run_async
async def test_a_generator_left_open_can_be_closed_after_the_engine(directory: Path) -> None:
    """Otherwise asyncio.run, which closes generators last, never returns."""
    async with opened(directory) as engine:
        stream = engine.extend(await engine.start(), random_ids(50), SamplingParams(max_tokens=50))
        await anext(stream)
    async with asyncio.timeout(TIMEOUT_S):
        await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@run_async
async def test_closing_the_engine_ends_the_requests_of_other_tasks(directory: Path) -> None:
    async with opened(directory) as engine:
        begun = asyncio.Event()
        seq = await engine.start()
        running = asyncio.create_task(take(engine, seq, [3], 900, on_prefill=lambda *_: begun.set()))
        waiting = asyncio.create_task(fresh(engine, [5], 900))  # for pages
        scoring = asyncio.create_task(engine.score(random_ids(900)))
        await begun.wait()
    for task in (running, waiting, scoring):
        with pytest.raises(EngineError, match="closed"):
            await asyncio.wait_for(task, TIMEOUT_S)


@run_async
async def test_release_ends_whatever_extends_the_sequence(directory: Path) -> None:
    async with opened(directory, num_pages=2) as engine:
        for _ in range(3):  # its pages are free again, or the next round would wait for them
            seq = await engine.start()
            stream = engine.extend(seq, random_ids(130), SamplingParams(max_tokens=100))
            async with aclosing(stream):
                await anext(stream)
                await engine.release(seq)
                with pytest.raises(EngineError, match=f"sequence {seq.id} was released"):
                    async for _ in stream:
                        pass
        assert len(await fresh(engine, random_ids(200), 56)) == 56


@run_async
async def test_releasing_an_unused_or_released_sequence_does_nothing(directory: Path) -> None:
    async with opened(directory, num_pages=1, max_sequences=1) as engine:
        seq = await engine.start()
        await engine.release(seq)
        await take(engine, used := await engine.start(), [1], 1)
        await engine.release(used)
        await engine.release(used)
        first, second = (asyncio.create_task(fresh(engine, [seed], 120)) for seed in (1, 2))
        assert await first != await second  # a page or slot given back twice would be shared by the two
        assert await first == await fresh(engine, [1], 120)


@run_async
async def test_scores_do_not_depend_on_the_chunk(directory: Path) -> None:
    ids = random_ids(300)
    rows = []
    for chunk in (512, 100, 7, 1):
        async with opened(directory, prefill_chunk=chunk) as engine:
            rows.append(await engine.score(ids))
            assert (await engine.score([])).shape == (0, 160)
            greedy = await fresh(engine, ids[:50], 1)
        assert rows[-1].dtype == torch.float32 and rows[-1].shape == (300, 160)
        assert torch.equal(rows[-1], rows[0])
        assert [int(rows[0][49].argmax())] == greedy


@run_async
async def test_an_error_of_the_caller_closes_the_engine(directory: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with opened(directory) as engine:
            await take(engine, await engine.start(), [1, 2], 2)
            raise ValueError("mine")


@run_async
async def test_a_failing_step_ends_all_requests_and_the_engine(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    run = Runner.run

    def failing(self: Runner, plan: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise RuntimeError("the disk is on fire")
        return run(self, plan)

    monkeypatch.setattr(Runner, "run", failing)
    async with opened(directory, max_sequences=2) as engine:
        requests = [take(engine, await engine.start(), random_ids(9, seed), 50) for seed in range(4)]  # two wait
        results = await asyncio.gather(*requests, return_exceptions=True)
        message = "the engine stopped: RuntimeError: the disk is on fire"
        assert [(type(e), str(e)) for e in results] == [(EngineError, message)] * 4
        seq = await engine.start()
        for later in (take(engine, seq, [1], 1), engine.score([1, 2])):
            with pytest.raises(EngineError, match=message):
                await later
        assert seq.token_ids == []
    assert steps == 12
