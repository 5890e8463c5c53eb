"""Manifold-constrained hyper-connections: what a sublayer reads from the streams and writes back (V4 spec 2.3)."""

import functools

import torch
from torch import Tensor

from kernels.gemm import linear
from kernels.norm import inverse_rms


@functools.cache
def _block_sums(m: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices [m*m, m*m] that replace every entry of a flattened [m, m] by its row's or its column's sum, and eps."""
    eye, ones = torch.eye(m), torch.ones(m, m)
    return torch.kron(eye, ones), torch.kron(ones, eye), torch.full((m * m,), eps)


def hc_split(mix: Tensor, base: Tensor, m: int, iters: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """mix + base [N, (2+M)*M] -> pre [N, M], post [N, M], comb [N, M, M]; mix is scaled already.

    A Sinkhorn half step is one product with a constant matrix and one division: sums and their `eps` in one operation.
    """
    raw = mix + base
    gates = (
        torch.exp_(-raw[:, : 2 * m]) + 1
    ).reciprocal_()  # exp, unlike sigmoid, does not depend on how rows are split
    comb = torch.softmax(raw[:, 2 * m :].unflatten(1, (m, m)), -1).flatten(1).add_(eps)
    rows, columns, offset = _block_sums(m, eps)
    comb.div_(torch.addmm(offset, comb, columns))
    for _ in range(iters - 1):
        comb.div_(torch.addmm(offset, comb, rows))
        comb.div_(torch.addmm(offset, comb, columns))
    return gates[:, :m] + eps, gates[:, m:] * 2, comb.unflatten(1, (m, m))


def hc_pre(
    streams: Tensor, fn: Tensor, base: Tensor, iters: int, hc_eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """streams [N, M, D] -> sublayer input [N, D], post [N, M], comb [N, M, M]; fn's rows carry their scale."""
    flat = streams.flatten(1)
    mix = linear(flat, fn).mul_(inverse_rms(flat, norm_eps))
    pre, post, comb = hc_split(mix, base, streams.shape[1], iters, hc_eps)
    return _weighted(streams, pre), post, comb


def hc_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'_k = post_k * out + sum_j comb[j, k] * X_j: the sum runs over the first index. [N, M, D]."""
    return torch.baddbmm(post.unsqueeze(2) * out.unsqueeze(1), comb.transpose(1, 2), streams)


def hc_head(streams: Tensor, fn: Tensor, base: Tensor, hc_eps: float, norm_eps: float) -> Tensor:
    """Weighted sum of the streams before the output norm: [N, M, D] -> [N, D]; fn's rows carry their scale."""
    flat = streams.flatten(1)
    mix = linear(flat, fn).mul_(inverse_rms(flat, norm_eps)).add_(base)
    return _weighted(streams, (torch.exp_(-mix) + 1).reciprocal_() + hc_eps)


def _weighted(streams: Tensor, weight: Tensor) -> Tensor:
    """Sum over the streams of weight * stream: [N, M, D], [N, M] -> [N, D]."""
    return torch.bmm(weight.unsqueeze(1), streams).squeeze(1)
