"""A whole model on Triton's kernels: blocks against recorded ones, steps with padding as without.

In the interpreter where there is no GPU. `official` logits are chaotic from end to end, so blocks get their true
inputs. `python -m tests.long.blocks` does all of them without a GPU.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast.engine import Engine, EngineConfig, EngineError, SamplingParams, write_checkpoint
from holdfast.engine.batch import Batch
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.checkpoint.writer import random_weights
from holdfast.engine.graphs import Graphs
from holdfast.engine.model import Model
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import place
from holdfast.engine.sequence import Sequence
from holdfast.engine.snapshot import cut_tail, pack_page, place_pages, place_tail
from holdfast.engine.state.cache import Cache
from holdfast.engine.state.pinned_prefix import PinnedPrefix
from holdfast.kernels.gpu import jit
from tests.engine.tiny_engine import run_async

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="there is no Triton for this platform")

FLASH = Path(__file__).parents[1] / "fixtures" / "v4-tiny-flash"
OFFICIAL = Numerics("official")
FEW = 9  # tokens: two entries of ratio 4, and one more token; the interpreter takes a second for each


@functools.cache
def vectors() -> dict[str, Tensor]:
    return load_file(FLASH / "blocks.safetensors")


def new_model() -> Model:
    return Model(Checkpoint.open(FLASH, ModelConfig.from_dir(FLASH)), OFFICIAL, place("cuda"))


def new_cache(model: Model) -> Cache:
    return Cache(model.config, OFFICIAL, 256, 2, 2, place("cuda"))


model = pytest.fixture(scope="module")(new_model)
cache = pytest.fixture(new_cache)


def sequence(count: int, slot: int = 0) -> Sequence:
    return Sequence(slot, slot=slot, token_ids=vectors()["ids"].tolist()[:count], pages=[1 - slot])


def block_difference(model: Model, cache: Cache, number: int, count: int) -> Tensor:
    """Mean difference of each token after a block that got its true input."""
    device = cache.device
    batch = Batch([(sequence(count), count)], cache, model.ops)
    streams = vectors()[f"streams.{number}"][:count].to(device, torch.bfloat16)
    out = model.layers[number](streams, batch, cache.layers[number]).float().cpu()
    return (out - vectors()[f"streams.{number + 1}"][:count].float()).abs().mean((1, 2))


@torch.inference_mode()
@pytest.mark.parametrize("number", [0, 2], ids=["window", "csa"])
def test_a_block_gives_its_recorded_output(model: Model, cache: Cache, number: int) -> None:
    assert block_difference(model, cache, number, FEW).median() <= 0.008


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("number", range(6))
def test_all_blocks_give_their_recorded_outputs(model: Model, cache: Cache, number: int) -> None:
    assert block_difference(model, cache, number, 136).median() <= 0.008


@torch.inference_mode()
def test_a_step_of_a_graph_is_the_step_and_its_padding_writes_nothing(model: Model, cache: Cache) -> None:
    """Three rows of two sequences, in a graph for four: bitwise what a batch of three gives, in the cache as well."""
    model.layers, layers = model.layers[2:3], model.layers
    try:
        plain = new_cache(model)
        results = []
        for used in (plain, cache):
            for layer in used.layers:
                layer.ring.fill_(0.5)
            used.layers[0], used.layers[2] = used.layers[2], used.layers[0]  # the one layer is of this kind
            batch = Batch([(sequence(2), 2), (sequence(1, slot=1), 1)], used, model.ops)
            rows = np.arange(3)
            graphs = Graphs(model, used)
            results.append(model.logits(batch, used, rows) if used is plain else graphs.logits(batch, rows))
        assert torch.equal(*results)
        for one, other in zip(plain.layers, cache.layers):
            assert torch.equal(one.ring, other.ring)
            assert all(torch.equal(a.rows, b.rows) for a, b in zip(one.pools, other.pools))
            assert one.blocks is None or torch.equal(one.blocks, other.blocks)
    finally:
        model.layers = layers


@torch.inference_mode()
def test_state_comes_back_from_its_bytes_as_it_was(model: Model, cache: Cache) -> None:
    """Pages and a tail of made-up rows: the same bytes after they were placed in another cache."""
    generator = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        rows = torch.randn(layer.ring.shape, generator=generator)
        layer.ring.copy_(layer.row_format.round(rows.flatten(0, 1)).view(rows.shape))
        for pool in layer.pools:
            for page in range(2):
                pool.write(page, pool.fmt.round(torch.randn(pool.per_page, pool.fmt.dim, generator=generator)))
        if layer.blocks is not None:
            layer.blocks.copy_(torch.randn(layer.blocks.shape, generator=generator))
    page, tail = pack_page(cache, 0, None, 0), cut_tail(cache, 1, 1, 300, None).pack()
    other, prefix = new_cache(model), PinnedPrefix.empty(cache, 0)
    place_pages(other, [1], [page], prefix)
    place_tail(other, 0, 0, 300, tail, prefix)
    assert pack_page(other, 1, None, 0) == page
    assert cut_tail(other, 0, 0, 300, None).pack() == tail


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two ranks take two GPUs, or none")
@run_async
async def test_two_ranks_have_the_bits_of_one(tmp_path: Path) -> None:
    """One layer, so wide that Triton's kernels can share it. On a GPU this takes two of them."""
    flash = ModelConfig.from_dir(FLASH)
    shape = {"num_hidden_layers": 1, "compress_ratios": (4, 0), "num_hash_layers": 0, "num_nextn_predict_layers": 0}
    config = dataclasses.replace(flash, moe_intermediate_size=256, **shape)
    write_checkpoint(tmp_path, config, random_weights(config, seed=3))
    scores = []
    for ranks in (1, 2):
        settings = EngineConfig(
            device="cuda", ranks=ranks, threads=1, memory_bytes=1 << 22, max_sequences=1, max_context=512
        )
        async with Engine.open(tmp_path, settings) as engine:
            scores.append(await engine.score([3, 4, 5, 6, 7]))
    assert torch.equal(*scores)


def test_what_a_gpu_cannot_do_is_refused_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"numerics 'plain' runs on a CPU only: use device cpu, or official$"):
        Engine(FLASH, EngineConfig(device="cuda", numerics="plain"))
    with pytest.raises(EngineError, match=r"device 'gpu' is not one of auto, cpu, cuda$"):
        EngineConfig(device="gpu")


@pytest.mark.gpu
def test_a_request_in_a_batch_gets_the_tokens_it_gets_alone() -> None:
    import asyncio

    async def tokens(engine: Engine, ids: list[int]) -> list[int]:
        seq = await engine.start()
        return [token async for token in engine.extend(seq, ids, SamplingParams(max_tokens=64))]

    async def run() -> None:
        async with Engine.open(FLASH, EngineConfig(device="cuda")) as engine:
            prompts = [list(range(2 + at, 200 + 7 * at)) for at in range(16)]
            alone = [await tokens(engine, ids) for ids in prompts]
            assert alone == await asyncio.gather(*(tokens(engine, ids) for ids in prompts))

    asyncio.run(run())
