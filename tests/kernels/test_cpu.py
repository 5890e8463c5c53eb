"""Compiled CPU kernels against their torch twins over awkward sizes.

Their promise: a row's bits do not depend on its neighbours. What must not be read is NaN: unused rows of rings and
pools, and what `np.empty` gives as room for results.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from holdfast.kernels import attention, compress, hyper, moe, project
from holdfast.kernels.cpu import jit
from holdfast.kernels.dispatch import Ops
from holdfast.kernels.quant import hadamard_matrix
from holdfast.kernels.rope import rope_frequencies
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows

pytestmark = pytest.mark.skipif(not jit.AVAILABLE, reason="numba is not installed")

TWINS, CPU = Ops(Rounding(official=False), "torch"), Ops(Rounding(official=False))
D, M, HEADS, DIM, ROPE, INDEX_HEADS, INDEX_DIM, EXPERTS, INNER, VOCAB = 48, 2, 4, 96, 32, 3, 32, 5, 40, 50
WINDOW, RING, PAGE_TOKENS, NUM_PAGES, K = 128, 144, 128, 12, 16
SIZES = (1, 2, 4, 5, 8, 9, 15, 16, 17, 33, 64, 65, 130)
FREQS = rope_frequencies(ROPE, 10000.0, None)
PAGES = np.random.default_rng(0).permutation(NUM_PAGES)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before `np.empty` is another: numba would not know it."""
    for op in ROW_OPS:
        call(op, CPU, 0, 1)
    attended(CPU, TOTAL, 4, selected=True)
    compressed(CPU, TOTAL, 4, rounds=True)
    selected(CPU, TOTAL, ties=False)


@pytest.fixture(autouse=True)
def poisoned_room(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.full(shape, np.nan if dtype == np.float32 else -7, dtype)

    monkeypatch.setattr(np, "empty", empty)
    monkeypatch.setattr(np, "empty_like", lambda x: empty(x.shape, x.dtype))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_rows(*segments: tuple[int, int]) -> Rows:
    """Segments of (position, count); segment i has slot i, and all read the same pages."""
    positions = np.concatenate([np.arange(position, position + count) for position, count in segments])
    return Rows(
        positions * 7 % VOCAB,
        positions,
        np.cumsum([0, *(count for _, count in segments)]),
        np.arange(len(segments)),
        np.zeros(len(segments), np.int64),
        np.tile(PAGES, (len(segments), 1)),
        PAGE_TOKENS,
    )


# Ops whose rows see nothing of each other: a call gets some rows of the inputs.

Inputs = dict[str, Tensor]
HYPER = hyper.HyperWeights(randn(M * D, (2 + M) * M, seed=1) / 8, randn(8, seed=2), randn(D, seed=3), 4, 1e-6, 1e-6)
HEAD = hyper.LMHeadWeights(
    randn(M * D, M, seed=1) / 8, randn(M, seed=2), randn(D, seed=3), randn(D, VOCAB, seed=4), 1e-6, 1e-6
)
OUTPUT = project.OutputWeights(randn(2, HEADS * DIM // 2, 24, seed=1) / 14, randn(48, D, seed=2) / 7)


def project_weights(index_heads: int, rounds: bool) -> project.ProjectWeights:
    hadamard = hadamard_matrix(INDEX_DIM) if index_heads else torch.zeros(0, 0)
    wq_b = randn(64, HEADS * DIM + index_heads * INDEX_DIM, seed=2) / 8
    norms = randn(64, seed=3), randn(DIM, seed=4)
    return project.ProjectWeights(
        randn(D, 64 + DIM, seed=1) / 7, *norms, wq_b, hadamard, HEADS, index_heads, rounds, 1e-6
    )


def compress_weights(ratio: int, rounds: bool) -> compress.CompressWeights:
    indexed = ratio == 4
    width, heads, index_dim = (2 * (DIM + INDEX_DIM), INDEX_HEADS, INDEX_DIM) if indexed else (DIM, 0, 0)
    hadamard = hadamard_matrix(index_dim) if indexed else torch.zeros(0, 0)
    return compress.CompressWeights(
        randn(D, 2 * width + heads, seed=1) / 7,
        randn(ratio, width, seed=2),
        randn(DIM, seed=3),
        randn(index_dim, seed=4),
        hadamard,
        FREQS,
        ratio,
        indexed,
        0.25,
        rounds,
        1e-6,
    )


def moe_weights(hashed: bool, limit: float) -> moe.MoEWeights:
    table = torch.stack([torch.arange(VOCAB) % EXPERTS, (torch.arange(VOCAB) + 2) % EXPERTS], 1)
    return moe.MoEWeights(
        randn(D, EXPERTS, seed=5) / 7,
        torch.zeros(0) if hashed else randn(EXPERTS, seed=6),
        table if hashed else table[:0],
        randn(EXPERTS, D, 2 * INNER, seed=1) / 4,
        randn(EXPERTS, INNER, D, seed=2) / 6,
        randn(D, 2 * INNER, seed=3) / 4,
        randn(INNER, D, seed=4) / 6,
        2,
        1.5,
        limit,
    )


def freqs_cis(ops: Ops, rows: Rows) -> Any:
    return ops.rope_table(rows.positions, ops.array(FREQS))


Call = Callable[[Ops, Rows, Inputs], Any]
ROW_OPS: dict[str, Call] = {
    "embed": lambda ops, rows, x: ops.embed(rows.ids, ops.array(randn(VOCAB, D)), M),
    "hc_pre": lambda ops, rows, x: ops.hc_pre(ops.array(x["streams"]), ops.weights(HYPER)),
    "hc_post": lambda ops, rows, x: ops.hc_post(*(ops.array(x[n]) for n in ("x", "streams", "post", "comb"))),
    "lm_head": lambda ops, rows, x: ops.lm_head(ops.array(x["streams"]), ops.weights(HEAD)),
    "output": lambda ops, rows, x: ops.output(ops.array(x["o"]), ops.weights(OUTPUT)),
    "output in halves": lambda ops, rows, x: ops.output_columns(
        ops.output_low(ops.array(x["o"]), ops.weights(OUTPUT)), ops.weights(OUTPUT)
    ),
    "moe in halves": lambda ops, rows, x: ops.moe_columns(
        *ops.moe_hidden(ops.array(x["x"]), rows.ids, ops.weights(moe_weights(False, 10.0))),
        ops.weights(moe_weights(False, 10.0)),
    ),
}
for _heads, _rounds in ((0, False), (INDEX_HEADS, True)):
    ROW_OPS[f"project, {_heads} index heads"] = lambda ops, rows, x, heads=_heads, rounds=_rounds: ops.project(
        ops.array(x["x"]), freqs_cis(ops, rows), ops.weights(project_weights(heads, rounds))
    )
for _ratio in (4, 128):
    ROW_OPS[f"block_rows, ratio {_ratio}"] = lambda ops, rows, x, ratio=_ratio: ops.block_rows(
        ops.array(x["x"]), rows, ops.weights(compress_weights(ratio, False))
    )
for _hashed, _limit in ((False, 10.0), (True, 0.5)):
    ROW_OPS[f"moe, hashed {_hashed}"] = lambda ops, rows, x, hashed=_hashed, limit=_limit: ops.moe(
        ops.array(x["x"]), rows.ids, ops.weights(moe_weights(hashed, limit))
    )


def call(op: str, ops: Ops, start: int, stop: int) -> list[Tensor]:
    """Rows start ... stop - 1 of the inputs of 130 rows through one op."""
    shapes = {"x": (D,), "streams": (M, D), "post": (M,), "comb": (M, M), "o": (HEADS, DIM)}
    inputs = {name: randn(130, *shape, seed=20)[start:stop].contiguous() for name, shape in shapes.items()}
    with torch.inference_mode():
        results = ROW_OPS[op](ops, make_rows((700 + start, stop - start)), inputs)
    return [ops.tensor(result).clone() for result in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("op", ROW_OPS)
@pytest.mark.parametrize("count", SIZES)
def test_a_kernel_gives_what_its_torch_twin_gives(op: str, count: int, threads: int) -> None:
    for got, expected in zip(call(op, CPU, 0, count), call(op, TWINS, 0, count), strict=True):
        assert got.shape == expected.shape
        if "project" not in op or "0" in op:
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
        else:  # where a value lies between two steps of its format, the last bit decides which it takes
            close = torch.isclose(got, expected, atol=2e-5, rtol=2e-5)
            assert close.float().mean() > 0.99
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=0.13)


@pytest.mark.parametrize("op", ROW_OPS)
def test_no_row_sees_its_neighbours(op: str, threads: int) -> None:
    whole = call(op, CPU, 0, 130)
    for start, stop in [(0, 1), (7, 8), (129, 130), (3, 5), (1, 17), (64, 69), (15, 80), (1, 130)]:
        for got, expected in zip(call(op, CPU, start, stop), whole, strict=True):
            assert torch.equal(got, expected[start:stop]), (start, stop)


# What a rank computes: some columns of each product, with the bits that they have in the whole.

across_ranks = pytest.mark.parametrize(("ranks", "count"), [(2, 1), (2, 130), (3, 7), (4, 33)])


def parts_of(weight: Tensor, ranks: int) -> list[Tensor]:
    """Columns of a weight for each rank; not as many for each."""
    return [part.contiguous() for part in weight.tensor_split(ranks, -1)]


def together(parts: list[Any]) -> np.ndarray:
    return np.concatenate([CPU.tensor(part).numpy() for part in parts], -1)


def equal(got: np.ndarray, expected: Any) -> bool:
    return np.array_equal(got, CPU.tensor(expected).numpy())


@across_ranks
def test_columns_of_experts_have_the_bits_of_the_whole(ranks: int, count: int, threads: int) -> None:
    x, ids, whole = randn(count, D, seed=20).numpy(), make_rows((700, count)).ids, moe_weights(False, 10.0)

    def gate_up(weight: Tensor) -> list[Tensor]:
        return [torch.cat(pair, -1) for pair in zip(*(parts_of(half, ranks) for half in weight.chunk(2, -1)))]

    firsts = zip(gate_up(whole.w13), gate_up(whole.shared_w13))
    seconds = zip(parts_of(whole.w2, ranks), parts_of(whole.shared_w2, ranks))
    shares = [
        CPU.weights(whole._replace(w13=w13, shared_w13=shared_w13, w2=w2, shared_w2=shared_w2))
        for (w13, shared_w13), (w2, shared_w2) in zip(firsts, seconds)
    ]
    hidden, chosen = zip(*(CPU.moe_hidden(x, ids, share) for share in shares))
    everything = together(list(hidden))
    got = together([CPU.moe_columns(everything, chosen[0], share) for share in shares])
    assert equal(got, CPU.moe(x, ids, CPU.weights(whole)))


@across_ranks
def test_columns_of_outputs_have_the_bits_of_the_whole(ranks: int, count: int, threads: int) -> None:
    """Of each group's part, then of all."""
    o = randn(count, HEADS, DIM, seed=21).numpy()
    low = []
    for group, heads in enumerate(np.split(o, 2, 1)):
        shares = [OUTPUT._replace(wo_a=part) for part in parts_of(OUTPUT.wo_a[group : group + 1], ranks)]
        low += [CPU.output_low(heads.copy(), CPU.weights(share)) for share in shares]
    shares = [OUTPUT._replace(wo_b=part) for part in parts_of(OUTPUT.wo_b, ranks)]
    everything = together(low)
    got = together([CPU.output_columns(everything, CPU.weights(share)) for share in shares])
    assert equal(got, CPU.output(o, CPU.weights(OUTPUT)))


@across_ranks
def test_heads_and_words_have_the_bits_of_the_whole(ranks: int, count: int, threads: int) -> None:
    turned, streams = freqs_cis(CPU, make_rows((700, count))), randn(count, M, D, seed=22).numpy()
    shares = [CPU.weights(HEAD._replace(lm_head=part)) for part in parts_of(HEAD.lm_head, ranks)]
    assert equal(together([CPU.lm_head(streams, share) for share in shares]), CPU.lm_head(streams, CPU.weights(HEAD)))
    x, whole = randn(count, D, seed=20).numpy(), project_weights(0, False)
    shares = [CPU.weights(whole._replace(wq_b=part, num_heads=1)) for part in parts_of(whole.wq_b, HEADS)]
    got = np.concatenate([CPU.tensor(CPU.project(x, turned, share)[0]).numpy() for share in shares], 1)
    assert equal(got, CPU.project(x, turned, CPU.weights(whole))[0])


# Attention, compression and the indexer: what a call computes also depends on what earlier steps left behind.


def poisoned(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan)


def fed(ops: Ops, step: Callable[[Ops, Rows, slice], Any], total: int, chunk: int) -> list[Any]:
    """The results of feeding `total` tokens of one sequence in chunks."""
    results = []
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        results.append(step(ops, make_rows((start, stop - start)), slice(start, stop)))
    return results


TOTAL = 420
CHUNKS = (1, 2, 5, 16, 100)


def attended(ops: Ops, chunk: int, ratio: int, selected: bool) -> Tensor:
    """Attention over TOTAL tokens in chunks; entries of a `ratio` that the pool holds from the start."""
    q, kv, ring = randn(TOTAL, HEADS, DIM), randn(TOTAL, DIM, seed=1), poisoned(1, RING, DIM)
    per_page = PAGE_TOKENS // max(ratio, 1)
    pool = poisoned(NUM_PAGES * per_page, DIM)
    entries = torch.arange(TOTAL // ratio if ratio else 0)
    pool[torch.from_numpy(PAGES)[entries // per_page] * per_page + entries % per_page] = randn(
        len(entries), DIM, seed=2
    )
    weights = ops.weights(attention.AttendWeights(randn(HEADS, seed=3), DIM**-0.5, WINDOW, ratio))
    everything = torch.full((TOTAL, K), -1)
    for t in range(TOTAL):
        seen = min((t + 1) // ratio, K) if ratio and selected else 0
        chosen = (
            torch.randperm((t + 1) // ratio, generator=torch.Generator().manual_seed(t))[:seen].sort().values
            if seen
            else entries[:0]
        )
        everything[t, :seen] = torch.from_numpy(PAGES)[chosen // per_page] * per_page + chosen % per_page

    def step(ops: Ops, rows: Rows, at: slice) -> Tensor:
        new, chosen = ops.array(kv[at]), ops.array(everything[at]) if selected else None
        o = ops.attend(
            ops.array(q[at]), new, freqs_cis(ops, rows), rows, ops.array(ring), ops.array(pool), chosen, weights
        )
        ops.store(rows, (new, ops.array(ring)))
        return ops.tensor(o)

    return torch.cat(fed(ops, step, TOTAL, chunk))


@pytest.mark.parametrize(("ratio", "selected"), [(0, False), (4, False), (128, False), (4, True)])
def test_attention_gives_what_its_twin_gives_in_chunks_of_any_size(ratio: int, selected: bool, threads: int) -> None:
    whole = attended(CPU, TOTAL, ratio, selected)
    torch.testing.assert_close(whole, attended(TWINS, 100, ratio, selected), atol=1e-5, rtol=1e-5)
    for chunk in CHUNKS:
        assert torch.equal(attended(CPU, chunk, ratio, selected), whole), chunk


@pytest.mark.parametrize("ratio", [4, 128])
def test_what_a_roll_dropped_takes_no_room_and_changes_no_bit(ratio: int) -> None:
    near = make_rows((300, 20))
    dropped = RING * PAGE_TOKENS << 30
    far = near._replace(positions=near.positions + dropped, dropped=near.dropped + dropped)
    q, kv, ring = randn(20, HEADS, DIM), randn(20, DIM, seed=1), randn(1, RING, DIM, seed=2)
    pool, w = (
        randn(NUM_PAGES * PAGE_TOKENS // ratio, DIM, seed=3),
        attention.AttendWeights(randn(HEADS), 0.1, WINDOW, ratio),
    )
    arrays = [CPU.array(x) for x in (q, kv)], [CPU.array(x) for x in (ring, pool)], CPU.weights(w)

    def attend(rows: Rows) -> Tensor:
        inputs, held, weights = arrays
        return CPU.tensor(CPU.attend(*inputs, freqs_cis(CPU, near), rows, *held, None, weights))

    assert torch.equal(attend(far), attend(near))


def compressed(ops: Ops, chunk: int, ratio: int, rounds: bool) -> tuple[Tensor, Tensor]:
    """The pools after TOTAL tokens in chunks, NaN where no block is complete."""
    weights = compress_weights(ratio, rounds)
    width = 2 * weights.ape.shape[1]
    mixed, ring = randn(TOTAL, width), poisoned(1, (8 if ratio == 4 else ratio) + 16, width)
    pools = [poisoned(NUM_PAGES * PAGE_TOKENS // ratio, dim) for dim in (DIM, len(weights.index_norm))]

    def step(ops: Ops, rows: Rows, at: slice) -> None:
        new, places = ops.array(mixed[at]), [ops.array(p) for p in (ring, *pools)]
        ops.complete_blocks(new, rows, *places, ops.weights(weights))
        ops.store(rows, (new, places[0]))
        ops.tensor(new)

    fed(ops, step, TOTAL, chunk)
    return pools[0], pools[1]


@pytest.mark.parametrize("ratio", [4, 128])
@pytest.mark.parametrize("rounds", [False, True])
def test_entries_are_those_of_the_twin_in_chunks_of_any_size(ratio: int, rounds: bool, threads: int) -> None:
    whole = compressed(CPU, TOTAL, ratio, rounds)
    assert int(whole[0].isfinite().all(1).sum()) == TOTAL // ratio
    for got, expected in zip(whole, compressed(TWINS, 100, ratio, rounds)):
        others = ~torch.isclose(got, expected, atol=2e-5, rtol=2e-5, equal_nan=True)
        assert int(others.sum()) <= (0.01 if rounds else 0) * got.numel()
    for chunk in CHUNKS:
        for got, expected in zip(compressed(CPU, chunk, ratio, rounds), whole):
            assert torch.equal(got.nan_to_num(), expected.nan_to_num()), chunk


def selected(ops: Ops, chunk: int, ties: bool) -> Tensor:
    """What the rows of TOTAL tokens choose; with ties, of keys and queries with few values."""
    q, weights, keys = (
        randn(TOTAL, INDEX_HEADS, INDEX_DIM),
        randn(TOTAL, INDEX_HEADS, seed=1),
        randn(TOTAL // 4, INDEX_DIM, seed=2),
    )
    if ties:
        q, weights, keys = (x.round().clamp(-1, 1) for x in (q, weights, keys))
        keys[:, 2:] = 0
    pool, entries, per_page = (
        poisoned(NUM_PAGES * PAGE_TOKENS // 4, INDEX_DIM),
        torch.arange(TOTAL // 4),
        PAGE_TOKENS // 4,
    )
    pool[torch.from_numpy(PAGES)[entries // per_page] * per_page + entries % per_page] = keys

    def step(ops: Ops, rows: Rows, at: slice) -> Tensor:
        return ops.tensor(ops.select(ops.array(q[at]), ops.array(weights[at]), rows, ops.array(pool), 4, K))

    return torch.cat(fed(ops, step, TOTAL, chunk))


@pytest.mark.parametrize("ties", [False, True])
def test_the_indexer_chooses_what_its_twin_chooses(ties: bool, threads: int) -> None:
    whole = selected(CPU, TOTAL, ties)
    assert torch.equal(whole, selected(TWINS, 100, ties))
    for chunk in CHUNKS:
        assert torch.equal(selected(CPU, chunk, ties), whole), chunk


def test_several_sequences_in_one_call_equal_each_alone(threads: int) -> None:
    """Attention over segments of uneven length; each slot's ring is filled beforehand."""
    segments = [(300, 1), (17, 40), (511, 3), (0, 5)]
    rows, n = make_rows(*segments), 49
    q, kv, ring = randn(n, HEADS, DIM), randn(n, DIM, seed=1), randn(len(segments), RING, DIM, seed=2)
    pool, weights = randn(NUM_PAGES, DIM, seed=3), attention.AttendWeights(randn(HEADS), DIM**-0.5, WINDOW, 128)
    args = [CPU.array(x) for x in (ring, pool)]
    together = CPU.tensor(
        CPU.attend(CPU.array(q), CPU.array(kv), freqs_cis(CPU, rows), rows, *args, None, CPU.weights(weights))
    )
    for i, (start, stop) in enumerate(zip(rows.starts[:-1], rows.starts[1:])):
        own = make_rows(segments[i])._replace(slots=np.array([i]))
        new = CPU.array(q[start:stop]), CPU.array(kv[start:stop]), freqs_cis(CPU, own)
        alone = CPU.attend(*new, own, *args, None, CPU.weights(weights))
        assert torch.equal(CPU.tensor(alone), together[start:stop]), i
