"""Compiled siblings of kernels.project: what attention reads from its input, and what it gives back."""

import math

import numpy as np

from kernels.cpu.gemm import gemm
from kernels.cpu.jit import kernel
from kernels.cpu.maths import ONE, inverse_rms, rms_norm, rotate, round_key_row
from kernels.cpu.threads import over_rows
from kernels.project import OutputWeights, ProjectWeights

BLOCK = 32  # rows of one product


def rope_table(positions: np.ndarray, freqs: np.ndarray) -> np.ndarray:
    turns = np.empty((len(positions), len(freqs), 2), np.float32)  # cos, sin
    _rope_table(positions, freqs, turns)
    return turns


def project(x: np.ndarray, turns: np.ndarray, w: ProjectWeights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, dim = len(x), len(w.kv_norm)
    q, kv = np.empty((n, w.num_heads, dim), np.float32), np.empty((n, dim), np.float32)
    index_q = np.empty((n, w.num_index_heads, len(w.hadamard)), np.float32)
    over_rows(_project, n, x, turns, w, q, kv, index_q)
    return q, kv, index_q


def output(o: np.ndarray, turns: np.ndarray, w: OutputWeights) -> np.ndarray:
    out = np.empty((len(o), w.wo_b.shape[1]), np.float32)
    over_rows(_output, len(o), o, turns, w, out)
    return out


@kernel
def _rope_table(positions, freqs, turns):
    for row in range(len(positions)):
        for pair in range(len(freqs)):
            angle = float(positions[row]) * freqs[pair]
            turns[row, pair, 0], turns[row, pair, 1] = math.cos(angle), math.sin(angle)


@kernel
def _project(start, stop, x, turns, w, q, kv, index_q):
    d, rank, dim = x.shape[1], len(w.q_norm), len(w.kv_norm)
    heads, pairs, main = w.num_heads, turns.shape[1], w.num_heads * dim
    index_heads, index_dim, wide = w.num_index_heads, len(w.hadamard), w.wq_b.shape[1]
    mixed, qr = np.empty(BLOCK * (rank + dim), np.float32), np.empty(BLOCK * rank, np.float32)
    projected = np.empty(BLOCK * wide, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(x, first * d, d, w.w_in, 0, rank + dim, mixed, 0, rank + dim, count, d, rank + dim, False)
        for i in range(count):
            row, at = first + i, i * (rank + dim)
            rms_norm(mixed, at, w.q_norm, qr, i * rank, rank, w.eps)
            out = kv[row]
            rms_norm(mixed, at + rank, w.kv_norm, out, 0, dim, w.eps)
            rotate(out, dim - 2 * pairs, turns, row, pairs, ONE)
            if w.rounds_rows:
                round_key_row(out, 0, dim, 2 * pairs)
        gemm(qr, 0, rank, w.wq_b, 0, wide, projected, 0, wide, count, rank, wide, False)
        for i in range(count):
            row = first + i
            for h in range(heads):
                at, out = i * wide + h * dim, q[row, h]
                scale = inverse_rms(projected, at, dim, w.eps)
                for c in range(dim):
                    out[c] = projected[at + c] * scale
                rotate(out, dim - 2 * pairs, turns, row, pairs, ONE)
            at = i * wide + main
            for h in range(index_heads):
                rotate(projected, at + (h + 1) * index_dim - 2 * pairs, turns, row, pairs, ONE)
            if index_heads > 0:
                to = row * index_heads * index_dim
                gemm(
                    projected,
                    at,
                    index_dim,
                    w.hadamard,
                    0,
                    index_dim,
                    index_q,
                    to,
                    index_dim,
                    index_heads,
                    index_dim,
                    index_dim,
                    False,
                )


@kernel
def _output(start, stop, o, turns, w, out):
    heads, dim, pairs, d = o.shape[1], o.shape[2], turns.shape[1], out.shape[1]
    groups, inner, rank = w.wo_a.shape
    low = np.empty(BLOCK * groups * rank, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        for row in range(first, first + count):
            for h in range(heads):
                rotate(o[row, h], dim - 2 * pairs, turns, row, pairs, -ONE)
        for g in range(groups):
            at = first * heads * dim + g * inner
            gemm(
                o,
                at,
                heads * dim,
                w.wo_a,
                g * inner * rank,
                rank,
                low,
                g * rank,
                groups * rank,
                count,
                inner,
                rank,
                False,
            )
        gemm(low, 0, groups * rank, w.wo_b, 0, d, out, first * d, d, count, groups * rank, d, False)
