"""Compiled siblings of kernels.compress: rows of open blocks, and the entries that full blocks become."""

import math

import numpy as np

from kernels.compress import CompressWeights
from kernels.cpu.gemm import gemm
from kernels.cpu.jit import inlined, kernel
from kernels.cpu.maths import INF, ONE, ZERO, exp, rms_norm, rotate, round_index_row, round_key_row
from kernels.cpu.threads import over_rows
from kernels.cpu.vector import fma
from kernels.rows import Rows

BLOCK = 32  # rows of one product


def block_rows(x: np.ndarray, rows: Rows, w: CompressWeights) -> tuple[np.ndarray, np.ndarray]:
    width = 2 * w.ape.shape[1]
    mixed = np.empty((len(x), width), np.float32)
    head_weights = np.empty((len(x), w.w_blocks.shape[1] - width), np.float32)
    over_rows(_block_rows, len(x), x, rows, w, mixed, head_weights)
    return mixed, head_weights


def complete_blocks(
    mixed: np.ndarray, rows: Rows, ring: np.ndarray, pool: np.ndarray, index_pool: np.ndarray, w: CompressWeights
) -> None:
    over_rows(_complete_blocks, len(mixed), mixed, rows, ring, pool, index_pool, w)


def store(source: np.ndarray, rows: Rows, ring: np.ndarray) -> None:
    _store(source, rows, ring)


@kernel
def _block_rows(start, stop, x, rows, w, mixed, head_weights):
    d, wide, width = x.shape[1], w.w_blocks.shape[1], w.ape.shape[1]
    product = np.empty(BLOCK * wide, np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(x, first * d, d, w.w_blocks, 0, wide, product, 0, wide, count, d, wide, False)
        for i in range(count):
            row, at = first + i, i * wide
            place = rows.positions[row] % w.ratio
            for c in range(width):
                mixed[row, c] = product[at + c]
                mixed[row, width + c] = product[at + width + c] + w.ape[place, c]
            for c in range(head_weights.shape[1]):
                head_weights[row, c] = product[at + 2 * width + c] * np.float32(w.index_scale)


@inlined
def _pool_block(sources, num_sources, width, half, own, pooled, top, total):
    """Per channel, a softmax over the sources weighs their values. Sources from `own` on give their second half."""
    channels = len(pooled)
    pooled[:], top[:], total[:] = ZERO, -INF, ZERO
    for s in range(num_sources):
        at = width + (half if s >= own else 0)
        for c in range(channels):
            top[c] = max(top[c], sources[s, at + c])
    for s in range(num_sources):
        at = half if s >= own else 0
        for c in range(channels):
            weight = exp(sources[s, width + at + c] - top[c])
            total[c] += weight
            pooled[c] = fma(weight, sources[s, at + c], pooled[c])
    for c in range(channels):
        pooled[c] /= total[c]


@inlined
def _gather_sources(mixed, rows, segment, ring, begin, end, sources):
    """Rows of positions begin ... end - 1 of a segment: of this step, or from the block ring."""
    start = rows.starts[segment]
    first, slot = rows.positions[start], rows.slots[segment]
    for position in range(begin, end):
        if position >= first:
            sources[position - begin] = mixed[start + position - first]
        else:
            sources[position - begin] = ring[slot, position % ring.shape[1]]


@kernel
def _complete_blocks(start, stop, mixed, rows, ring, pool, index_pool, w):
    ratio, width, dim, index_dim, pairs = w.ratio, w.ape.shape[1], pool.shape[1], index_pool.shape[1], len(w.freqs)
    back = ratio if w.overlaps else 0
    per_page, half = rows.page_tokens // ratio, width // 2 if w.overlaps else 0
    sources = np.empty((back + ratio, 2 * width), np.float32)
    channels = dim + index_dim
    pooled, top, total = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    turns, key = np.empty((1, pairs, 2), np.float32), np.empty(max(index_dim, 1), np.float32)
    for segment in range(len(rows.slots)):
        for row in range(max(start, rows.starts[segment]), min(stop, rows.starts[segment + 1])):
            end = rows.positions[row] + 1
            if end % ratio != 0:
                continue
            begin = max(end - ratio - back, 0)
            _gather_sources(mixed, rows, segment, ring, begin, end, sources)
            _pool_block(sources, end - begin, width, half, end - ratio - begin, pooled, top, total)
            entry = end // ratio - 1 - rows.dropped[segment] // ratio
            place = rows.pages[segment, entry // per_page] * per_page + entry % per_page
            for pair in range(pairs):
                angle = float(end - ratio) * w.freqs[pair]
                turns[0, pair, 0], turns[0, pair, 1] = math.cos(angle), math.sin(angle)
            out = pool[place]
            rms_norm(pooled, 0, w.entry_norm, out, 0, dim, w.eps)
            rotate(out, dim - 2 * pairs, turns, 0, pairs, ONE)
            if w.rounds_rows:
                round_key_row(out, 0, dim, 2 * pairs)
            if index_dim > 0:
                rms_norm(pooled, dim, w.index_norm, key, 0, index_dim, w.eps)
                rotate(key, index_dim - 2 * pairs, turns, 0, pairs, ONE)
                gemm(
                    key,
                    0,
                    0,
                    w.hadamard,
                    0,
                    index_dim,
                    index_pool,
                    place * index_dim,
                    0,
                    1,
                    index_dim,
                    index_dim,
                    False,
                )
                if w.rounds_rows:
                    round_index_row(index_pool[place], 0, index_dim)


@kernel
def _store(source, rows, ring):
    length = ring.shape[1]
    for segment in range(len(rows.slots)):
        end = rows.starts[segment + 1]
        for row in range(max(rows.starts[segment], end - length), end):
            ring[rows.slots[segment], rows.positions[row] % length] = source[row]
