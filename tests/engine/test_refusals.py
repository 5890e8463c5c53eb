"""What the engine refuses, in one line: requests, settings and checkpoints; and what a refusal leaves as it was."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from holdfast.engine import (
    CheckpointError,
    ContextFull,
    Engine,
    EngineConfig,
    EngineError,
    SamplingParams,
    write_checkpoint,
)
from holdfast.engine.checkpoint.writer import random_weights
from tests.engine.tiny_engine import CONFIG, TIMEOUT_S, engine_threads, fresh, opened, random_ids, run_async, take

pytestmark = pytest.mark.usefixtures("no_thread_stays")


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
async def test_a_closed_engine_answers_with_an_error(directory: Path) -> None:
    async with opened(directory) as engine:
        seq = await engine.start()
    calls = (lambda: take(engine, seq, [3], 1), lambda: engine.score([3]), lambda: engine.release(seq))
    for call in calls:
        with pytest.raises(EngineError):
            await asyncio.wait_for(call(), TIMEOUT_S)


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
