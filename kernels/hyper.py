"""Manifold-constrained hyper-connections: what a sublayer reads from the streams and writes back (V4 spec 2.3)."""

import functools

import torch
from torch import Tensor

from kernels.gemm import linear
from kernels.norm import inverse_rms


@functools.cache
def _block_sums(m: int) -> tuple[Tensor, Tensor]:
    """Matrices [m*m, m*m] that replace every entry of a flattened [m, m] by its row's or its column's sum."""
    eye, ones = torch.eye(m), torch.ones(m, m)
    return torch.kron(eye, ones), torch.kron(ones, eye)


def hc_split(
    mix: Tensor, scale: Tensor, base: Tensor, m: int, iters: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """mix [N, (2+M)*M] -> pre [N, M], post [N, M], comb [N, M, M]; scale and base have one value per column of mix.

    A Sinkhorn half step is one product with a constant matrix and one division: sums and their `eps` in one operation.
    """
    raw = torch.addcmul(base, mix, scale)
    gates = torch.sigmoid(raw[:, : 2 * m])
    comb = torch.softmax(raw[:, 2 * m :].unflatten(1, (m, m)), -1).flatten(1) + eps
    rows, columns = _block_sums(m)
    offset = comb.new_full((m * m,), eps)
    comb = comb / torch.addmm(offset, comb, columns)
    for _ in range(iters - 1):
        comb.div_(torch.addmm(offset, comb, rows))
        comb.div_(torch.addmm(offset, comb, columns))
    return gates[:, :m] + eps, gates[:, m:] * 2, comb.unflatten(1, (m, m))


def hc_pre(
    streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, hc_eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """streams [N, M, D] -> sublayer input [N, D], post [N, M], comb [N, M, M]."""
    flat = streams.flatten(1)
    mix = linear(flat, fn) * inverse_rms(flat, norm_eps)
    pre, post, comb = hc_split(mix, scale, base, streams.shape[1], iters, hc_eps)
    return _weighted(streams, pre), post, comb


def hc_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'_k = post_k * out + sum_j comb[j, k] * X_j: the sum runs over the first index. [N, M, D]."""
    return torch.baddbmm(post.unsqueeze(2) * out.unsqueeze(1), comb.transpose(1, 2), streams)


def hc_head(streams: Tensor, fn: Tensor, scale: Tensor, base: Tensor, hc_eps: float, norm_eps: float) -> Tensor:
    """Weighted sum of the streams before the output norm: [N, M, D] -> [N, D]."""
    flat = streams.flatten(1)
    mix = linear(flat, fn) * inverse_rms(flat, norm_eps)
    return _weighted(streams, torch.sigmoid(torch.addcmul(base, mix, scale)) + hc_eps)


def _weighted(streams: Tensor, weight: Tensor) -> Tensor:
    total = streams[:, 0] * weight[:, :1]
    for i in range(1, weight.shape[1]):
        total = torch.addcmul(total, streams[:, i], weight[:, i : i + 1])
    return total
