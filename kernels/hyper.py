"""Manifold-constrained hyper-connections: what a sublayer reads from the streams and writes back (V4 spec 2.3).

Also where the streams begin (`embed`) and end (`lm_head`, spec 2.10).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.kernels.norm import inverse_rms, rms_norm
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Indices


class HyperWeights(NamedTuple):
    fn: Tensor  # [M * D, (2 + M) * M], its columns carry their scale
    base: Tensor  # [(2 + M) * M]
    norm: Tensor  # [D], of the sublayer's input
    iters: int  # Sinkhorn rounds
    hc_eps: float
    norm_eps: float


class LMHeadWeights(NamedTuple):
    fn: Tensor  # [M * D, M], its columns carry their scale
    base: Tensor  # [M]
    norm: Tensor  # [D]
    lm_head: Tensor  # [D, V]; of a rank its share of the V
    hc_eps: float
    norm_eps: float
    vocab_size: int = 0  # V, where lm_head is a rank's


def embed(ids: Indices, table: Tensor, copies: int, *, num: Rounding) -> Tensor:
    """ids [N], table [V, D] -> streams [N, copies, D]."""
    return table[torch.from_numpy(ids)].unsqueeze(1).repeat(1, copies, 1)


def hc_pre(streams: Tensor, w: HyperWeights, *, num: Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """streams [N, M, D] -> normalised input of the sublayer [N, D], post [N, M], comb [N, M, M]."""
    flat = streams.flatten(1)
    mix = (flat @ w.fn) * inverse_rms(flat, w.norm_eps)
    pre, post, comb = hc_split(mix, w.base, streams.shape[1], w.iters, w.hc_eps)
    y = num.bf16((pre.unsqueeze(2) * streams).sum(1))
    return num.bf16(rms_norm(y, w.norm, w.norm_eps)), post, comb


def hc_split(mix: Tensor, base: Tensor, m: int, iters: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """mix + base [N, (2+M)*M] -> pre [N, M], post [N, M], comb [N, M, M]; mix is scaled already."""
    raw = mix + base
    comb = torch.softmax(raw[:, 2 * m :].unflatten(1, (m, m)), -1) + eps
    comb = comb / (comb.sum(1, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(2, keepdim=True) + eps)
        comb = comb / (comb.sum(1, keepdim=True) + eps)
    return torch.sigmoid(raw[:, :m]) + eps, torch.sigmoid(raw[:, m : 2 * m]) * 2, comb


def hc_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor, *, num: Rounding) -> Tensor:
    """X'_k = post_k * out + sum_j comb[j, k] * X_j: the sum runs over the first index. [N, M, D]."""
    return num.bf16(torch.baddbmm(post.unsqueeze(2) * out.unsqueeze(1), comb.transpose(1, 2), streams))


def hc_next(
    out: Tensor, streams: Tensor, post: Tensor, comb: Tensor, w: HyperWeights, *, num: Rounding
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From one sublayer to the next, whose weights these are: `hc_post`, and then `hc_pre` of what that gives."""
    streams = hc_post(out, streams, post, comb, num=num)
    return streams, *hc_pre(streams, w, num=num)


def lm_head(streams: Tensor, w: LMHeadWeights, *, num: Rounding) -> Tensor:
    """Weighted sum of the streams, output norm, vocabulary: [N, M, D] -> logits [N, V]."""
    flat = streams.flatten(1)
    mix = (flat @ w.fn) * inverse_rms(flat, w.norm_eps) + w.base
    y = num.bf16(((torch.sigmoid(mix) + w.hc_eps).unsqueeze(2) * streams).sum(1))
    return num.bf16(rms_norm(y, w.norm, w.norm_eps)) @ w.lm_head
