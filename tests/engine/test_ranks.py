"""A model on several ranks, real processes: the tokens of one rank, state that any number of ranks goes on from, and an
end that is told when a rank dies.

Sums over ranks are in another order than those of one rank. In `plain` that is float32 noise. In `compact` a stored row
may round to its neighbour because of it, and a later logit moves by as much as rounding moves it: there most short
prompts must agree to the noise, and all to far less than the rounding itself.
"""

import asyncio
import dataclasses
import os
import random
import signal
import statistics
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

from agent.config import POCKET_DIR
from engine import CheckpointError, Engine, EngineConfig, EngineError, ModelConfig, Roll, SamplingParams, Sequence
from engine.attention import Attention, layer_frequencies
from engine.checkpoint import Checkpoint
from engine.checkpoint_writer import random_weights, write_checkpoint
from engine.model import Model
from engine.moe import MoE
from engine.numerics import Numerics
from engine.parallel import Parallel, check_ranks
from engine.sequence import Stored
from engine.weights import Weights
from kernels.dispatch import Ops
from tests.agent.real_session import killed
from tests.engine.test_engine import CONFIG, run_async

FLASH = Path(__file__).parents[1] / "fixtures" / "v4-tiny-flash"
# Two ranks everywhere; four with each model and each numerics.
CASES = {"pocket-plain": (1, 2), "pocket-compact": (1, 2, 4), "flash-plain": (1, 2, 4), "flash-compact": (1, 2)}
NOISE = 1e-5  # of the largest logit
PAGE = 128
NOTICED_S = 10  # a dead rank; it takes tenths of a second
Result = TypeVar("Result")


class Engines:
    """Engines of one model with several numbers of ranks, open at the same time, on a loop that stands between calls."""

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
            async with asyncio.timeout(60):
                return await work

        return self._runner.run(bounded())

    def scores(self, ids: list[int]) -> list[Tensor]:
        """Logits of one rank and of more."""
        return [self.run(engine.score(ids)) for engine in self.by_ranks.values()]

    def ids(self, count: int, seed: int = 0) -> list[int]:
        return random.Random(seed).choices(range(2, self.config.vocab_size), k=count)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="module", params=CASES)
def engines(request: pytest.FixtureRequest) -> Iterator[Engines]:
    model, numerics = request.param.split("-")
    opened = Engines(POCKET_DIR if model == "pocket" else FLASH, numerics, CASES[request.param])
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
        return b"engine.rank" in Path(f"/proc/{pid}/cmdline").read_bytes() and (
            parent is None or f"PPid:\t{parent}\n" in status
        )
    except OSError:  # it has just ended
        return False


def rank_pid(engine: Engine, rank: int) -> int:
    assert engine._runner.others is not None
    return engine._runner.others._ranks[rank - 1].process.pid


async def take(engine: Engine, seq: Sequence, ids: list[int], max_tokens: int) -> list[int]:
    return [token async for token in engine.extend(seq, ids, SamplingParams(max_tokens=max_tokens))]


async def tokens_after(engine: Engine, ids: list[int], max_tokens: int) -> list[int]:
    seq = await engine.start()
    tokens = await take(engine, seq, ids, max_tokens)
    await engine.release(seq)
    return tokens


async def stored_by(engine: Engine, seq: Sequence) -> tuple[list[int], list[Roll], list[bytes], bytes]:
    """Tokens, rolls, pages and tail of an idle sequence."""
    taken = await engine.snapshot(seq)
    assert taken is not None
    with taken:
        pages = [taken.page_data(key) for key in [*taken.head, *taken.pages]]
        return seq.token_ids[: taken.position], taken.rolls, pages, taken.tail_data()


async def loaded(engine: Engine, ids: list[int], rolls: list[Roll], pages: list[bytes], tail: bytes) -> Sequence:
    page_ids = [random.randbytes(16) for _ in pages]  # never found in memory: what is stored is read
    stored = Stored(engine.chain(rolls), ids, page_ids, lambda: tail, lambda numbers: (pages[n] for n in numbers))
    return await engine.start(stored)


def test_logits_and_tokens_are_those_of_one_rank(engines: Engines) -> None:
    ids = engines.ids(260)
    alone, *shared = engines.scores(ids)
    greedy = {tuple(engines.run(tokens_after(engine, ids, 8))) for engine in engines.by_ranks.values()}
    assert len(greedy) == 1
    for logits in shared:
        assert torch.equal(logits.argmax(1), alone.argmax(1)) or engines.numerics == "compact"
        if engines.numerics == "plain":
            assert float((logits - alone).abs().max()) <= NOISE * float(alone.abs().max())


def test_rows_that_round_alike_give_the_logits_of_one_rank(engines: Engines) -> None:
    if engines.numerics == "plain":
        pytest.skip("nothing is rounded")
    plain = engines.run(engines.open(1, numerics="plain"))
    moved: list[float] = []
    rounded: list[float] = []
    for seed in range(10):
        ids = engines.ids(4, seed)
        alone, *shared = engines.scores(ids)
        scale = float(alone.abs().max())
        moved += [float((logits - alone).abs().max()) / scale for logits in shared]
        rounded.append(float((engines.run(plain.score(ids)) - alone).abs().max()) / scale)
    assert sum(difference <= NOISE for difference in moved) > len(moved) / 2, moved
    assert max(moved) < statistics.median(rounded), (moved, rounded)


def test_a_row_has_the_same_bits_in_any_chunk_at_any_number_of_ranks(engines: Engines) -> None:
    ids = engines.ids(130, seed=2)
    for whole, part in zip(engines.scores(ids), engines.scores(ids[:77])):
        assert torch.equal(whole[:77], part)


def test_state_of_any_number_of_ranks_goes_on_at_any_other(engines: Engines) -> None:
    """Two pages and an open one; the first page is rolled away under its pinned head in half of them."""
    ids = engines.ids(2 * PAGE + 70, seed=3)

    async def check() -> None:
        for writer, engine in engines.by_ranks.items():
            for rolls in ([], [Roll(len(ids), 2 * PAGE, PAGE)]):
                seq = await engine.start()
                await engine.feed(seq, ids)
                for roll in rolls:
                    await engine.roll(seq, roll)
                state = await stored_by(engine, seq)
                expected = await take(engine, seq, [5], 4)
                await engine.release(seq)
                for reader, other in engines.by_ranks.items():
                    if reader == writer:
                        continue
                    seq = await loaded(other, *state)
                    got = await take(other, seq, [*ids, 5][len(seq.token_ids) :], 4)
                    await other.release(seq)
                    assert got == expected, (writer, reader, rolls)

    engines.run(check())


@pytest.mark.parametrize("numerics", ["plain", "official"])
def test_the_parts_of_experts_and_of_outputs_add_up_to_the_whole(tmp_path: Path, numerics: str) -> None:
    """`official` rounds the sum alone, so the whole may lie a bf16 step or two away: layer by layer, since a model amplifies that."""
    config = dataclasses.replace(CONFIG, hidden_size=128, q_lora_rank=128, o_lora_rank=128, moe_intermediate_size=256)
    write_checkpoint(tmp_path, config, random_weights(config, seed=5))
    checkpoint, choice = Checkpoint.open(tmp_path, config), Numerics(numerics)
    ops = Ops(choice.rounding, "torch")
    x, ids = torch.randn(40, 128, generator=torch.Generator().manual_seed(1)), np.arange(40)
    turns = ops.rope_table(np.arange(40), layer_frequencies(config, 4))
    o = torch.randn(40, config.num_attention_heads, config.head_dim, generator=torch.Generator().manual_seed(2))

    def layer_outputs(parallel: Parallel) -> tuple[Tensor, Tensor]:
        weights = Weights(checkpoint, parallel, "layers.2.")
        ffn, attn = (
            MoE(weights.inside("ffn."), config, False, ops),
            Attention(weights.inside("attn."), config, 4, choice, ops),
        )
        heads = parallel.share(config.num_attention_heads)
        return ops.moe(x, ids, ffn.weights), ops.output(o[:, heads.start : heads.stop].clone(), turns, attn.output)

    parts = zip(*(layer_outputs(Parallel(rank, 2)) for rank in range(2)))
    for whole, (first, second) in zip(layer_outputs(Parallel()), parts):
        total, most = choice.rounding.bf16(first + second), float(whole.abs().max())
        assert float((total - whole).abs().max()) <= (NOISE if numerics == "plain" else 2**-6) * most


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
def test_a_part_of_a_weight_is_read_as_it_is_in_the_whole(tmp_path: Path, dequantised: bool) -> None:
    """Also where it begins and ends inside blocks that share a scale."""
    config = dataclasses.replace(CONFIG, hidden_size=320, moe_intermediate_size=288)
    write_checkpoint(tmp_path, config, random_weights(config, seed=5), dequantised=dequantised)
    checkpoint = Checkpoint.open(tmp_path, config)
    names = ("attn.wq_b.weight", "attn.wo_b.weight", "ffn.shared_experts.w2.weight", "ffn.experts.1.w2.weight")
    parts = ((None, range(32, 96)), (range(96, 192), None), (range(120, 300), range(32, 64)), (range(5, 6), None))
    for name in (f"layers.2.{name}" for name in names):
        whole = checkpoint.weight(name)
        for rows, columns in parts:
            at = tuple(slice(None) if part is None else slice(part.start, part.stop) for part in (rows, columns))
            assert torch.equal(checkpoint.weight(name, rows, columns), whole[at]), (name, rows, columns)
    assert torch.equal(
        checkpoint.weight("layers.2.attn.attn_sink", range(1, 3)), checkpoint.weight("layers.2.attn.attn_sink")[1:3]
    )


@run_async
async def test_a_rank_reads_only_its_part_and_names_what_is_damaged_there(tmp_path: Path) -> None:
    before = rank_processes()
    write_checkpoint(tmp_path, CONFIG, random_weights(CONFIG, seed=5))
    damaged = Checkpoint.open(tmp_path, CONFIG).stored["layers.1.ffn.experts.3.w1.scale"]
    with damaged.path.open("r+b") as file:
        file.seek(damaged.start)
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
    ("ranks", "numerics", "possible"),
    [(3, "plain", "1 or 2 or 4"), (8, "compact", "1 or 2 or 4"), (2, "official", "1")],
)
def test_ranks_that_cannot_share_a_model_are_refused_in_one_line(ranks: int, numerics: str, possible: str) -> None:
    config = ModelConfig.from_dir(POCKET_DIR)
    with pytest.raises(EngineError, match=f"ranks={ranks} cannot share the 4 heads .* use {possible}$"):
        check_ranks(config, Numerics(numerics), ranks)
