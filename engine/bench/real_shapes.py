"""`holdfast bench --random`: a model of real shape on this machine, with random weights and made-up state.

The state of a long context is filled with rows of the right format instead of being computed, so a million tokens cost
no prefill. Beside every time stands its floor: the bytes that must be read, or moved, over the copy bandwidth measured
in the same run. They are counted in the official formats; a CPU has them as float32, which is several times as much.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from holdfast.engine.bench.inspect import state_parts
from holdfast.engine.bench.random_checkpoint import MODELS, RandomCheckpoint
from holdfast.engine.checkpoint.config import CSA, ModelConfig
from holdfast.engine.checkpoint.tensors import STORED_DTYPES, stored_bytes
from holdfast.engine.errors import EngineError
from holdfast.engine.model import Model
from holdfast.engine.placement import Placement, place
from holdfast.engine.runner import Runner
from holdfast.engine.sampling import SamplingParams
from holdfast.engine.sequence import Request, Sequence
from holdfast.engine.settings import EngineConfig
from holdfast.engine.snapshot import cut_tail, pack_page, place_pages, place_tail
from holdfast.engine.state.cache import Cache
from holdfast.engine.state.pinned_prefix import PinnedPrefix

CONTEXTS = (1_024, 131_072, 1_048_576)
BATCHES = (1, 16)
STEPS, WARM_UPS = 20, 3
PREFILL_CHUNKS = 2
SAVED_TOKENS = 8_192
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
Row = dict[str, Any]


def run_random_bench(name: str, layers: int | None, experts: int | None, contexts: list[int] | None) -> Iterator[Row]:
    """One row for the weights, then for each context rows of decode, prefill, save and restore. Raises EngineError."""
    config = _cut_down(name, layers, experts)
    settings = EngineConfig()
    placement = place(settings.device)
    device = placement.device
    started = time.perf_counter()
    checkpoint = RandomCheckpoint(config, device)
    _check_memory(checkpoint, placement)
    model = Model(checkpoint, placement.numerics(settings.numerics), placement)
    bandwidth = _copy_bandwidth(placement)
    yield {
        "row": "weights",
        "model": name,
        "layers": config.num_hidden_layers,
        "experts": config.n_routed_experts,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "bytes": checkpoint.num_bytes,
        "seconds": time.perf_counter() - started,
        "copy_bytes_per_s": bandwidth,
    }
    chunk = settings.prefill_tokens(placement)
    for context in contexts or CONTEXTS:
        if not 1 <= context <= config.max_position_embeddings:
            raise EngineError(f"context {context} is not between 1 and {config.max_position_embeddings}")
        yield from _at_context(model, checkpoint, context, chunk, bandwidth, placement)


def _cut_down(name: str, layers: int | None, experts: int | None) -> ModelConfig:
    if name not in MODELS:
        raise EngineError(f"{name!r} is no model this bench knows: use {' or '.join(MODELS)}")
    config = MODELS[name]
    layers = config.num_hidden_layers if layers is None else layers
    experts = config.n_routed_experts if experts is None else experts
    if not 1 <= layers <= config.num_hidden_layers:
        raise EngineError(f"--layers {layers} is not between 1 and the {config.num_hidden_layers} of {name}")
    if not config.num_experts_per_tok <= experts <= config.n_routed_experts:
        most = config.n_routed_experts
        raise EngineError(f"--experts {experts} is not between {config.num_experts_per_tok} and the {most} of {name}")
    return dataclasses.replace(config, num_hidden_layers=layers, n_routed_experts=experts)


def _check_memory(checkpoint: RandomCheckpoint, placement: Placement) -> None:
    """Raises EngineError for weights that cannot fit, before minutes are spent making them."""
    needed = checkpoint.num_bytes
    if not placement.runs_triton:
        needed = sum(4 * math.prod(spec.shape) for spec in checkpoint.specs.values())
    if needed > (there := placement.memory_bytes()):
        raise EngineError(
            f"the weights take {needed / 1e9:,.0f} GB here, and {there / 1e9:,.0f} GB are there:"
            f" use fewer --layers or --experts"
        )


def _at_context(
    model: Model, checkpoint: RandomCheckpoint, context: int, chunk: int, bandwidth: float, placement: Placement
) -> Iterator[Row]:
    page_tokens = EngineConfig().page_tokens
    new_tokens = PREFILL_CHUNKS * chunk + STEPS + WARM_UPS
    own_pages = -(-new_tokens // page_tokens) + 1
    shared = context // page_tokens
    cache = Cache(model.config, model.numerics, page_tokens, shared + own_pages * max(BATCHES), max(BATCHES), placement)
    fill(cache, shared)
    runner = Runner(model, cache)
    sequences = []
    for slot in range(max(BATCHES)):
        first = shared + slot * own_pages
        pages = [*range(shared), *range(first, first + own_pages)]
        sequences.append(Sequence(slot, slot=slot, token_ids=[5] * context, num_tokens=context, pages=pages))
    for batch in BATCHES:
        seconds = _decode(runner, sequences[:batch])
        floor = step_bytes(checkpoint, context, batch) / bandwidth
        yield {
            "row": "decode",
            "context": context,
            "batch": batch,
            "ms_per_step": seconds * 1e3,
            "tokens_per_s": batch / seconds,
            "floor_ms": floor * 1e3,
            "share_of_floor": floor / seconds,
        }
    seconds = _prefill(runner, sequences[0], chunk)
    yield {"row": "prefill", "context": context, "chunk": chunk, "tokens_per_s": chunk / seconds}
    yield from _save_and_restore(cache, sequences[0], min(shared, SAVED_TOKENS // page_tokens), bandwidth)


def fill(cache: Cache, num_pages: int, most: int = 256) -> None:
    """Put random rows into the first pages of every layer; after `most` pages they repeat."""
    generator = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        for pool in layer.pools:
            for first in range(0, num_pages, most):
                pages = list(range(first, min(first + most, num_pages)))
                if first == 0:
                    rows = torch.randn(len(pages) * pool.per_page, pool.fmt.dim, generator=generator)
                    stored = pool.fmt.pack(pool.fmt.round(rows))
                pool.place(pages, stored[: len(pages) * pool.per_page])


def step_bytes(checkpoint: RandomCheckpoint, context: int, batch: int) -> int:
    """Bytes that a decode step of `batch` sequences must read.

    All weights once, but of experts only those that can be chosen; and the state.
    """
    config, read = checkpoint.config, 0
    for name, spec in checkpoint.specs.items():
        size = stored_bytes(name, spec, STORED_DTYPES[spec.kind][0])
        if ".experts." in name:
            chosen = config.n_routed_experts * (1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch)
            read += round(size * chosen / config.n_routed_experts)
        elif name != "embed.weight" and spec.kind != "i64":
            read += size
    state = state_parts(config, context)
    entries, keys = context // CSA, state["CSA entries"]
    if entries > config.index_topk:  # else all are attended, and nothing is selected
        keys = keys * config.index_topk // entries + state["indexer keys"]
    return read + batch * (keys + state["HCA entries"] + state["window"])


def _decode(runner: Runner, sequences: list[Sequence]) -> float:
    """Median seconds of a step."""
    requests = [_request(seq) for seq in sequences]
    seconds = []
    for _ in range(WARM_UPS + STEPS):
        for request in requests:
            request.seq.token_ids.append(5)
        started = time.perf_counter()
        runner.run([(request, 1) for request in requests])
        seconds.append(time.perf_counter() - started)
        for request in requests:
            request.seq.num_tokens += 1
    for seq in sequences:  # back to the context
        del seq.token_ids[len(seq.token_ids) - len(seconds) :]
        seq.num_tokens = len(seq.token_ids)
    return statistics.median(seconds[WARM_UPS:])


def _prefill(runner: Runner, seq: Sequence, chunk: int) -> float:
    """Seconds of a chunk, the first of which warms up."""
    context, seconds = seq.num_tokens, []
    for _ in range(PREFILL_CHUNKS):
        seq.token_ids += [2 + at % 100 for at in range(chunk)]
        started = time.perf_counter()
        runner.run([(_request(seq), chunk)])
        seconds.append(time.perf_counter() - started)
        seq.num_tokens += chunk
    del seq.token_ids[context:]
    seq.num_tokens = context
    return seconds[-1]


def _request(seq: Sequence) -> Request:
    return Request(seq, SamplingParams(), _ignore, _ignore, _ignore, max_tokens=2**62)


def _ignore(*_: object) -> None:
    """Ignore the tokens."""


def _save_and_restore(cache: Cache, seq: Sequence, num_pages: int, bandwidth: float) -> Iterator[Row]:
    """The tail and some pages as bytes in memory, and back; the disk is not in it."""
    open_page = seq.pages[seq.num_tokens // cache.page_tokens]
    started = time.perf_counter()
    tail = cut_tail(cache, seq.slot, open_page, seq.num_tokens, None).pack()
    pages = [pack_page(cache, page, None, page) for page in range(num_pages)]
    saved, num_bytes = time.perf_counter() - started, len(tail) + sum(map(len, pages))
    floor = num_bytes / bandwidth
    row = {"context": seq.num_tokens, "pages": num_pages, "bytes": num_bytes, "floor_ms": floor * 1e3}
    yield {"row": "save", **row, "seconds": saved, "bytes_per_s": num_bytes / saved}
    started = time.perf_counter()
    prefix = PinnedPrefix.empty(cache, 0)
    if pages:
        place_pages(cache, list(range(num_pages)), pages, prefix)
    place_tail(cache, seq.slot, open_page, seq.num_tokens, tail, prefix)
    cache.placement.synchronize()
    restored = time.perf_counter() - started
    yield {"row": "restore", **row, "seconds": restored, "bytes_per_s": num_bytes / restored}


def _copy_bandwidth(placement: Placement) -> float:
    """Bytes read per second in a copy, counting both what is read and what is written, as a floor of reading counts."""
    source = torch.ones(COPY_BYTES[placement.device.type] // 4, device=placement.device)
    target, seconds = torch.empty_like(source), []
    for _ in range(5):
        placement.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        placement.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)
