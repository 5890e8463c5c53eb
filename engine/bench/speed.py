"""What a model does on this machine: prefill and decode at several context lengths, alone or beside transformers.

Prompts are random tokens, so nothing is repeated and nothing can be guessed. Every figure is the median of several
runs. The comparison runs the same checkpoint, dequantised, in the transformers library, fed in the same
chunks (one forward over a long prompt is slower there, and takes gigabytes).
"""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.engine import Engine
from holdfast.engine.errors import EngineError
from holdfast.engine.placement import CPU
from holdfast.engine.sampling import SamplingParams
from holdfast.engine.settings import EngineConfig

CONTEXTS = (1024, 8192)
DECODED_TOKENS = 64
RUNS = 3


@dataclass(frozen=True)
class Speed:
    """Tokens per second at one context length; `ratio` is to transformers in the same run, where that was asked for."""

    engine: str
    context: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    threads: int
    prefill_ratio: float | None = None
    decode_ratio: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        text = (
            f"{self.engine:12} context {self.context:>7,}: prefill {self.prefill_tokens_per_s:>7,.0f} tokens/s, "
            f"decode {self.decode_tokens_per_s:>6,.1f} tokens/s"
        )
        if self.prefill_ratio is None:
            return text
        return f"{text} ({self.prefill_ratio:.1f}x, {self.decode_ratio:.1f}x of transformers)"


def run_bench(
    directory: Path, contexts: list[int] | None = None, against_transformers: bool = False
) -> Iterator[Speed]:
    """One Speed per context, and with `against_transformers` that library's before it. Raises EngineError."""
    config = ModelConfig.from_dir(directory)
    for context in contexts or CONTEXTS:
        if not 1 <= context <= config.max_position_embeddings - DECODED_TOKENS:
            raise EngineError(
                f"context {context} is not between 1 and {config.max_position_embeddings - DECODED_TOKENS}"
            )
        ids = random.Random(context).choices(range(2, config.vocab_size), k=context)
        theirs = _in_own_process(directory, ids) if against_transformers else None
        prefill, decode = asyncio.run(_engine_speed(directory, ids))
        ratios = (prefill / theirs[0], decode / theirs[1]) if theirs else (None, None)
        threads = torch.get_num_threads()
        if theirs:
            yield Speed("transformers", context, *theirs, threads)
        yield Speed("holdfast", context, prefill, decode, threads, *ratios)


async def _engine_speed(directory: Path, ids: list[int]) -> tuple[float, float]:
    prefills, decodes = [], []
    async with Engine.open(directory, EngineConfig()) as engine:
        for _ in range(RUNS):
            seq = await engine.start()
            times = [time.perf_counter()]
            async for _token in engine.extend(seq, ids, SamplingParams(max_tokens=DECODED_TOKENS)):
                times.append(time.perf_counter())
            await engine.release(seq)
            prefills.append(len(ids) / (times[1] - times[0]))
            decodes.append((len(times) - 2) / (times[-1] - times[1]))
    return statistics.median(prefills), statistics.median(decodes)


def _in_own_process(directory: Path, ids: list[int]) -> tuple[float, float]:
    """Each side has the machine for itself: the idle threads of one slowed the other down by half."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_transformers_speed, directory, ids).result()


def _transformers_speed(directory: Path, ids: list[int]) -> tuple[float, float]:
    try:
        from holdfast.engine.bench.transformers_reference import load_oracle, new_cache, oracle_logits
    except ImportError:
        raise EngineError("transformers is not installed: pip install 'holdfast[dev]' to compare with it") from None
    model, chunk = load_oracle(directory), EngineConfig().prefill_tokens(CPU)
    prefills, decodes = [], []
    for _ in range(RUNS):
        cache, started = new_cache(model), time.perf_counter()
        for at in range(0, len(ids), chunk):
            logits = oracle_logits(model, ids[at : at + chunk], cache, last=1)
        prefilled = time.perf_counter()
        for _ in range(DECODED_TOKENS - 1):
            logits = oracle_logits(model, [int(logits[-1].argmax())], cache, last=1)
        prefills.append(len(ids) / (prefilled - started))
        decodes.append((DECODED_TOKENS - 1) / (time.perf_counter() - prefilled))
    return statistics.median(prefills), statistics.median(decodes)
