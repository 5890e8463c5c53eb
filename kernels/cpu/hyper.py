"""Compiled siblings of kernels.hyper: residual streams, and the head that reduces them to logits."""

import numpy as np

from kernels.cpu.gemm import gemm
from kernels.cpu.jit import inlined, kernel
from kernels.cpu.maths import ONE, TWO, ZERO, exp, inverse_rms, rms_norm, sigmoid
from kernels.cpu.threads import over_rows
from kernels.cpu.vector import fma
from kernels.hyper import HeadWeights, HyperWeights

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


def head(streams: np.ndarray, w: HeadWeights) -> np.ndarray:
    logits = np.empty((len(streams), w.head.shape[1]), np.float32)
    over_rows(_head, len(streams), streams, w, logits)
    return logits


@kernel
def _embed(ids, table, streams):
    for row in range(len(ids)):
        for stream in range(streams.shape[1]):
            streams[row, stream] = table[ids[row]]


@inlined
def _sinkhorn(comb, m, iters, eps):
    """comb [m, m], already positive: divide by the sums of columns, then by those of rows and columns again and again."""
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
def _mix_streams(streams, row, weights, weights_at, out):
    """out [D] = the sum over the streams of weight * stream."""
    for i in range(streams.shape[2]):
        total = ZERO
        for j in range(streams.shape[1]):
            total = fma(weights[weights_at + j], streams[row, j, i], total)
        out[i] = total


@kernel
def _hc_pre(start, stop, streams, w, x, post, comb):
    m, d = streams.shape[1], streams.shape[2]
    width, eps = w.fn.shape[1], np.float32(w.hc_eps)
    mix, y = np.empty(BLOCK * width, np.float32), np.empty(d, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(streams, first * m * d, m * d, w.fn, 0, width, mix, 0, width, count, m * d, width, False)
        for i in range(count):
            row, at = first + i, i * width
            scale = inverse_rms(streams, row * m * d, m * d, w.norm_eps)
            for c in range(width):
                mix[at + c] = fma(mix[at + c], scale, w.base[c])
            for j in range(m):
                mix[at + j] = sigmoid(mix[at + j]) + eps
                post[row, j] = sigmoid(mix[at + m + j]) * TWO
            for j in range(m):
                logits = at + (2 + j) * m
                top, total = mix[logits], ZERO
                for k in range(1, m):
                    top = max(top, mix[logits + k])
                for k in range(m):
                    comb[row, j, k] = exp(mix[logits + k] - top)
                    total += comb[row, j, k]
                for k in range(m):
                    comb[row, j, k] = comb[row, j, k] / total + eps
            _sinkhorn(comb[row], m, w.iters, eps)
            _mix_streams(streams, row, mix, at, y)
            rms_norm(y, 0, w.norm, x[row], 0, d, w.norm_eps)


@kernel
def _hc_post(start, stop, out, streams, post, comb, result):
    m = streams.shape[1]
    for row in range(start, stop):
        for k in range(m):
            for i in range(streams.shape[2]):
                total = post[row, k] * out[row, i]
                for j in range(m):
                    total = fma(comb[row, j, k], streams[row, j, i], total)
                result[row, k, i] = total


@kernel
def _head(start, stop, streams, w, logits):
    m, d = streams.shape[1], streams.shape[2]
    vocab, eps = w.head.shape[1], np.float32(w.hc_eps)
    mix, y, x = np.empty(m, np.float32), np.empty(d, np.float32), np.empty(BLOCK * d, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        for i in range(count):
            row = first + i
            gemm(streams, row * m * d, 0, w.fn, 0, m, mix, 0, 0, 1, m * d, m, False)
            scale = inverse_rms(streams, row * m * d, m * d, w.norm_eps)
            for j in range(m):
                mix[j] = ONE / (ONE + exp(-fma(mix[j], scale, w.base[j]))) + eps
            _mix_streams(streams, row, mix, 0, y)
            rms_norm(y, 0, w.norm, x, i * d, d, w.norm_eps)
        gemm(x, 0, d, w.head, 0, vocab, logits, first * vocab, vocab, count, d, vocab, False)
