"""Compiled siblings of holdfast.kernels.hyper: residual streams, and the head that reduces them to logits."""

import numpy as np

from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import TWO, ZERO, exp, inverse_rms, rms_norm, sigmoid
from holdfast.kernels.cpu.threads import over_rows
from holdfast.kernels.cpu.vector import clear_row, fma
from holdfast.kernels.hyper import HyperWeights, LMHeadWeights

BLOCK = 16  # rows whose mixing weights are one product


def embed(ids: np.ndarray, table: np.ndarray, copies: int) -> np.ndarray:
    streams = np.empty((len(ids), copies, table.shape[1]), np.float32)
    _embed(ids, table, streams)
    return streams


def hc_pre(streams: np.ndarray, w: HyperWeights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, m, d = streams.shape
    x, post, comb = (np.empty(shape, np.float32) for shape in ((n, d), (n, m), (n, m, m)))
    over_rows(_hc_pre, n, streams, w, x, post, comb)
    return x, post, comb


def hc_post(out: np.ndarray, streams: np.ndarray, post: np.ndarray, comb: np.ndarray) -> np.ndarray:
    result = np.empty_like(streams)
    over_rows(_hc_post, len(streams), out, streams, post, comb, result)
    return result


def hc_next(
    out: np.ndarray, streams: np.ndarray, post: np.ndarray, comb: np.ndarray, w: HyperWeights
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    streams = hc_post(out, streams, post, comb)
    return streams, *hc_pre(streams, w)


def lm_head(streams: np.ndarray, w: LMHeadWeights) -> np.ndarray:
    logits = np.empty((len(streams), w.lm_head.shape[1]), np.float32)
    over_rows(_lm_head, len(streams), streams, w, logits)
    return logits


@kernel
def _embed(ids, table, streams):
    for row in range(len(ids)):
        for stream in range(streams.shape[1]):
            streams[row, stream] = table[ids[row]]


@inlined
def _sinkhorn(comb, m, iters, eps):
    """Sinkhorn on comb [m, m], already positive: divide by sums of columns, then of rows and columns in turn."""
    for half in range(2 * iters - 1):
        for a in range(m):
            total = ZERO
            for b in range(m):
                total += comb[b, a] if half % 2 == 0 else comb[a, b]
            for b in range(m):
                if half % 2 == 0:
                    comb[b, a] /= total + eps
                else:
                    comb[a, b] /= total + eps


@inlined
def _mix_streams(streams, weights, out):
    """out [D] = the sum over the streams [M, D] of weight * stream."""
    clear_row(out, 0, len(out))
    for j in range(len(streams)):
        stream, weight = streams[j], weights[j]
        for i in range(len(out)):
            out[i] = fma(weight, stream[i], out[i])


@inlined
def _split(mix, m, iters, eps, post, comb):
    """mix [(2 + M) * M] -> pre in place of its first M, post [M], comb [M, M]."""
    for j in range(m):
        mix[j] = sigmoid(mix[j]) + eps
        post[j] = sigmoid(mix[m + j]) * TWO
    for j in range(m):
        logits = mix[(2 + j) * m : (3 + j) * m]
        top, total = logits[0], ZERO
        for k in range(1, m):
            top = max(top, logits[k])
        for k in range(m):
            comb[j, k] = exp(logits[k] - top)
            total += comb[j, k]
        for k in range(m):
            comb[j, k] = comb[j, k] / total + eps
    _sinkhorn(comb, m, iters, eps)


@kernel
def _hc_pre(start, stop, streams, w, x, post, comb):
    m, d = streams.shape[1], streams.shape[2]
    width, eps = w.fn.shape[1], np.float32(w.hc_eps)
    mixes, y = np.empty((BLOCK, width), np.float32), np.empty(d, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(streams, first * m * d, m * d, w.fn, 0, width, mixes, 0, width, count, m * d, width, False)
        for i in range(count):
            row, mix = first + i, mixes[i]
            scale = inverse_rms(streams, row * m * d, m * d, w.norm_eps)
            for c in range(width):
                mix[c] = fma(mix[c], scale, w.base[c])
            _split(mix, m, w.iters, eps, post[row], comb[row])
            _mix_streams(streams[row], mix, y)
            rms_norm(y, w.norm, x[row], w.norm_eps)


@kernel
def _hc_post(start, stop, out, streams, post, comb, result):
    m, d = streams.shape[1], streams.shape[2]
    for row in range(start, stop):
        source = out[row]
        for k in range(m):
            target, weight = result[row, k], post[row, k]
            for i in range(d):
                target[i] = weight * source[i]
            for j in range(m):
                stream, weight = streams[row, j], comb[row, j, k]
                for i in range(d):
                    target[i] = fma(weight, stream[i], target[i])


@kernel
def _lm_head(start, stop, streams, w, logits):
    m, d = streams.shape[1], streams.shape[2]
    vocab, eps = w.lm_head.shape[1], np.float32(w.hc_eps)
    mix, y, x = np.empty(m, np.float32), np.empty(d, np.float32), np.empty((BLOCK, d), np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        for i in range(count):
            row = first + i
            gemm(streams, row * m * d, 0, w.fn, 0, m, mix, 0, 0, 1, m * d, m, False)
            scale = inverse_rms(streams, row * m * d, m * d, w.norm_eps)
            for j in range(m):
                mix[j] = sigmoid(fma(mix[j], scale, w.base[j])) + eps
            _mix_streams(streams[row], mix, y)
            rms_norm(y, w.norm, x[i], w.norm_eps)
        gemm(x, 0, d, w.lm_head, 0, vocab, logits, first * vocab, vocab, count, d, vocab, False)
