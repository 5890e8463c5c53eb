"""An engine on a tiny random model, for tests of its public API.

Tokens are greedy, so two runs that should be the same give the same tokens.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from holdfast.engine import Engine, EngineConfig, ModelConfig, SamplingParams, Sequence
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
