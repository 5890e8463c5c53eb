"""The engine against golden vectors of the tiny Flash checkpoint: logits, tokens, MTP, official blocks."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast.engine.batch import Batch
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.model import Model
from holdfast.engine.numerics import Numerics
from holdfast.engine.sequence import Sequence
from holdfast.engine.state.cache import Cache
from holdfast.engine.state.content_ids import Roll

FLASH = Path(__file__).parents[1] / "fixtures" / "v4-tiny-flash"
PROMPTS = (1, 3, 4, 5, 127, 128, 129, 131, 255, 256, 257, 300, 511, 517)
DECODED = (5, 129, 300, 517)


@cache
def model(numerics: str) -> Model:
    return Model(Checkpoint.open(FLASH, ModelConfig.from_dir(FLASH)), Numerics(numerics))


@cache
def vectors(name: str) -> dict[str, Tensor]:
    return load_file(FLASH / f"{name}.safetensors")


def new_cache(m: Model, page_tokens: int = 256) -> Cache:
    return Cache(m.config, m.numerics, page_tokens, num_pages=2048 // page_tokens, num_slots=1)


def new_sequence(cache: Cache) -> Sequence:
    """A sequence on every page, in an order that no index may rely on."""
    pages = list(range(cache.num_pages))
    return Sequence(0, slot=0, pages=pages[1::2] + pages[0::2])


@torch.inference_mode()
def feed(m: Model, cache: Cache, seq: Sequence, ids: list[int], chunk: int = 10_000) -> Tensor:
    """Process ids in chunks; the streams [len(ids), M, D] after the last block."""
    seq.token_ids += ids
    parts = []
    while seq.num_waiting:
        count = min(chunk, seq.num_waiting)
        batch = Batch([(seq, count)], cache, m.ops)
        start = batch.segments[0].start
        parts.append(m.streams(batch, cache)[start : start + count])
        seq.num_tokens += count
    return torch.cat(parts)


@torch.inference_mode()
def logits(m: Model, streams: Tensor) -> Tensor:
    return m.lm_head(streams)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_prefill_logits(prompt: int) -> None:
    m = model("plain")
    cache = new_cache(m)
    streams = feed(m, cache, new_sequence(cache), vectors("prompts")[f"prompt.{prompt}"].tolist())
    torch.testing.assert_close(
        logits(m, streams[-1:])[0], vectors("plain")[f"prefill.{prompt}.logits"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("prompt", DECODED)
def test_plain_decode_gives_the_recorded_tokens(prompt: int) -> None:
    m = model("plain")
    cache = new_cache(m)
    seq = new_sequence(cache)
    wanted = vectors("plain")[f"decode.{prompt}.logits"]
    row = logits(m, feed(m, cache, seq, vectors("prompts")[f"prompt.{prompt}"].tolist(), chunk=64)[-1:])[0]
    tokens = []
    for step in range(32):
        torch.testing.assert_close(row, wanted[step], atol=1e-4, rtol=0)
        tokens.append(int(row.argmax()))
        row = logits(m, feed(m, cache, seq, tokens[-1:]))[0]
    torch.testing.assert_close(row, wanted[32], atol=1e-4, rtol=0)
    assert tokens == vectors("plain")[f"decode.{prompt}.tokens"].tolist()


@torch.inference_mode()
@pytest.mark.parametrize("prompt", (5, 129, 300))
def test_plain_mtp_logits(prompt: int) -> None:
    """Slots of the prompt in one prefill of the MTP block, then two slots one at a time on its own ring."""
    m = model("plain")
    cache = new_cache(m)
    assert m.mtp is not None
    ids = vectors("prompts")[f"prompt.{prompt}"].tolist()
    next_ids = vectors("plain")[f"mtp.{prompt}.next_ids"].tolist()
    streams = feed(m, cache, new_sequence(cache), [*ids, *next_ids[prompt - 1 : prompt + 1]])
    rows = []
    drafter = new_sequence(cache)
    drafter.token_ids = [0] * (prompt + 2)
    for count in (prompt, 1, 1):
        batch = Batch([(drafter, count)], cache, m.ops)
        start, at = batch.segments[0].start, drafter.num_tokens
        x, following = torch.zeros(count, *streams.shape[1:]), torch.zeros(count, dtype=torch.int64)
        x[start : start + count] = streams[at : at + count]
        following[start : start + count] = torch.tensor(next_ids[at : at + count])
        rows.append(m.mtp(x, following, batch, cache.layers[-1])[start : start + count])
        drafter.num_tokens += count
    positions = vectors("plain")[f"mtp.{prompt}.positions"]
    torch.testing.assert_close(torch.cat(rows)[positions], vectors("plain")[f"mtp.{prompt}.logits"], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("number", range(6))
def test_official_numerics_block_by_block(number: int) -> None:
    """The true input of one block gives its true output: median over tokens of the mean difference."""
    m = model("official")
    cache = new_cache(m)
    seq = new_sequence(cache)
    seq.token_ids = vectors("blocks")["ids"].tolist()
    batch = Batch([(seq, 136)], cache, m.ops)
    out = m.layers[number](vectors("blocks")[f"streams.{number}"].float(), batch, cache.layers[number])
    difference = (out - vectors("blocks")[f"streams.{number + 1}"].float()).abs().mean((1, 2))
    assert difference.median() <= 0.008, difference.median()


def test_official_logits_are_sane() -> None:
    """End to end official logits are chaotic; this catches gross errors only (limits of the vectors' README)."""
    m, means = model("official"), []
    for prompt in PROMPTS:
        cache = new_cache(m)
        row = logits(m, feed(m, cache, new_sequence(cache), vectors("prompts")[f"prompt.{prompt}"].tolist())[-1:])[0]
        wanted = vectors("official")[f"prefill.{prompt}.logits"]
        means.append(float((row - wanted).abs().mean()))
        assert torch.cosine_similarity(row - row.mean(), wanted - wanted.mean(), 0) >= 0.95, prompt
    assert torch.tensor(means).median() <= 0.15 and sum(x > 0.35 for x in means) <= 2, means


def test_dropping_the_oldest_pages_changes_nothing_else() -> None:
    """Rolling: the page table loses its first five pages of 128 tokens; everything else goes on."""
    m, wanted = model("plain"), vectors("eviction")
    cache = new_cache(m, page_tokens=128)
    seq = new_sequence(cache)
    ids = wanted["ids"].tolist()
    feed(m, cache, seq, ids[:1280], chunk=256)
    del seq.pages[: int(wanted["evict_units"])]
    seq.chain.rolls.append(Roll(seq.num_tokens, first_kept=int(wanted["evict_units"]) * 128, head_tokens=0))
    streams = feed(m, cache, seq, ids[1280:], chunk=50)
    early = wanted["early_positions"] - 1280
    torch.testing.assert_close(logits(m, streams[early]), wanted["early_logits"], atol=1e-4, rtol=0)
    row, tokens = logits(m, streams[-1:])[0], []
    for step in range(40):
        torch.testing.assert_close(row, wanted["logits"][step], atol=1e-4, rtol=0)
        tokens.append(int(row.argmax()))
        row = logits(m, feed(m, cache, seq, tokens[-1:]))[0]
    assert tokens == wanted["tokens"].tolist()
