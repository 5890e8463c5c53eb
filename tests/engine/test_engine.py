"""The engine through its public API: what a sequence holds after every way to end a request, and who waits for whom.

A tiny random model; tokens are greedy, so two runs that should be the same give the same tokens.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.engine import (
    CheckpointError,
    ContextFull,
    Engine,
    EngineConfig,
    EngineError,
    ModelConfig,
    SamplingParams,
    Sequence,
    write_checkpoint,
)
from holdfast.engine.checkpoint.writer import random_weights
from holdfast.engine.runner import Runner
from holdfast.engine.state.cache import page_bytes

CONFIG = ModelConfig(
    vocab_size=160,
    hidden_size=96,
    num_hidden_layers=5,
    compress_ratios=(0, 0, 4, 128, 4, 0),
    num_attention_heads=4,
    head_dim=96,
    qk_rope_head_dim=32,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=32,
    index_n_heads=16,
    index_head_dim=32,
    index_topk=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    num_hash_layers=1,
    moe_intermediate_size=64,
    routed_scaling_factor=1.5,
    hc_mult=2,
    hc_sinkhorn_iters=4,
)
TIMEOUT_S = 600  # seconds on an idle machine; a request that is never answered must fail, not hang


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, CONFIG, random_weights(CONFIG, seed=11))
    return path


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = engine_threads()  # of a server that other tests share
    yield
    assert engine_threads() == before


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "holdfast-engine"]


def run_async(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


@asynccontextmanager
async def opened(directory: Path, num_pages: int = 8, **fields: Any) -> AsyncIterator[Engine]:
    config = EngineConfig(
        device="cpu", page_tokens=128, memory_bytes=num_pages * page_bytes(CONFIG, 128), threads=1, **fields
    )
    async with Engine.open(directory, config) as engine:
        yield engine


def random_ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(CONFIG.vocab_size), k=count)


async def take(engine: Engine, seq: Sequence, ids: list[int], max_tokens: int, **options: Any) -> list[int]:
    return [token async for token in engine.extend(seq, ids, SamplingParams(max_tokens=max_tokens), **options)]


async def fresh(engine: Engine, ids: list[int], max_tokens: int) -> list[int]:
    """The tokens of an undisturbed run."""
    seq = await engine.start()
    tokens = await take(engine, seq, ids, max_tokens)
    await engine.release(seq)
    return tokens


# A sequence and its requests.


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


# What is refused leaves everything as it was.


@run_async
async def test_ids_that_do_not_fit_the_context_change_nothing(directory: Path) -> None:
    async with opened(directory, max_context=200) as engine:
        assert engine.max_context == 200
        seq, ids = await engine.start(), random_ids(150)
        tokens = await take(engine, seq, ids, 10)
        for count in (40, 41, 500):  # 160 + 40 leaves no room to sample
            with pytest.raises(ContextFull) as error:
                await take(engine, seq, random_ids(count), 5)
            message = f"{160 + count} tokens do not fit the context of 200: shorten it or raise max_context"
            assert str(error.value) == message
            assert seq.token_ids == ids + tokens
        with pytest.raises(ContextFull):
            await engine.score(random_ids(201))
        assert await take(engine, seq, [4], 5) == await fresh(engine, [*ids, *tokens, 4], 5)


@run_async
async def test_sampling_stops_where_the_context_ends(directory: Path) -> None:
    async with opened(directory, max_context=200) as engine:
        seq, ids = await engine.start(), random_ids(190)
        tokens = await take(engine, seq, ids, 50)
        assert len(tokens) == 10 and len(seq.token_ids) == 200
        with pytest.raises(ContextFull):
            await take(engine, seq, [], 1)
        assert tokens[:5] == await fresh(engine, ids, 5)
        assert len(await engine.score(random_ids(200))) == 200


@run_async
async def test_more_than_the_pool_holds_is_refused_at_once(directory: Path) -> None:
    """Without max_context the pool bounds the context."""
    async with opened(directory, num_pages=2) as engine:
        assert engine.max_context == 256
        seq = await engine.start()
        with pytest.raises(ContextFull, match="257 tokens do not fit the context of 256: "):
            await take(engine, seq, random_ids(257), 1)
        assert seq.token_ids == []
        assert len(await take(engine, seq, random_ids(250), 100)) == 6


@pytest.mark.parametrize("ids", [[160], [3, -1], [5, 10**12]])
@run_async
async def test_an_id_outside_the_vocabulary_is_refused(directory: Path, ids: list[int]) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
        with pytest.raises(EngineError) as error:
            await take(engine, seq, ids, 3)
        assert str(error.value) == f"token id {ids[-1]} is outside the vocabulary of 160"
        with pytest.raises(EngineError, match="outside the vocabulary"):
            await engine.score(ids)
        assert seq.token_ids == []
        assert await take(engine, seq, [3, 159], 3) == await fresh(engine, [3, 159], 3)


@run_async
async def test_an_empty_sequence_needs_a_token(directory: Path) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
        with pytest.raises(EngineError, match="has nothing to feed: give at least one token id"):
            await take(engine, seq, [], 3)
        assert await take(engine, seq, [9], 3) == await fresh(engine, [9], 3)


@run_async
async def test_a_second_extend_on_a_busy_sequence_is_refused(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(60)
        tokens = []
        async with aclosing(engine.extend(seq, ids, SamplingParams(max_tokens=30))) as stream:
            tokens.append(await anext(stream))
            with pytest.raises(EngineError, match=f"sequence {seq.id} is already being extended"):
                await take(engine, seq, [1], 3)
            tokens += [token async for token in stream]
        assert tokens == await fresh(engine, ids, 30)
        assert seq.token_ids == ids + tokens


# Ways to leave a request that are rarer.


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
async def test_a_released_sequence_is_refused_or_starts_over(directory: Path) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
        await take(engine, seq, random_ids(200), 5)
        await engine.release(seq)
        await fresh(engine, random_ids(200, seed=1), 5)  # takes its pages and its slot
        fed = [*seq.token_ids, 3]
        try:
            tokens = await take(engine, seq, [3], 5)
        except EngineError:
            return
        assert tokens == await fresh(engine, fed, 5)


@run_async
async def test_an_old_generator_read_on_does_not_harm_a_newer_request(directory: Path) -> None:
    async with opened(directory) as engine:
        seq, ids = await engine.start(), random_ids(20)
        old = engine.extend(seq, ids, SamplingParams(max_tokens=6))
        async with aclosing(old):
            tokens = [await anext(old)]
            await asyncio.sleep(0.3)  # all six are sampled
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
async def test_a_closed_engine_answers_with_an_error(directory: Path) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
    calls = (lambda: take(engine, seq, [3], 1), lambda: engine.score([3]), lambda: engine.release(seq))
    for call in calls:
        with pytest.raises(EngineError):
            await asyncio.wait_for(call(), TIMEOUT_S)


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


# Sequences beside each other.


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


# Opening and failing.


@pytest.mark.parametrize(
    "fields",
    [
        {"device": "tpu"},
        {"numerics": "fast"},
        {"ranks": 0},
        {"page_tokens": 0},
        {"prefill_chunk": 0},
        {"prefill_chunk": -5},
        {"memory_bytes": 0},
        {"max_sequences": 0},
        {"max_context": 0},
        {"num_drafts": -1},
        {"num_drafts": 16},
    ],
    ids=str,
)
def test_a_bad_setting_is_named_in_one_line(fields: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as error:
        EngineConfig(**fields)
    ((name, value),) = fields.items()
    message = str(error.value)
    assert name in message and str(value) in message and "\n" not in message


@run_async
async def test_pages_that_are_no_whole_blocks_are_refused(directory: Path) -> None:
    with pytest.raises(EngineError, match="page_tokens=200 is not a multiple of 128"):
        async with Engine.open(directory, EngineConfig(device="cpu", page_tokens=200)):
            pass


@run_async
async def test_a_missing_or_damaged_checkpoint_is_refused_and_leaves_no_thread(directory: Path, tmp_path: Path) -> None:
    before = engine_threads()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        async with Engine.open(tmp_path / "nowhere"):
            pass
    write_checkpoint(tmp_path / "cut", CONFIG, random_weights(CONFIG, seed=1))
    shard = next((tmp_path / "cut").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as error:
        async with Engine.open(tmp_path / "cut"):
            pass
    assert shard.name in str(error.value) and "\n" not in str(error.value)
    assert engine_threads() == before
    (tmp_path / "cut" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        async with Engine.open(tmp_path / "cut"):
            pass


@run_async
async def test_without_a_tokenizer_the_engine_scores_and_says_what_is_missing(directory: Path) -> None:
    async with opened(directory) as engine:
        assert (await engine.score([1, 2, 3])).shape == (3, 160)
        with pytest.raises(EngineError, match=r"has no tokenizer\.json"):
            _ = engine.tokenizer


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
