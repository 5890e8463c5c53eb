"""Kernels against recorded vectors of single operations and against plain statements of what they compute."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from holdfast.kernels.attention import softmax_attend
from holdfast.kernels.cache import RowFormat
from holdfast.kernels.compress import CompressWeights, pool_block
from holdfast.kernels.hyper import hc_split
from holdfast.kernels.indexer import index_scores, select_top
from holdfast.kernels.moe import MoEWeights, moe, route
from holdfast.kernels.quant import dequant_fp4_weight, dequant_fp8_weight, fake_fp8
from holdfast.kernels.rope import rope_frequencies, rope_table, rotate_
from holdfast.kernels.rounding import Rounding

VECTORS = load_file(Path(__file__).parents[1] / "fixtures" / "op-vectors.safetensors")
INF = float("inf")
EXACT = Rounding(official=False)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Linear layers in official numerics: the vector is the float64 result rounded to bf16.


def test_linear_fp8_gives_the_recorded_bf16_values() -> None:
    weight = dequant_fp8_weight(VECTORS["linear_fp8.weight"].view(torch.float8_e4m3fn), VECTORS["linear_fp8.scale"])
    assert torch.equal(quantised_linear(VECTORS["linear_fp8.x"], weight), VECTORS["linear_fp8.y"])


def test_linear_fp4_gives_the_recorded_bf16_values() -> None:
    weight = dequant_fp4_weight(VECTORS["linear_fp4.weight"], VECTORS["linear_fp4.scale"])
    assert torch.equal(quantised_linear(VECTORS["linear_fp4.x"], weight), VECTORS["linear_fp4.y"])


def quantised_linear(x: Tensor, weight: Tensor) -> Tensor:
    return (fake_fp8(x.float(), 128) @ weight.t()).bfloat16()


# Attention.


@pytest.mark.parametrize("in_window", [0, 40, 128])
def test_sparse_attention_gives_the_recorded_values(in_window: int) -> None:
    """The recorded keys as entries; some given as window rows, which is the same softmax.

    A masked key must not be seen.
    """
    q, kv, idx = (VECTORS[f"sparse_attn.{name}"] for name in ("q", "kv", "idx"))
    q, kv, mask = q.float(), kv.float(), idx >= 0
    assert not mask.all()
    rows = kv[idx.clamp(min=0).long()]  # [5, 170, 128]
    rows[~mask] = math.nan
    keys, masks = rows.split([in_window, 170 - in_window], 1), mask.split([in_window, 170 - in_window], 1)
    sink, scale = VECTORS["sparse_attn.sink"], 128**-0.5
    exact = softmax_attend(q, list(keys), list(masks), sink, scale, EXACT)
    torch.testing.assert_close(exact, VECTORS["sparse_attn.o_fp32"], atol=1e-5, rtol=1e-5)
    rounded = softmax_attend(q, list(keys), list(masks), sink, scale, Rounding(official=True))
    torch.testing.assert_close(rounded, VECTORS["sparse_attn.o"].float(), atol=4e-3, rtol=0)
    assert not torch.equal(rounded, exact)


# Hyper-connections and rotary embedding.


def test_hc_split_gives_the_recorded_values() -> None:
    scale = VECTORS["hc.scale"].repeat_interleave(torch.tensor([4, 4, 16]))
    pre, post, comb = hc_split(VECTORS["hc.mixes"] * scale, VECTORS["hc.base"], 4, 20, 1e-6)
    for name, got in (("pre", pre), ("post", post), ("comb", comb)):
        torch.testing.assert_close(got, VECTORS[f"hc.{name}"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(comb.sum(1), torch.ones(16, 4), atol=1e-4, rtol=0)


YARN = (16.0, 32.0, 1.0, 65536)


@pytest.mark.parametrize(("kind", "theta", "yarn"), [("plain", 10000.0, None), ("yarn", 160000.0, YARN)])
def test_rotation_gives_the_recorded_values_at_far_positions(kind: str, theta: float, yarn) -> None:
    freqs, positions = rope_frequencies(64, theta, yarn), VECTORS["rope.pos"]
    assert positions.max() > 2**33
    torch.testing.assert_close(freqs, VECTORS[f"rope.freqs_{kind}"], atol=0, rtol=1e-14)
    freqs_cis, expected = rope_table(positions, freqs), VECTORS[f"rope.y_{kind}"]
    rotated = rotate_(VECTORS["rope.x"].clone(), freqs_cis)
    torch.testing.assert_close(rotated, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate_(rotated, freqs_cis.conj().resolve_conj()), VECTORS["rope.x"], atol=1e-5, rtol=0)


def test_rotation_leaves_the_channels_before_it_alone() -> None:
    x = randn(9, 96)
    freqs_cis = rope_table(torch.arange(9), rope_frequencies(32, 10000.0, None))
    rotated = rotate_(x.clone(), freqs_cis)
    assert torch.equal(rotated[:, :64], x[:, :64]) and not torch.equal(rotated[1:, 64:], x[1:, 64:])


# The indexer.


def best_entries(scores: list[float], visible: int, k: int) -> list[int]:
    """-0.0 == 0.0 in Python, and a sort is stable: equal scores stay in the order of their index."""
    return sorted(sorted(range(min(visible, len(scores))), key=lambda i: -scores[i])[:k])


def assert_selects(scores: Tensor, visible: list[int], k: int) -> None:
    chosen = select_top(scores, torch.tensor(visible), k)
    assert chosen.shape == (len(scores), k)
    for row, entries in enumerate(chosen.tolist()):
        best = best_entries(scores[row].tolist(), visible[row], k)
        assert entries == best + [-1] * (k - len(best)), row


@pytest.mark.parametrize("k", [1, 8, 64])
def test_selection_of_random_scores(k: int) -> None:
    assert_selects(randn(20, 100), [*range(0, 100, 6), 98, 99, 100], k)


@pytest.mark.parametrize("k", [1, 5, 16])
def test_equal_scores_go_to_the_lower_entry(k: int) -> None:
    scores = torch.randint(-2, 3, (30, 48), generator=torch.Generator().manual_seed(1)).float()
    assert_selects(scores, [48] * 30, k)
    assert_selects(torch.zeros(2, 48), [48, 3], k)


def test_minus_zero_equals_zero() -> None:
    scores = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0], [0.0, -0.0, 0.0, -0.0, 1.0]])
    for k in (1, 2, 3):
        assert_selects(scores, [5, 5], k)


def test_negative_and_extreme_scores_are_ordered() -> None:
    scores = torch.tensor([[-3.0, -1.0, -2.0, -1e30, -1e-30], [1e30, -1e30, 1e-40, -1e-40, 3e38]])
    for k in (1, 2, 4, 5):
        assert_selects(scores, [5, 4], k)


def test_fewer_entries_than_wanted_and_none_visible() -> None:
    assert_selects(randn(4, 6), [0, 1, 5, 6], 16)
    assert (select_top(randn(3, 32), torch.tensor([0, 0, 0]), 8) == -1).all()


@pytest.mark.parametrize("num_queries", [1, 3, 16])
def test_index_scores_against_float64(num_queries: int) -> None:
    q, keys, weights = randn(num_queries, 4, 32), randn(48, 32, seed=1), randn(num_queries, 4, seed=2)
    expected = (torch.einsum("nhd,ed->nhe", q.double(), keys.double()).relu() * weights.double()[..., None]).sum(1)
    torch.testing.assert_close(index_scores(q, keys, weights).double(), expected, atol=1e-4, rtol=0)


# Stored rows.

FORMATS = [(512, 64, "key", 584), (96, 32, "key", 136), (128, 0, "index", 68), (32, 0, "index", 17)]


@pytest.mark.parametrize(("dim", "rope", "kind", "width"), FORMATS)
def test_a_rounded_row_is_stored_without_loss(dim: int, rope: int, kind: str, width: int) -> None:
    row_format = RowFormat(dim, rope, kind)
    rows = randn(50, dim) * torch.logspace(-6, 4, 50).unsqueeze(1)
    rows[0], rows[1, :64] = 0, 0
    packed = row_format.pack(rows)
    assert packed.dtype == torch.uint8 and packed.shape == (50, width)
    assert row_format.width == row_format.row_bytes == width
    rounded = row_format.unpack(packed)
    assert torch.equal(row_format.round(rows), rounded)
    assert torch.equal(row_format.unpack(row_format.pack(rounded)), rounded)
    assert torch.equal(row_format.pack(rounded), row_format.pack(row_format.round(rounded)))
    step = 2.0**-8 if kind == "key" else 2.0**-2  # of the largest value of a block, at worst
    assert not torch.equal(rounded, rows)
    assert ((rounded - rows).abs().amax(1) <= 16 * step * rows.abs().amax(1) + 1e-4).all()


@pytest.mark.parametrize(("dim", "rope", "kind", "width"), FORMATS[:2])
def test_rotated_channels_of_a_key_are_stored_as_bf16(dim: int, rope: int, kind: str, width: int) -> None:
    rows = randn(9, dim)
    rounded = RowFormat(dim, rope, kind).round(rows)
    assert torch.equal(rounded[:, -rope:], rows[:, -rope:].bfloat16().float())


def test_float32_rows_are_stored_as_they_are() -> None:
    rows, row_format = randn(3, 96), RowFormat(96, 32, "float32")
    assert row_format.row_bytes == 384 and row_format.width == 96
    assert torch.equal(row_format.unpack(row_format.pack(rows)), rows) and torch.equal(row_format.round(rows), rows)


# Compression.


def compress_weights(ratio: int, width: int, overlaps: bool) -> CompressWeights:
    empty = torch.zeros(0)
    return CompressWeights(
        empty, torch.zeros(ratio, width), empty, empty, empty, empty, ratio, overlaps, 1.0, False, 1e-6
    )


@pytest.mark.parametrize("ratio", [4, 128])
def test_pooling_against_float64(ratio: int) -> None:
    sources = 3 * randn(ratio, 2 * 96)
    values, gates = sources.double().chunk(2, 1)
    expected = (torch.softmax(gates, 0) * values).sum(0, keepdim=True)
    pooled = pool_block(sources, True, compress_weights(ratio, 96, overlaps=False))
    torch.testing.assert_close(pooled.double(), expected, atol=1e-5, rtol=0)


def test_overlapping_blocks_take_the_halves_meant_for_them() -> None:
    """Gates that leave one slot in: the previous block's slots give their first half, the block's own their second."""
    weights = compress_weights(4, 6, overlaps=True)
    values = torch.arange(8 * 6).view(8, 6).float()
    for slot in range(8):
        gates = torch.full((8, 6), -INF)
        gates[slot] = 0.0
        pooled = pool_block(torch.cat((values, gates), 1), True, weights)
        assert pooled[0].tolist() == values[slot, :3].tolist() if slot < 4 else values[slot, 3:].tolist()
    first = pool_block(torch.cat((values[4:], torch.zeros(4, 6)), 1), False, weights)
    torch.testing.assert_close(first, values[4:, 3:].mean(0, keepdim=True))


# Experts.


def dense_experts(x: Tensor, w: MoEWeights) -> Tensor:
    """One row and one expert at a time, in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    scores = torch.nn.functional.softplus(x.double() @ w.gate.double()).sqrt()
    experts = [(w.shared_w13, w.shared_w2), *zip(w.w13, w.w2)]
    for row, score in enumerate(scores):
        chosen = (score + w.bias.double()).topk(w.k).indices.tolist()
        total = sum(score[e] for e in chosen)
        for expert, weight in [(0, 1.0), *((e + 1, w.factor * score[e] / total) for e in chosen)]:
            w13, w2 = experts[expert]
            gate, up = (x[row].double() @ w13.double()).chunk(2)
            gate, up = gate.clamp(max=w.limit), up.clamp(-w.limit, w.limit)
            out[row] += (weight * gate * torch.sigmoid(gate) * up) @ w2.double()
    return out


@pytest.mark.parametrize("count", [1, 3, 33])
@pytest.mark.parametrize("limit", [10.0, 0.5])
def test_experts_against_a_dense_float64_statement(count: int, limit: float) -> None:
    weights = MoEWeights(
        randn(64, 6, seed=5) / 8,
        randn(6, seed=6),
        torch.zeros(0, 2, dtype=torch.int64),
        randn(6, 64, 96, seed=1) / 4,
        randn(6, 48, 64, seed=2) / 7,
        randn(64, 96, seed=3) / 4,
        randn(48, 64, seed=4) / 7,
        2,
        1.5,
        limit,
    )
    x = randn(count, 64)
    got = moe(x, np.zeros(count, np.int64), weights, num=EXACT)
    torch.testing.assert_close(got.double(), dense_experts(x, weights), atol=1e-5, rtol=1e-5)


def test_routing_takes_the_best_biased_scores_and_weighs_by_raw_ones() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.5, 0.5, 0.5, 0.5]])
    bias = torch.tensor([2.5, 0.0, -2.0, 0.0])
    chosen, weights = route(scores, bias, None, 2, 1.5)
    assert [sorted(row) for row in chosen.tolist()] == [[0, 1], [0, 1]]  # 3.5, 2, 1, 2 and 3, .5, -1.5, .5: ties low
    for row in range(2):
        by_expert = dict(zip(chosen[row].tolist(), weights[row].tolist()))
        total = sum(scores[row, e].item() for e in by_expert)
        assert all(math.isclose(w, 1.5 * scores[row, e].item() / total, rel_tol=1e-6) for e, w in by_expert.items())
    fixed, _ = route(scores, bias, torch.tensor([[3, 0], [2, 1]]), 2, 1.5)
    assert [sorted(row) for row in fixed.tolist()] == [[0, 3], [1, 2]]
