"""Gated pooling of blocks of tokens into entries, and the rings that hold what later steps need (V4 spec 2.6)."""

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.norm import rms_norm
from holdfast.kernels.quant import fake_fp4, round_kv_rows
from holdfast.kernels.rope import rope_table, rotate_
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows


class CompressWeights(NamedTuple):
    """`width` channels of values are head_dim, or with overlap twice (head_dim + index_head_dim).

    With overlap they lie in the order A main, A index, B main, B index.
    """

    w_blocks: Tensor  # [D, 2 * width + num_index_heads]: values, gates, head weights of the indexer
    ape: Tensor  # [ratio, width]
    entry_norm: Tensor  # [head_dim]
    index_norm: Tensor  # [index_head_dim], or [0]
    hadamard: Tensor  # [index_head_dim, index_head_dim], or [0, 0]
    freqs: Tensor  # float64 [rope / 2]
    ratio: int
    overlaps: bool
    index_scale: float  # of the head weights
    rounds_rows: bool
    eps: float


def block_rows(x: Tensor, rows: Rows, w: CompressWeights, *, num: Rounding) -> tuple[Tensor, Tensor]:
    """x [N, D] -> values and gates [N, 2 * width], the indexer's head weights [N, num_index_heads]."""
    width = w.ape.shape[1]
    values, gates, head_weights = (x @ w.w_blocks).tensor_split([width, 2 * width], 1)
    gates = gates + w.ape[torch.from_numpy(rows.positions % w.ratio)]
    return torch.cat((values, gates), 1), num.bf16(head_weights) * w.index_scale


def complete_blocks(
    mixed: Tensor, rows: Rows, ring: Tensor, pool: Tensor, index_pool: Tensor, w: CompressWeights, *, num: Rounding
) -> None:
    """Write the entries of all blocks that end in these rows, into the pools at the places their pages say.

    Rows before this step's come from the block ring [slots, length, 2 * width], which does not hold these yet.
    """
    back, per_page = w.ratio if w.overlaps else 0, rows.page_tokens // w.ratio
    for segment, start in enumerate(rows.starts[:-1].tolist()):
        first, end = int(rows.positions[start]), int(rows.positions[rows.starts[segment + 1] - 1]) + 1
        for block in range(first // w.ratio, end // w.ratio):
            position = torch.arange(max(block * w.ratio - back, 0), (block + 1) * w.ratio)
            new = mixed[start + (position - first).clamp(min=0)]
            old = ring[int(rows.slots[segment]), position % ring.shape[1]]
            sources = torch.where((position >= first).unsqueeze(1), new, old)
            entry = block - int(rows.dropped[segment]) // w.ratio
            place = int(rows.pages[segment, entry // per_page]) * per_page + entry % per_page
            pooled = num.bf16(pool_block(sources, block > 0, w))
            freqs_cis = rope_table(torch.tensor([block * w.ratio]), w.freqs)
            key = num.bf16(rotate_(num.bf16(rms_norm(pooled[:, : pool.shape[1]], w.entry_norm, w.eps)), freqs_cis))
            pool[place] = round_kv_rows(key, 2 * len(w.freqs))[0] if w.rounds_rows else key[0]
            if len(w.index_norm):
                key = num.bf16(rotate_(num.bf16(rms_norm(pooled[:, pool.shape[1] :], w.index_norm, w.eps)), freqs_cis))
                key = num.bf16(key @ w.hadamard)
                index_pool[place] = (fake_fp4(key) if w.rounds_rows else key)[0]


def pool_block(sources: Tensor, has_previous: bool, w: CompressWeights) -> Tensor:
    """sources [slots, values | gates] -> [1, channels]: per channel, a softmax over the slots weighs the values.

    With overlap the previous block's slots give their A half and the block's own their B half.
    """
    values, gates = sources.chunk(2, 1)
    if w.overlaps:
        half = w.ape.shape[1] // 2
        own = w.ratio if has_previous else 0
        values, gates = (torch.cat((t[:own, :half], t[own:, half:])) for t in (values, gates))
    return (torch.softmax(gates, 0) * values).sum(0, keepdim=True)


def store(rows: Rows, *pairs: tuple[Tensor, Tensor], num: Rounding) -> None:
    """Put the last rows of each segment into its ring, at position % length; of one pair or two.

    A pair is a source [N, width] and a ring [slots, length, width].
    """
    for source, ring in pairs:
        length = ring.shape[1]
        for segment, end in enumerate(rows.starts[1:].tolist()):
            start = max(int(rows.starts[segment]), end - length)
            ring[int(rows.slots[segment]), torch.from_numpy(rows.positions[start:end] % length)] = source[start:end]
