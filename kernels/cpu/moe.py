"""Compiled sibling of `kernels/moe.py`.

Rows are gathered by expert; each expert is one product for the rows that chose it.
"""

import math

import numpy as np

from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import INF, ONE, ZERO, exp
from holdfast.kernels.cpu.threads import over_rows
from holdfast.kernels.cpu.vector import copy_row
from holdfast.kernels.moe import MoEWeights

BLOCK = 128  # rows routed at once
LINEAR = np.float32(20)  # softplus(y) = y beyond


def moe(x: np.ndarray, ids: np.ndarray, w: MoEWeights) -> np.ndarray:
    out = np.empty_like(x)
    over_rows(_moe, len(x), x, ids, w, out)
    return out


def moe_hidden(x: np.ndarray, ids: np.ndarray, w: MoEWeights) -> tuple[np.ndarray, np.ndarray]:
    hidden, chosen = np.empty((len(x), w.k + 1, w.w13.shape[2] // 2), np.float32), np.empty((len(x), w.k), np.int64)
    over_rows(_moe_hidden, len(x), x, ids, w, hidden, chosen)
    return hidden, chosen


def moe_columns(hidden: np.ndarray, chosen: np.ndarray, w: MoEWeights) -> np.ndarray:
    out = np.empty((len(hidden), w.shared_w2.shape[1]), np.float32)
    over_rows(_moe_columns, len(hidden), hidden, chosen, w.w2, w.shared_w2, out)
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


@inlined
def _list_chosen(weights, chosen):
    """The experts of a row, ascending; -1 in place of one whose weight is zero."""
    slot = 0
    for e in range(len(weights)):
        if weights[e] != ZERO:
            chosen[slot] = e
            slot += 1
    chosen[slot:] = -1


@inlined
def _find_rows(chosen, e, rows, slots):
    """Rows of chosen [rows, k] that go to expert e, and in which slot; how many they are."""
    count = 0
    for i in range(len(chosen)):
        for slot in range(chosen.shape[1]):
            if chosen[i, slot] == e:
                rows[count], slots[count] = i, slot
                count += 1
    return count


@inlined
def _to_hidden(x, ids, w, first, hidden, chosen):
    """Route the rows from x[first] on, as many as hidden [rows, k + 1, inner] has, and compute their first products."""
    block, inner, d, num, limit = len(hidden), hidden.shape[2], x.shape[1], w.gate.shape[1], np.float32(w.limit)
    scores, weights = np.empty((block, num), np.float32), np.empty((block, num), np.float32)
    gathered, gate_up = np.empty((block, d), np.float32), np.empty((block, 2 * inner), np.float32)
    rows, slots = np.empty(block, np.int64), np.empty(block, np.int64)
    gemm(x, first * d, d, w.gate, 0, num, scores, 0, num, block, d, num, False)
    for i in range(block):
        _route(scores[i], ids[first + i], w, weights[i])
        _list_chosen(weights[i], chosen[i])
    for e in range(num):
        count = _find_rows(chosen, e, rows, slots)
        for i in range(count):
            copy_row(x, (first + rows[i]) * d, gathered, i * d, d)
        gemm(gathered, 0, d, w.w13, e * d * 2 * inner, 2 * inner, gate_up, 0, 2 * inner, count, d, 2 * inner, False)
        for i in range(count):
            _swiglu(gate_up[i], limit, weights[rows[i], e], hidden[rows[i], slots[i]])
    gemm(x, first * d, d, w.shared_w13, 0, 2 * inner, gate_up, 0, 2 * inner, block, d, 2 * inner, False)
    for i in range(block):
        _swiglu(gate_up[i], limit, ONE, hidden[i, w.k])


@inlined
def _from_hidden(hidden, chosen, w2, shared_w2, out):
    """The sum over a row's experts, ascending, then the shared one."""
    block, k, inner, d = len(chosen), chosen.shape[1], hidden.shape[2], out.shape[1]
    gathered, result = np.empty((block, inner), np.float32), np.empty((block, d), np.float32)
    rows, slots = np.empty(block, np.int64), np.empty(block, np.int64)
    out[:] = ZERO
    for e in range(len(w2)):
        count = _find_rows(chosen, e, rows, slots)
        for i in range(count):
            gathered[i] = hidden[rows[i], slots[i]]
        gemm(gathered, 0, inner, w2, e * inner * d, d, result, 0, d, count, inner, d, False)
        for i in range(count):
            _add(result[i], out[rows[i]])
    gathered[:] = hidden[:, k]
    gemm(gathered, 0, inner, shared_w2, 0, d, result, 0, d, block, inner, d, False)
    for i in range(block):
        _add(result[i], out[i])


@kernel
def _moe(start, stop, x, ids, w, out):
    most = min(BLOCK, stop - start)
    hidden, chosen = np.empty((most, w.k + 1, w.w2.shape[1]), np.float32), np.empty((most, w.k), np.int64)
    for first in range(start, stop, BLOCK):
        block = min(BLOCK, stop - first)
        _to_hidden(x, ids, w, first, hidden[:block], chosen[:block])
        _from_hidden(hidden[:block], chosen[:block], w.w2, w.shared_w2, out[first : first + block])


@kernel
def _moe_hidden(start, stop, x, ids, w, hidden, chosen):
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        _to_hidden(x, ids, w, first, hidden[first:end], chosen[first:end])


@kernel
def _moe_columns(start, stop, hidden, chosen, w2, shared_w2, out):
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        _from_hidden(hidden[first:end], chosen[first:end], w2, shared_w2, out[first:end])
