"""The engine and the transformers library give the same logits for one checkpoint of random weights."""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from holdfast.engine import Engine, EngineConfig, ModelConfig, SamplingParams, write_checkpoint
from holdfast.engine.bench.transformers_reference import load_oracle, new_cache, oracle_logits
from holdfast.engine.checkpoint.writer import random_weights

TOLERANCE = 1e-4  # logits have a standard deviation of about 2
SMALL: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 96,
    "q_lora_rank": 64,
    "o_lora_rank": 32,
    "index_topk": 8,  # far fewer than the 75 entries of 300 tokens: the selection matters
    "index_n_heads": 16,  # with few heads many scores are exactly 0, and the two break ties differently
    "moe_intermediate_size": 64,
}
CONFIGS = {
    "flash": ModelConfig(
        **SMALL,
        compress_ratios=(0, 0, 4, 128, 4, 128, 0),
        num_hidden_layers=6,
        num_attention_heads=4,
        head_dim=128,
        index_head_dim=64,
        o_groups=2,
        n_routed_experts=6,
        num_experts_per_tok=2,
        num_hash_layers=2,
        routed_scaling_factor=1.5,
    ),
    "pro": ModelConfig(
        **SMALL,
        compress_ratios=(128, 128, 4, 128, 4, 0),
        num_hidden_layers=5,
        num_attention_heads=8,
        head_dim=128,
        index_head_dim=128,
        o_groups=4,
        n_routed_experts=8,
        num_experts_per_tok=3,
        num_hash_layers=2,
        routed_scaling_factor=2.5,
    ),
    "pocket": ModelConfig(
        **SMALL,
        compress_ratios=(0, 0, 4, 128, 4, 0),
        num_hidden_layers=5,
        num_attention_heads=4,
        head_dim=96,
        qk_rope_head_dim=32,
        index_head_dim=32,
        o_groups=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        num_hash_layers=1,
        routed_scaling_factor=1.5,
        hc_mult=2,
        hc_sinkhorn_iters=4,
    ),
}


@dataclass(frozen=True)
class Pair:
    """One checkpoint, and what transformers says of it."""

    directory: Path
    oracle: DeepseekV4ForCausalLM


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = CONFIGS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    write_checkpoint(directory, config, random_weights(config, seed=11))
    return Pair(directory, load_oracle(directory))


def random_ids(num_tokens: int) -> list[int]:
    return random.Random(num_tokens).choices(range(2, SMALL["vocab_size"]), k=num_tokens)


def score(directory: Path, prompts: list[list[int]], prefill_chunk: int) -> list[Tensor]:
    async def run() -> list[Tensor]:
        config = EngineConfig(device="cpu", numerics="plain", prefill_chunk=prefill_chunk)
        async with Engine.open(directory, config) as engine:
            return [await engine.score(ids) for ids in prompts]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("prefill_chunk", "sizes"),
    [(512, (1, 5, 129, 300)), (100, (127, 128, 256, 300)), (1, (135,))],
    ids=["whole prompts", "chunks", "token by token"],
)
def test_logits_equal_those_of_transformers_at_every_position(
    pair: Pair, prefill_chunk: int, sizes: tuple[int, ...]
) -> None:
    prompts = [random_ids(size) for size in sizes]
    for ids, logits in zip(prompts, score(pair.directory, prompts, prefill_chunk), strict=True):
        expected = oracle_logits(pair.oracle, ids)
        assert logits.dtype == torch.float32 and logits.shape == (len(ids), SMALL["vocab_size"])
        assert (logits - expected).abs().max() < TOLERANCE, f"{len(ids)} tokens"


def test_greedy_decoding_picks_the_tokens_of_transformers(pair: Pair) -> None:
    """A token counts as right where its logit is the largest up to the tolerance: near-ties may go either way."""

    async def decode(ids: list[int]) -> list[int]:
        async with Engine.open(pair.directory, EngineConfig(device="cpu", numerics="plain")) as engine:
            return [token async for token in engine.extend(await engine.start(), ids, SamplingParams(max_tokens=8))]

    for ids in (random_ids(5), random_ids(124)):
        tokens = asyncio.run(decode(ids))
        assert len(tokens) == 8
        cache = new_cache(pair.oracle)
        fed = [ids, *[[token] for token in tokens]]
        for step, token in zip(fed, tokens):  # the last token is never fed
            logits = oracle_logits(pair.oracle, step, cache, last=1)[0]
            assert logits[token] > logits.max() - 2 * TOLERANCE
