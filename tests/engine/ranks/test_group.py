"""A model on several ranks, real processes: the bits of one rank, state that any number of ranks goes on from, and an
end that is told when a rank dies. Logits, tokens and state have no tolerance here.
"""

import asyncio
import dataclasses
import os
import random
import signal
import time
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, aclosing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.agent.config import POCKET_DIR
from holdfast.engine import (
    CheckpointError,
    Engine,
    EngineConfig,
    EngineError,
    ModelConfig,
    Roll,
    SamplingParams,
    Sequence,
)
from holdfast.engine.attention import Attention
from holdfast.engine.checkpoint.tensors import Checkpoint
from holdfast.engine.checkpoint.writer import random_weights, write_checkpoint
from holdfast.engine.columns import Parallel, check_ranks
from holdfast.engine.model import Model
from holdfast.engine.moe import MoE
from holdfast.engine.numerics import Numerics
from holdfast.engine.placement import Placement
from holdfast.engine.sequence import Stored
from holdfast.engine.weights import Weights
from holdfast.kernels.cpu import jit
from holdfast.kernels.dispatch import Ops
from tests.agent.real_session import killed
from tests.engine.tiny_engine import CONFIG, run_async

FLASH = Path(__file__).parents[2] / "fixtures" / "v4-tiny-flash"
# In pocket and the uneven model four ranks share two groups of heads.
CASES = {"pocket-plain": (1, 2), "pocket-compact": (1, 2, 4), "flash-compact": (1, 2, 4), "uneven-compact": (1, 4)}
UNEVEN = dataclasses.replace(CONFIG, vocab_size=157)  # of which no four ranks have the same
needs_compiled = pytest.mark.skipif(
    not jit.AVAILABLE, reason="numba is not installed: products of torch promise no bits"
)
NOISE = 1e-5  # of the largest value
PAGE = 128
NOTICED_S = 300  # a dead rank; it takes tenths of a second where nothing else runs
Result = TypeVar("Result")


class Engines:
    """Engines of one model with several numbers of ranks, open at once, on a loop that stands between calls."""

    def __init__(self, model: Path, numerics: str, ranks: tuple[int, ...]):
        self.model, self.numerics = model, numerics
        self.config = ModelConfig.from_dir(model)
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self.by_ranks = {count: self.run(self.open(count)) for count in ranks}

    async def open(self, ranks: int, **fields: Any) -> Engine:
        config = EngineConfig(ranks=ranks, threads=1, page_tokens=PAGE, **{"numerics": self.numerics, **fields})
        return await self._stack.enter_async_context(Engine.open(self.model, config))

    def run(self, work: Awaitable[Result]) -> Result:
        async def bounded() -> Result:
            async with asyncio.timeout(600):
                return await work

        return self._runner.run(bounded())

    def scores(self, ids: list[int]) -> list[Tensor]:
        """Logits of each number of ranks."""
        return [self.run(engine.score(ids)) for engine in self.by_ranks.values()]

    def ids(self, count: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(2, self.config.vocab_size), k=count)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="module", params=CASES)
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    model, numerics = request.param.split("-")
    directory = {"pocket": POCKET_DIR, "flash": FLASH}.get(model) or tmp_path_factory.mktemp(model)
    if model == "uneven":
        write_checkpoint(directory, UNEVEN, random_weights(UNEVEN, seed=7))
    opened = Engines(directory, numerics, CASES[request.param])
    yield opened
    opened.close()
    assert rank_processes() == []


def rank_processes() -> list[int]:
    """Ranks that this process started and that still run."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if is_rank(pid, os.getpid())]


def is_rank(pid: int, parent: int | None = None) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return b"holdfast.engine.ranks.process" in Path(f"/proc/{pid}/cmdline").read_bytes() and (
            parent is None or f"PPid:\t{parent}\n" in status
        )
    except OSError:  # it has just ended
        return False


def rank_pid(engine: Engine, rank: int) -> int:
    assert engine._worker.runner.others is not None
    return engine._worker.runner.others._ranks[rank - 1].process.pid


async def take(engine: Engine, seq: Sequence, ids: list[int], max_tokens: int) -> list[int]:
    return [token async for token in engine.extend(seq, ids, SamplingParams(max_tokens=max_tokens))]


async def tokens_after(engine: Engine, ids: list[int], max_tokens: int) -> list[int]:
    seq = await engine.start()
    tokens = await take(engine, seq, ids, max_tokens)
    await engine.release(seq)
    return tokens


async def scores_after(engine: Engine, seq: Sequence, ids: list[int]) -> Tensor:
    """Logits of `ids`, fed after what a sequence holds."""
    scores: list[Tensor] = []
    await engine._wait(seq, ids, scores=scores)
    return torch.cat(scores)


async def stored_by(engine: Engine, seq: Sequence) -> tuple[list[int], list[Roll], list[bytes], bytes]:
    """Tokens, rolls, pages and tail of an idle sequence."""
    taken = await engine.snapshot(seq)
    assert taken is not None
    with taken:
        pages = [taken.page_data(key) for key in [*taken.prefix, *taken.pages]]
        return seq.token_ids[: taken.position], taken.rolls, pages, taken.tail_data()


async def loaded(engine: Engine, ids: list[int], rolls: list[Roll], pages: list[bytes], tail: bytes) -> Sequence:
    page_ids = [random.randbytes(16) for _ in pages]  # never found in memory: what is stored is read
    stored = Stored(engine.chain(rolls), ids, page_ids, lambda: tail, lambda numbers: (pages[n] for n in numbers))
    return await engine.start(stored)


@needs_compiled
def test_logits_and_tokens_are_bitwise_those_of_one_rank(engines: Engines) -> None:
    ids = engines.ids(260)
    alone, *shared = engines.scores(ids)
    assert all(torch.equal(logits, alone) for logits in shared)
    count = 200 if engines.model == POCKET_DIR else 50
    greedy = {tuple(engines.run(tokens_after(engine, ids, count))) for engine in engines.by_ranks.values()}
    assert len(greedy) == 1


@needs_compiled
def test_a_row_has_the_same_bits_in_any_chunk_at_any_number_of_ranks(engines: Engines) -> None:
    ids = engines.ids(130, seed=2)
    whole, *_ = engines.scores(ids)
    for part in engines.scores(ids[:77]):
        assert torch.equal(whole[:77], part)


@needs_compiled
def test_state_of_any_number_of_ranks_is_the_same_and_goes_on_at_any_other(engines: Engines) -> None:
    """Two pages and an open one; the first page is rolled away under its pinned prefix in half of them."""
    ids = engines.ids(2 * PAGE + 70, seed=3)

    async def state_of(engine: Engine, rolls: list[Roll]) -> tuple[Any, Tensor]:
        """What is stored, and the logits of what comes after it."""
        seq = await engine.start()
        await engine.feed(seq, ids)
        for roll in rolls:
            await engine.roll(seq, roll)
        state = await stored_by(engine, seq)
        rest = await scores_after(engine, seq, ids[:5])
        await engine.release(seq)
        return state, rest

    async def check() -> None:
        for rolls in ([], [Roll(len(ids), 2 * PAGE, PAGE)]):
            state, expected = await state_of(engines.by_ranks[1], rolls)
            for ranks, engine in engines.by_ranks.items():
                own_state, own = await state_of(engine, rolls)
                assert own_state == state and torch.equal(own, expected), (ranks, rolls)
                seq = await loaded(engine, *own_state)
                position = len(seq.token_ids)
                got = await scores_after(engine, seq, [*ids, *ids[:5]][position:])
                assert torch.equal(got[-5:], expected), (ranks, rolls)
                await engine.release(seq)

    engines.run(check())


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("numerics", ["plain", "official"])
def test_columns_of_all_ranks_side_by_side_are_the_whole(tmp_path: Path, numerics: str, ranks: int) -> None:
    """How far results of the torch twins may be apart.

    Their products of fewer columns may differ in their last bits; `official` may then round to the other side.
    """
    config = dataclasses.replace(CONFIG, hidden_size=128, q_lora_rank=128, o_lora_rank=128, moe_intermediate_size=256)
    write_checkpoint(tmp_path, config, random_weights(config, seed=5))
    checkpoint, choice = Checkpoint.open(tmp_path, config), Numerics(numerics)
    ops = Ops(choice.rounding, "torch")
    x, ids = torch.randn(40, 128, generator=torch.Generator().manual_seed(1)), np.arange(40)
    o = torch.randn(40, config.num_attention_heads, config.head_dim, generator=torch.Generator().manual_seed(2))

    def layer(parallel: Parallel) -> tuple[MoE, Attention]:
        weights = Weights(checkpoint, parallel, "layers.2.")
        return (
            MoE(weights.inside("ffn."), config, False, ops),
            Attention(weights.inside("attn."), config, 4, choice, ops),
        )

    ffn, attn = layer(Parallel())
    shared = [layer(Parallel(rank, ranks)) for rank in range(ranks)]
    hidden, chosen = zip(*(ops.moe_hidden(x, ids, ffn.weights) for ffn, _ in shared))
    low = []
    for rank, (_, attn_share) in enumerate(shared):
        group = rank * config.o_groups // ranks
        low.append(ops.output_low(o[:, 2 * group : 2 * group + 2], attn_share.output))
    whole_hidden, whole_low = torch.cat(hidden, -1), torch.cat(low, -1)
    moe = torch.cat([ops.moe_columns(whole_hidden, chosen[0], ffn.weights) for ffn, _ in shared], -1)
    output = torch.cat([ops.output_columns(whole_low, attn.output) for _, attn in shared], -1)
    for got, whole in ((moe, ops.moe(x, ids, ffn.weights)), (output, ops.output(o, attn.output))):
        most = float(whole.abs().max())
        assert float((got - whole).abs().max()) <= (NOISE if numerics == "plain" else 2**-6) * most


# A rank that ends.


def opened(ranks: int, **fields: Any) -> Any:
    return Engine.open(POCKET_DIR, EngineConfig(ranks=ranks, threads=1, **fields))


@pytest.mark.parametrize(("ranks", "rank", "after"), [(2, 1, 3), (2, 1, 0), (4, 2, 3)], ids=str)
@run_async
async def test_a_killed_rank_ends_the_turn_with_its_name_and_what_to_do(ranks: int, rank: int, after: int) -> None:
    """In the middle of a prompt, and between tokens; another request that runs beside it ends as well."""
    before = rank_processes()
    async with opened(ranks) as engine:
        beside = asyncio.create_task(tokens_after(engine, list(range(2, 900)), 4000))
        seq, killed_at = await engine.start(), 0.0
        prompt = list(range(2, 1000)) * (1 if after else 8)

        def kill() -> None:
            nonlocal killed_at
            killed_at = time.monotonic()
            os.kill(rank_pid(engine, rank), signal.SIGKILL)

        if not after:
            asyncio.get_running_loop().call_later(0.2, kill)
        with pytest.raises(EngineError) as error:
            async with aclosing(engine.extend(seq, prompt, SamplingParams(max_tokens=4000))) as tokens:
                count = 0
                async for _ in tokens:
                    count += 1
                    if count == after:
                        kill()
        assert time.monotonic() - killed_at < NOTICED_S
        told = str(error.value)
        assert told.startswith(f"rank {rank} of {ranks} ended (signal 9, SIGKILL)")
        assert "start again" in told and "\n" not in told
        with pytest.raises(EngineError, match=f"rank {rank} of {ranks} ended"):
            await beside
        with pytest.raises(EngineError, match=f"rank {rank} of {ranks} ended"):
            await engine.score([1, 2])
    assert rank_processes() == before


@run_async
async def test_a_rank_that_ends_while_nothing_runs_is_told_to_whoever_comes_next() -> None:
    async with opened(2) as engine:
        await engine.score([1, 2, 3])
        os.kill(rank_pid(engine, 1), signal.SIGTERM)
        with pytest.raises(EngineError, match=r"rank 1 of 2 ended \(signal 15, SIGTERM\)"):
            while True:
                await engine.score([1, 2, 3])


def open_and_wait(parent: Connection) -> None:
    """A process with an engine of two ranks; says which ones the others are, then computes until it is killed."""

    async def run() -> None:
        async with opened(2) as engine:
            parent.send([rank_pid(engine, 1)])
            await tokens_after(engine, list(range(2, 1000)) * 50, 1)

    asyncio.run(run())


def test_no_rank_outlives_a_killed_rank_0() -> None:
    with killed(open_and_wait) as parent:
        (pid,) = parent.recv()
        assert is_rank(pid)
    deadline = time.monotonic() + NOTICED_S
    while is_rank(pid):
        assert time.monotonic() < deadline, pid
        time.sleep(0.05)


# What a rank reads.


@pytest.mark.parametrize("dequantised", [False, True], ids=["packed", "float32"])
def test_rows_of_a_weight_are_read_as_they_are_in_the_whole(tmp_path: Path, dequantised: bool) -> None:
    """Also where they begin and end inside blocks that share a scale."""
    config = dataclasses.replace(CONFIG, hidden_size=320, moe_intermediate_size=288)
    write_checkpoint(tmp_path, config, random_weights(config, seed=5), dequantised=dequantised)
    checkpoint = Checkpoint.open(tmp_path, config)
    for name in ("attn.wq_b.weight", "attn.wo_b.weight", "ffn.shared_experts.w2.weight", "ffn.experts.1.w2.weight"):
        whole = checkpoint.weight(f"layers.2.{name}")
        for rows in (range(32, 96), range(120, 300), range(5, 6)):
            part = checkpoint.weight(f"layers.2.{name}", rows)
            assert torch.equal(part, whole[rows.start : rows.stop]), (name, rows)
    assert torch.equal(
        checkpoint.weight("layers.2.attn.attn_sink", range(1, 3)), checkpoint.weight("layers.2.attn.attn_sink")[1:3]
    )


@run_async
async def test_a_rank_reads_only_its_part_and_names_what_is_damaged_there(tmp_path: Path) -> None:
    before = rank_processes()
    write_checkpoint(tmp_path, CONFIG, random_weights(CONFIG, seed=5))
    damaged = Checkpoint.open(tmp_path, CONFIG).stored["layers.1.ffn.experts.3.w1.scale"]
    with damaged.path.open("r+b") as file:
        file.seek(damaged.start + damaged.num_bytes - 1)  # of the last row
        file.write(b"\xff")
    checkpoint = Checkpoint.open(tmp_path, CONFIG)
    Model(checkpoint, Numerics("plain"), parallel=Parallel(0, 2))
    with pytest.raises(CheckpointError, match=r"layers\.1\.ffn\.experts\.3\.w1\.scale in .* holds NaN"):
        Model(checkpoint, Numerics("plain"), parallel=Parallel(1, 2))
    with pytest.raises(
        EngineError, match=r"rank 1 of 2 ended \(CheckpointError: layers\.1\.ffn\.experts\.3\.w1\.scale"
    ):
        async with Engine.open(tmp_path, EngineConfig(ranks=2, threads=1)):
            pass
    assert rank_processes() == before


@pytest.mark.parametrize(
    ("ranks", "runs_triton", "possible"), [(3, False, "1 or 2 or 4"), (8, False, "1 or 2 or 4"), (2, True, "1")]
)
def test_ranks_that_cannot_share_a_model_are_refused_in_one_line(ranks: int, runs_triton: bool, possible: str) -> None:
    config, placement = ModelConfig.from_dir(POCKET_DIR), Placement(torch.device("cpu"), runs_triton)
    with pytest.raises(EngineError, match=f"ranks={ranks} cannot share the 4 heads .* use {possible}$"):
        check_ranks(config, placement, ranks)
