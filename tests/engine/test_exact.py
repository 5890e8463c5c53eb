"""Bitwise promises on CPU: a token's logits depend on the tokens before it, not on chunks, batches, pages or retries.

The model has random weights and the dimensions of pocket. Nothing here has a tolerance.
"""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from holdfast.agent.pocket.net import NetConfig
from holdfast.engine import ModelConfig, write_checkpoint
from holdfast.engine.batch import Batch
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.checkpoint.writer import random_weights
from holdfast.engine.model import Model
from holdfast.engine.numerics import Numerics
from holdfast.engine.sequence import Sequence
from holdfast.engine.state.cache import Cache

CONFIG = ModelConfig(**dataclasses.asdict(NetConfig()))
PAGE_TOKENS, NUM_PAGES, NUM_SLOTS = 128, 24, 4
LENGTHS = (*range(1, 10), *range(127, 131), *range(255, 258), *range(383, 386), *range(511, 514))
NUM_TOKENS = 700


def tokens(seed: int, count: int) -> list[int]:
    return random.Random(seed).choices(range(CONFIG.vocab_size), k=count)


IDS = tokens(0, NUM_TOKENS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pocket")
    write_checkpoint(path, CONFIG, random_weights(CONFIG, seed=3))
    return path


@pytest.fixture(scope="module", params=["plain", "compact"])
def model(request: pytest.FixtureRequest, directory: Path) -> Model:
    return Model(Checkpoint.open(directory, CONFIG), Numerics(request.param))


@pytest.fixture(scope="module")
def expected(model: Model) -> Tensor:
    """Logits of all positions of IDS, [tokens, V], by one prefill."""
    return logits(model, feed(model, new_cache(model), new_sequence(), IDS))


def new_cache(model: Model) -> Cache:
    return Cache(model.config, model.numerics, PAGE_TOKENS, NUM_PAGES, NUM_SLOTS)


def new_sequence(slot: int = 0, pages: range = range(6)) -> Sequence:
    return Sequence(slot, slot=slot, pages=list(pages))


@torch.inference_mode()
def step(model: Model, cache: Cache, plan: list[tuple[Sequence, int]]) -> dict[int, Tensor]:
    """Process the next `count` waiting tokens of each sequence in one batch; streams by sequence id."""
    batch = Batch(plan, cache, model.ops)
    streams = model.streams(batch, cache)
    for seq, count in plan:
        seq.num_tokens += count
    return {s.seq.id: streams[s.start : s.start + s.count].clone() for s in batch.segments}


def feed(model: Model, cache: Cache, seq: Sequence, ids: list[int], chunk: int = 10_000) -> Tensor:
    """Process ids in chunks; the streams [len(ids), M, D] after the last block."""
    seq.token_ids += ids
    parts = []
    while seq.num_waiting:
        parts.append(step(model, cache, [(seq, min(chunk, seq.num_waiting))])[seq.id])
    return torch.cat(parts)


def take_back(seq: Sequence, num_tokens: int) -> None:
    seq.num_tokens = num_tokens
    del seq.token_ids[num_tokens:]


@torch.inference_mode()
def logits(model: Model, streams: Tensor) -> Tensor:
    return model.lm_head(streams)


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    wrong = (got != expected).any(1).nonzero().flatten().tolist()
    assert torch.equal(got, expected), (
        f"{len(wrong)} of {len(got)} rows differ, first {wrong[:5]}, by up to {(got - expected).abs().max()}"
    )


def test_the_model_distinguishes_what_these_tests_vary(model: Model, expected: Tensor) -> None:
    """Far tokens matter: with the first token changed the last logits are others, so equal bits say something."""
    other = feed(model, new_cache(model), new_sequence(), [IDS[0] ^ 1, *IDS[1:]])
    assert not torch.equal(logits(model, other)[-1], expected[-1])


@pytest.mark.parametrize("chunk", [7, 16, 100, 512])
def test_prefill_in_chunks_equals_one_prefill(model: Model, expected: Tensor, chunk: int) -> None:
    streams = feed(model, new_cache(model), new_sequence(), IDS, chunk)
    assert_same_bits(logits(model, streams), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_tokens_at_a_time_equal_one_prefill(model: Model, expected: Tensor, count: int) -> None:
    """Decoding, alone and with guesses to verify."""
    cache, seq = new_cache(model), new_sequence()
    feed(model, cache, seq, IDS[:600])
    assert_same_bits(logits(model, feed(model, cache, seq, IDS[600:], chunk=count)), expected[600:])


def test_logits_of_one_row_equal_those_of_many(model: Model, expected: Tensor) -> None:
    """The vocabulary head alone: a decode step computes one row, a scored prompt all rows at once."""
    streams = feed(model, new_cache(model), new_sequence(), IDS)
    rows = [logits(model, streams[t : t + 1]) for t in range(0, NUM_TOKENS, 7)]
    assert_same_bits(torch.cat(rows), expected[::7])


@pytest.mark.parametrize("length", LENGTHS)
def test_a_shorter_prompt_and_its_next_tokens_equal_the_longer_prefill(
    model: Model, expected: Tensor, length: int
) -> None:
    cache, seq = new_cache(model), new_sequence()
    prompt = feed(model, cache, seq, IDS[:length])
    decoded = feed(model, cache, seq, IDS[length : length + 5], chunk=1)
    assert_same_bits(logits(model, torch.cat((prompt, decoded))), expected[: length + 5])


def test_every_sequence_of_a_mixed_batch_equals_itself_alone(model: Model, expected: Tensor) -> None:
    """Four sequences at different positions; each step mixes decodes and stretches, and their order changes."""
    cache = new_cache(model)
    prompts = [IDS, *(tokens(seed, 400) for seed in (1, 2, 3))]
    sequences = [new_sequence(slot, range(slot, NUM_PAGES, NUM_SLOTS)) for slot in range(NUM_SLOTS)]
    for seq, ids in zip(sequences, prompts):
        seq.token_ids += ids
    counts = [
        [120, 1, 7, 300],
        [1, 1, 1, 1],
        [8, 1, 120, 1],
        [1, 1, 1, 1],
        [1, 250, 1, 40],
        [300, 20, 1, 1],
        [1, 1, 17, 1],
    ]
    counts += [[37, 0, 5, 9], [1, 30, 0, 0], [1, 1, 1, 1], [1, 1, 60, 1], [1, 0, 1, 0], [1, 1, 1, 1], [129, 1, 1, 2]]
    counts += [[2, 1, 3, 2], [4, 4, 4, 4], [3, 2, 2, 1], [1, 4, 2, 3], [1, 1, 1, 1], [1, 1, 1, 1]]
    parts: dict[int, list[Tensor]] = {seq.id: [] for seq in sequences}
    for number, amounts in enumerate(counts):
        plan = [(seq, count) for seq, count in zip(sequences, amounts) if count]
        plan = plan[number % 2 :] + plan[: number % 2]
        for seq_id, streams in step(model, cache, plan).items():
            parts[seq_id].append(streams)
    assert_same_bits(logits(model, torch.cat(parts[0])), expected[: sequences[0].num_tokens])
    for seq in sequences[1:]:
        alone = feed(model, new_cache(model), new_sequence(), seq.token_ids[: seq.num_tokens])
        assert_same_bits(logits(model, torch.cat(parts[seq.id])), logits(model, alone))


@pytest.mark.parametrize("chunk", [1, 512])
@pytest.mark.parametrize("pages", [range(5, -1, -1), range(3, NUM_PAGES, 4)], ids=["backwards", "scattered"])
def test_other_pages_and_slots_that_others_have_used_give_the_same_bits(
    model: Model, expected: Tensor, pages: range, chunk: int
) -> None:
    cache = new_cache(model)
    feed(model, cache, new_sequence(2, range(NUM_PAGES)), tokens(9, 600))
    feed(model, cache, new_sequence(2, range(NUM_PAGES - 1, -1, -1)), tokens(8, NUM_TOKENS))
    seq = new_sequence(2, pages)
    if chunk > 1:
        streams = feed(model, cache, seq, IDS, chunk)
    else:
        streams = torch.cat((feed(model, cache, seq, IDS[:640]), feed(model, cache, seq, IDS[640:], chunk)))
    assert_same_bits(logits(model, streams), expected)


@pytest.mark.parametrize("chunk", [1, 16], ids=["one by one", "at once"])
@pytest.mark.parametrize("kept", [1, 3, 120, 126, 250, 377, 500, 511, 600])
def test_other_tokens_after_tokens_taken_back_give_the_bits_of_a_fresh_run(
    model: Model, expected: Tensor, kept: int, chunk: int
) -> None:
    """Sixteen tokens are wrong and taken back, twice, then a few of the right ones too."""
    cache, seq = new_cache(model), new_sequence()
    feed(model, cache, seq, IDS[:kept])
    for seed in (5, 6):
        feed(model, cache, seq, tokens(seed, 16), chunk)
        take_back(seq, kept)
    feed(model, cache, seq, IDS[kept : kept + 9], chunk)
    take_back(seq, kept + 4)
    assert_same_bits(
        logits(model, feed(model, cache, seq, IDS[kept + 4 : kept + 24], chunk)), expected[kept + 4 : kept + 24]
    )
    assert_same_bits(
        logits(model, feed(model, cache, seq, IDS[kept + 24 : kept + 100])), expected[kept + 24 : kept + 100]
    )
