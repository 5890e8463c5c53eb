"""Compiled siblings of holdfast.kernels.project: what attention reads from its input, and what it gives back."""

import math

import numpy as np

from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import ONE, inverse_rms, rms_norm, rotate, round_key_row
from holdfast.kernels.cpu.threads import over_rows
from holdfast.kernels.project import OutputWeights, ProjectWeights

BLOCK = 32  # rows of one product


def rope_table(positions: np.ndarray, freqs: np.ndarray) -> np.ndarray:
    freqs_cis = np.empty((len(positions), len(freqs), 2), np.float32)  # cos, sin
    _rope_table(positions, freqs, freqs_cis)
    return freqs_cis


def project(x: np.ndarray, freqs_cis: np.ndarray, w: ProjectWeights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, dim = len(x), len(w.kv_norm)
    q, kv = np.empty((n, w.num_heads, dim), np.float32), np.empty((n, dim), np.float32)
    index_q = np.empty((n, w.num_index_heads, len(w.hadamard)), np.float32)
    over_rows(_project, n, x, freqs_cis, w, q, kv, index_q)
    return q, kv, index_q


def output(o: np.ndarray, w: OutputWeights) -> np.ndarray:
    out = np.empty((len(o), w.wo_b.shape[1]), np.float32)
    over_rows(_output, len(o), o, w, out)
    return out


def output_low(o: np.ndarray, w: OutputWeights) -> np.ndarray:
    low = np.empty((len(o), w.wo_a.shape[0] * w.wo_a.shape[2]), np.float32)
    over_rows(_output_low, len(o), o, w.wo_a, low)
    return low


def output_columns(low: np.ndarray, w: OutputWeights) -> np.ndarray:
    out = np.empty((len(low), w.wo_b.shape[1]), np.float32)
    over_rows(_output_columns, len(low), low, w.wo_b, out)
    return out


@kernel
def _rope_table(positions, freqs, freqs_cis):
    for row in range(len(positions)):
        for pair in range(len(freqs)):
            angle = float(positions[row]) * freqs[pair]
            freqs_cis[row, pair, 0], freqs_cis[row, pair, 1] = math.cos(angle), math.sin(angle)


@kernel
def _project(start, stop, x, freqs_cis, w, q, kv, index_q):
    d, rank, dim, pairs = x.shape[1], len(w.q_norm), len(w.kv_norm), freqs_cis.shape[1]
    wide, index_dim, eps = w.wq_b.shape[1], len(w.hadamard), w.eps
    mixed, qr = np.empty((BLOCK, rank + dim), np.float32), np.empty((BLOCK, rank), np.float32)
    projected = np.empty((BLOCK, wide), np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(x, first * d, d, w.w_in, 0, rank + dim, mixed, 0, rank + dim, count, d, rank + dim, False)
        for i in range(count):
            row = first + i
            rms_norm(mixed[i, :rank], w.q_norm, qr[i], eps)
            rms_norm(mixed[i, rank:], w.kv_norm, kv[row], eps)
            rotate(kv[row], freqs_cis[row], ONE)
            if w.rounds_rows:
                round_key_row(kv[row], 2 * pairs)
        gemm(qr, 0, rank, w.wq_b, 0, wide, projected, 0, wide, count, rank, wide, False)
        for i in range(count):
            row = first + i
            for h in range(w.num_heads):
                head, out = projected[i, h * dim : (h + 1) * dim], q[row, h]
                scale = inverse_rms(head, 0, dim, eps)
                for c in range(dim):
                    out[c] = head[c] * scale
                rotate(out, freqs_cis[row], ONE)
            index_at = w.num_heads * dim
            for h in range(w.num_index_heads):
                rotate(projected[i, index_at + h * index_dim : index_at + (h + 1) * index_dim], freqs_cis[row], ONE)
            if w.num_index_heads > 0:
                gemm(
                    projected,
                    i * wide + index_at,
                    index_dim,
                    w.hadamard,
                    0,
                    index_dim,
                    index_q,
                    row * w.num_index_heads * index_dim,
                    index_dim,
                    w.num_index_heads,
                    index_dim,
                    index_dim,
                    False,
                )


@inlined
def _lower(o, wo_a, first, count, low, low_at):
    """Each group of heads times its weight."""
    wide = o.shape[1] * o.shape[2]
    groups, inner, rank = wo_a.shape
    for g in range(groups):
        gemm(
            o,
            first * wide + g * inner,
            wide,
            wo_a,
            g * inner * rank,
            rank,
            low,
            low_at + g * rank,
            groups * rank,
            count,
            inner,
            rank,
            False,
        )


@kernel
def _output(start, stop, o, w, out):
    depth, d = w.wo_b.shape
    low = np.empty((BLOCK, depth), np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        _lower(o, w.wo_a, first, count, low, 0)
        gemm(low, 0, depth, w.wo_b, 0, d, out, first * d, d, count, depth, d, False)


@kernel
def _output_low(start, stop, o, wo_a, low):
    _lower(o, wo_a, start, stop - start, low, start * low.shape[1])


@kernel
def _output_columns(start, stop, low, wo_b, out):
    depth, d = wo_b.shape
    gemm(low, start * depth, depth, wo_b, 0, d, out, start * d, d, stop - start, depth, d, False)
