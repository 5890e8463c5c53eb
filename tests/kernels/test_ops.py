"""Kernels against recorded vectors of single operations and against plain statements of what they compute."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels.attention import ENTRY_TILE, sparse_attn
from kernels.cache import RowFormat
from kernels.compress import overlapping, pool_blocks
from kernels.gemm import EXACT_K, grouped_linear, linear, pad_rows, pair_sum, row_tile
from kernels.hyper import hc_split
from kernels.indexer import index_scores, select_top
from kernels.moe import experts, route
from kernels.quant import dequant_fp4_weight, dequant_fp8_weight, fake_fp8
from kernels.rope import rope_frequencies, rope_table, rotate_

VECTORS = load_file(Path(__file__).parents[1] / "fixtures" / "op-vectors.safetensors")
INF = float("inf")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_zeros(pad_rows(len(rows)) - len(rows), *rows.shape[1:])))


# Linear layers in official numerics: the vector is the float64 result rounded to bf16.


def test_linear_fp8_gives_the_recorded_bf16_values() -> None:
    weight = dequant_fp8_weight(VECTORS["linear_fp8.weight"].view(torch.float8_e4m3fn), VECTORS["linear_fp8.scale"])
    assert torch.equal(quantised_linear(VECTORS["linear_fp8.x"], weight), VECTORS["linear_fp8.y"])


def test_linear_fp4_gives_the_recorded_bf16_values() -> None:
    weight = dequant_fp4_weight(VECTORS["linear_fp4.weight"], VECTORS["linear_fp4.scale"])
    assert torch.equal(quantised_linear(VECTORS["linear_fp4.x"], weight), VECTORS["linear_fp4.y"])


def quantised_linear(x: Tensor, weight: Tensor) -> Tensor:
    return linear(padded(fake_fp8(x.float(), 128)), weight)[: len(x)].bfloat16()


@pytest.mark.parametrize("inner", [96, 128, 192, 256, 384, 512, 640, 704, 1536])
def test_a_row_of_a_product_does_not_depend_on_the_number_of_rows(inner: int) -> None:
    x, weight = randn(256, inner), randn(200, inner, seed=1)
    expected = linear(x, weight)
    torch.testing.assert_close(expected.double(), x.double() @ weight.double().t(), atol=1e-3, rtol=0)
    for rows in (row_tile(), 2 * row_tile(), 3 * row_tile(), 48, 80, 112, 208):
        assert torch.equal(linear(x[:rows], weight), expected[:rows]), rows
        assert torch.equal(linear(x[32 : 32 + rows], weight), expected[32 : 32 + rows]), rows


def test_wide_products_are_those_that_need_tiles() -> None:
    """704 and 1536 above lie past the width up to which whole products are exact."""
    assert EXACT_K == 640 and row_tile() in (4, 8, 16)
    assert [pad_rows(n) for n in (0, 1, row_tile(), row_tile() + 1)] == [0, row_tile(), row_tile(), 2 * row_tile()]


@pytest.mark.parametrize("inner", [96, 192, 256, 384])
def test_a_row_of_a_grouped_product_does_not_depend_on_the_number_of_rows(inner: int) -> None:
    x, weight = randn(128, 2, inner), randn(2, 64, inner, seed=1)
    expected = grouped_linear(x, weight)
    plain = torch.cat([x[:, g].double() @ weight[g].double().t() for g in range(2)], 1)
    torch.testing.assert_close(expected.double(), plain, atol=1e-4, rtol=0)
    for rows in (row_tile(), 3 * row_tile(), 48, 112):
        assert torch.equal(grouped_linear(x[:rows], weight), expected[:rows]), rows


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 64, 65])
def test_pair_sum_ignores_trailing_zeros(count: int) -> None:
    x = randn(6, count, 5) * 1e3
    expected = pair_sum(x, 1)
    torch.testing.assert_close(expected.double(), x.double().sum(1), atol=1e-2, rtol=1e-6)
    for extra in (1, 2, 3, 60, 100):
        assert torch.equal(pair_sum(torch.cat((x, x.new_zeros(6, extra, 5)), 1), 1), expected), extra


# Attention.


def attend(entries: Tensor, mask: Tensor, q: Tensor, window: Tensor, near: Tensor, round_p: bool) -> Tensor:
    sink, scale = VECTORS["sparse_attn.sink"], 128**-0.5
    return sparse_attn(q, window, near, entries, mask, sink, scale, round_p)


@pytest.mark.parametrize("in_window", [0, 40, 128])
def test_sparse_attention_gives_the_recorded_values(in_window: int) -> None:
    """The recorded keys as entries; some first given as window rows, which is the same softmax."""
    q, kv, idx = (VECTORS[f"sparse_attn.{name}"] for name in ("q", "kv", "idx"))
    q, kv = q.float(), kv.float()
    assert (idx < 0).any()
    rows = kv[idx.clamp(min=0).long()]  # [5, 170, 128]
    rows[idx < 0] = 1e4  # a masked key must not be seen
    mask = torch.where(idx < 0, -INF, 0.0)
    width = -(-(170 - in_window) // ENTRY_TILE) * ENTRY_TILE
    entries, far = torch.zeros(5, width, 128), torch.full((5, width), -INF)
    entries[:, : 170 - in_window], far[:, : 170 - in_window] = rows[:, in_window:], mask[:, in_window:]
    window, near = rows[:, : max(in_window, 1)], mask[:, : max(in_window, 1)].clone()
    near[:, in_window:] = -INF
    exact = attend(entries, far, q, window, near, round_p=False)
    torch.testing.assert_close(exact, VECTORS["sparse_attn.o_fp32"], atol=1e-5, rtol=1e-5)
    rounded = attend(entries, far, q, window, near, round_p=True)
    torch.testing.assert_close(rounded, VECTORS["sparse_attn.o"].float(), atol=4e-3, rtol=0)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("more", [1, 2, 5])
def test_masked_entries_change_no_bit(more: int) -> None:
    """Others in the batch may see more entries, so masked tiles come behind."""
    q, window, entries = randn(4, 8, 96), randn(4, 144, 96, seed=1), randn(4, ENTRY_TILE, 96, seed=2)
    near, far = torch.zeros(4, 144), torch.zeros(4, ENTRY_TILE)
    near[:, 100:], far[:, 50:] = -INF, -INF
    expected = attend(entries, far, q, window, near, round_p=False)
    extra = randn(4, more * ENTRY_TILE, 96, seed=3)
    mask = torch.full((4, more * ENTRY_TILE), -INF)
    got = attend(torch.cat((entries, extra), 1), torch.cat((far, mask), 1), q, window, near, round_p=False)
    assert torch.equal(got, expected)


def test_entries_that_are_all_masked_change_no_bit() -> None:
    q, window, entries = randn(4, 8, 96), randn(4, 144, 96, seed=1), randn(4, ENTRY_TILE, 96, seed=2)
    near, mask = torch.zeros(4, 144), torch.full((4, ENTRY_TILE), -INF)
    alone = sparse_attn(q, window, near, None, None, VECTORS["sparse_attn.sink"], 128**-0.5)
    assert torch.equal(attend(entries, mask, q, window, near, round_p=False), alone)


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
    turns, expected = rope_table(positions, freqs), VECTORS[f"rope.y_{kind}"]
    rotated = rotate_(VECTORS["rope.x"].clone(), turns)
    torch.testing.assert_close(rotated, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotate_(rotated, turns.conj().resolve_conj()), VECTORS["rope.x"], atol=1e-5, rtol=0)


def test_rotation_leaves_the_channels_before_it_alone() -> None:
    x = randn(9, 96)
    turns = rope_table(torch.arange(9), rope_frequencies(32, 10000.0, None))
    rotated = rotate_(x.clone(), turns)
    assert torch.equal(rotated[:, :64], x[:, :64]) and not torch.equal(rotated[1:, 64:], x[1:, 64:])


# The indexer.


def best_entries(scores: list[float], visible: int, k: int) -> list[int]:
    """-0.0 == 0.0 in Python, and a sort is stable: equal scores stay in the order of their index."""
    return sorted(sorted(range(min(visible, len(scores))), key=lambda i: -scores[i])[:k])


def assert_selects(scores: Tensor, visible: list[int], k: int) -> None:
    index, valid = select_top(scores.clone(), torch.tensor(visible), k)
    assert index.shape == valid.shape == (len(scores), k)
    for row, (entries, counts) in enumerate(zip(index, valid)):
        assert entries[counts].tolist() == best_entries(scores[row].tolist(), visible[row], k), row
        assert (entries >= 0).all() and (entries < max(scores.shape[1], 1)).all()  # what does not count is still read


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
    _, valid = select_top(randn(3, 32), torch.tensor([0, 0, 0]), 8)
    assert not valid.any()


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


@pytest.mark.parametrize("slots", [8, 128])
@pytest.mark.parametrize("blocks", [1, 5])
def test_pooling_against_float64(slots: int, blocks: int) -> None:
    values, gates = randn(blocks, slots, 96), 3 * randn(blocks, slots, 96, seed=1)
    gates[:, : slots // 2, :40] = -INF  # the previous block of a sequence's first
    expected = (torch.softmax(gates.double(), 1) * values.double()).sum(1)
    assert expected.isfinite().all()
    torch.testing.assert_close(pool_blocks(values, gates).double(), expected, atol=1e-5, rtol=0)


def test_a_pooled_block_does_not_depend_on_the_others() -> None:
    values, gates = randn(7, 8, 96), randn(7, 8, 96, seed=1)
    whole = pool_blocks(values, gates)
    for block in range(7):
        assert torch.equal(pool_blocks(values[block : block + 1], gates[block : block + 1])[0], whole[block])


def test_overlapping_blocks_take_the_halves_meant_for_them() -> None:
    rows = torch.arange(2 * 8 * 6).view(2, 8, 6)
    for block, got in zip(rows, overlapping(rows)):
        expected = [[row[c] for c in range(3)] for row in block[:4]] + [
            [row[3 + c] for c in range(3)] for row in block[4:]
        ]
        assert got.tolist() == [[int(v) for v in row] for row in expected]


# Experts.


def identity(x: Tensor) -> Tensor:
    return x


def dense_experts(x: Tensor, chosen: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, limit: float) -> Tensor:
    """One row and one expert at a time, in float64."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for row in range(len(x)):
        for expert, weight in zip(chosen[row].tolist(), weights[row].double()):
            gate, up = (w13[expert].double() @ x[row].double()).chunk(2)
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            out[row] += w2[expert].double() @ (weight * gate * torch.sigmoid(gate) * up)
    return out


REAL_ROWS = {
    "one": [0],
    "part of a tile": [0, 1, 2],
    "a tile": list(range(row_tile())),
    "one past a tile": list(range(row_tile() + 1)),
    "padding between": [*range(7), *range(16, 40)],
}


@pytest.mark.parametrize("real", REAL_ROWS)
@pytest.mark.parametrize("limit", [10.0, 0.5])
def test_experts_against_a_dense_float64_statement(real: str, limit: float) -> None:
    real_rows = torch.tensor(REAL_ROWS[real])
    num_rows = pad_rows(int(real_rows[-1]) + 1)
    x, w13, w2 = randn(num_rows, 64), randn(6, 96, 64, seed=1) / 4, randn(6, 64, 48, seed=2) / 7
    chosen = torch.rand(num_rows, 6, generator=torch.Generator().manual_seed(3)).topk(2).indices
    weights = torch.rand(num_rows, 2, generator=torch.Generator().manual_seed(4))
    got = experts(x, chosen, weights, w13, w2, limit, real_rows, identity, identity)[real_rows]
    expected = dense_experts(x, chosen, weights, w13, w2, limit)[real_rows]
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 33])
def test_experts_give_a_row_the_same_bits_in_every_batch(count: int) -> None:
    x, w13, w2 = randn(64, 64), randn(6, 96, 64, seed=1) / 4, randn(6, 64, 48, seed=2) / 7
    chosen = torch.rand(64, 6, generator=torch.Generator().manual_seed(3)).topk(2).indices
    weights = torch.rand(64, 2, generator=torch.Generator().manual_seed(4))
    whole = experts(x, chosen, weights, w13, w2, 10.0, torch.arange(64), identity, identity)
    rows = pad_rows(count)
    got = experts(x[:rows], chosen[:rows], weights[:rows], w13, w2, 10.0, torch.arange(count), identity, identity)
    assert torch.equal(got[:count], whole[:count])


def test_routing_takes_the_best_biased_scores_and_weighs_by_raw_ones() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.5, 0.5, 0.5, 0.5]])
    bias = torch.tensor([2.5, 0.0, -2.0, 0.0])
    chosen, weights = route(scores, bias, None, 2, 1.5)
    assert [sorted(row) for row in chosen.tolist()] == [[0, 1], [0, 1]]  # 3.5, 2, 1, 2 and 3, .5, -1.5, .5: ties low
    for row in range(2):
        by_expert = dict(zip(chosen[row].tolist(), weights[row].tolist()))
        total = sum(scores[row, e].item() for e in by_expert)
        assert all(math.isclose(w, 1.5 * scores[row, e].item() / total, rel_tol=1e-6) for e, w in by_expert.items())
    fixed, _ = route(scores, None, torch.tensor([[3, 0], [2, 1]]), 2, 1.5)
    assert [sorted(row) for row in fixed.tolist()] == [[0, 3], [1, 2]]
