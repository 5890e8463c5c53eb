"""Attention of queries over window rows and selected compressed entries, one softmax with a sink (V4 spec 2.5).

Keys are values: one row serves both. Entries are reduced in fixed tiles whose partial sums are added pairwise, and a
masked key adds an exact zero, so a query's bits do not depend on how many keys others see.
"""

import torch
from torch import Tensor

from kernels.gemm import pair_sum, tiled_bmm

ENTRY_TILE = 64


def sparse_attn(
    q: Tensor,
    window: Tensor,
    window_mask: Tensor,
    entries: Tensor | None,
    entry_mask: Tensor | None,
    sink: Tensor,
    scale: float,
    round_p: bool = False,
) -> Tensor:
    """q [n, H, d] -> o [n, H, d].

    window [A, W, d]: row images, each shared by n / A consecutive queries; window_mask [n, W], 0 or -inf.
    entries [B, K, d] shared by n / B consecutive queries, K a multiple of ENTRY_TILE; entry_mask [n, K]; or None.
    sink [H] counts in the denominator only. round_p rounds probabilities to bf16 before the product with values.
    """
    n, heads, d = q.shape
    q = q * scale
    near = _scores(q, window) + window_mask.unsqueeze(1)  # [n, H, W]
    top = torch.maximum(near.amax(-1, keepdim=True), sink.view(heads, 1))
    far = None
    if entries is not None:
        assert entry_mask is not None
        far = _scores(q, entries) + entry_mask.unsqueeze(1)  # [n, H, K]
        top = torch.maximum(top, far.amax(-1, keepdim=True))
    near = torch.exp_(near.sub_(top))
    total = near.sum(-1, keepdim=True) + torch.exp(sink.view(heads, 1) - top)
    o = tiled_bmm(_p(near, round_p).view(len(window), -1, near.shape[-1]), window).reshape(n, heads, d)
    if entries is not None and far is not None:
        far = torch.exp_(far.sub_(top)).unflatten(-1, (-1, ENTRY_TILE))  # [n, H, tiles, ENTRY_TILE]
        total = total + pair_sum(far.sum(-1), -1).unsqueeze(-1)
        o = o + _weighted_entries(_p(far, round_p), entries)
    return o.div_(total)


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    groups, num_keys, d = keys.shape
    n, heads, _ = q.shape
    return tiled_bmm(q.reshape(groups, -1, d), keys.transpose(1, 2)).reshape(n, heads, num_keys)


def _weighted_entries(p: Tensor, entries: Tensor) -> Tensor:
    """p [n, H, tiles, T], entries [B, tiles * T, d] -> [n, H, d], tile by tile."""
    n, heads, tiles, width = p.shape
    groups, d = len(entries), entries.shape[2]
    per_tile = p.reshape(groups, -1, tiles, width).transpose(1, 2).reshape(groups * tiles, -1, width)
    parts = tiled_bmm(per_tile, entries.reshape(groups * tiles, width, d))
    return pair_sum(parts.reshape(groups, tiles, -1, d), 1).view(n, heads, d)


def _p(p: Tensor, rounded: bool) -> Tensor:
    return p.bfloat16().float() if rounded else p
