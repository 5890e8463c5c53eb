"""Compiled sibling of kernels.moe: rows are gathered by expert, each expert is one product for the rows that chose it."""

import math

import numpy as np

from kernels.cpu.gemm import gemm
from kernels.cpu.jit import inlined, kernel
from kernels.cpu.maths import INF, ONE, ZERO, exp
from kernels.cpu.threads import over_rows
from kernels.cpu.vector import clear_row, copy_row
from kernels.moe import MoEWeights

BLOCK = 128  # rows routed at once
LINEAR = np.float32(20)  # softplus(y) = y beyond


def moe(x: np.ndarray, ids: np.ndarray, w: MoEWeights) -> np.ndarray:
    out = np.empty_like(x)
    over_rows(_moe, len(x), x, ids, w, out)
    return out


@inlined
def _route(scores, token, w, weights):
    """weights [E]: those of the chosen experts, zero for the others. Scores are the router's outputs."""
    num = w.gate.shape[1]
    for e in range(num):
        y = scores[e]
        scores[e] = np.sqrt(y if y > LINEAR else np.float32(math.log1p(exp(y))))
        weights[e] = -ONE  # not chosen
    for choice in range(w.k):
        best, most = -1, -INF
        if len(w.tid2eid) > 0:
            best = w.tid2eid[token, choice]
        else:
            for e in range(num):
                biased = scores[e] + w.bias[e]
                if weights[e] < ZERO and (best < 0 or biased > most):
                    best, most = e, biased
        weights[best] = scores[best]
    total = ZERO
    for e in range(num):
        weights[e] = max(weights[e], ZERO)
        total += weights[e]
    for e in range(num):
        weights[e] *= np.float32(w.factor) / total


@inlined
def _swiglu(gate_up, limit, weight, out):
    """weight * silu(min(gate, limit)) * clamp(up, -limit, limit), of one row."""
    gates, ups = gate_up[: len(out)], gate_up[len(out) :]
    for i in range(len(out)):
        gate = min(gates[i], limit)
        out[i] = gate / (ONE + exp(-gate)) * min(max(ups[i], -limit), limit) * weight


@inlined
def _add(row, out):
    for i in range(len(out)):
        out[i] += row[i]


@kernel
def _moe(start, stop, x, ids, w, out):
    d, num, inner, limit = x.shape[1], w.gate.shape[1], w.w2.shape[1], np.float32(w.limit)
    shared, most = len(w.shared_w2), min(BLOCK, stop - start)  # a rank's part of the shared expert is narrower
    scores, weights = np.empty((most, num), np.float32), np.empty((most, num), np.float32)
    gathered, result = np.empty((most, d), np.float32), np.empty((most, d), np.float32)
    gate_up, hidden = np.empty((most, 2 * inner), np.float32), np.empty((most, inner), np.float32)
    chosen = np.empty(most, np.int64)
    for first in range(start, stop, BLOCK):
        block = min(BLOCK, stop - first)
        gemm(x, first * d, d, w.gate, 0, num, scores, 0, num, block, d, num, False)
        for i in range(block):
            _route(scores[i], ids[first + i], w, weights[i])
        clear_row(out, first * d, block * d)
        for e in range(len(w.w13)):
            count = 0
            for i in range(block):
                if weights[i, w.first_expert + e] != ZERO:
                    chosen[count] = i
                    copy_row(x, (first + i) * d, gathered, count * d, d)
                    count += 1
            gemm(gathered, 0, d, w.w13, e * d * 2 * inner, 2 * inner, gate_up, 0, 2 * inner, count, d, 2 * inner, False)
            for i in range(count):
                _swiglu(gate_up[i], limit, weights[chosen[i], w.first_expert + e], hidden[i])
            gemm(hidden, 0, inner, w.w2, e * inner * d, d, result, 0, d, count, inner, d, False)
            for i in range(count):
                _add(result[i], out[first + chosen[i]])
        gemm(x, first * d, d, w.shared_w13, 0, 2 * shared, gate_up, 0, 2 * inner, block, d, 2 * shared, False)
        for i in range(block):
            _swiglu(gate_up[i, : 2 * shared], limit, ONE, hidden[i, :shared])
        gemm(hidden, 0, inner, w.shared_w2, 0, d, result, 0, d, block, shared, d, False)
        for i in range(block):
            _add(result[i], out[first + i])
