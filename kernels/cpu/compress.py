"""Compiled siblings of holdfast.kernels.compress: rows of open blocks, and the entries that full blocks become."""

import math

import numpy as np

from holdfast.kernels.compress import CompressWeights
from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import INF, ONE, ZERO, exp, rms_norm, rotate, round_index_row, round_key_row
from holdfast.kernels.cpu.threads import afterwards, over_rows, settle
from holdfast.kernels.cpu.vector import copy_row, fma
from holdfast.kernels.rows import Rows

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
    settle()  # a block's other rows
    over_rows(_complete_blocks, len(mixed), mixed, rows, ring, pool, index_pool, w)
    settle()  # what attends next reads all entries, and the ring gets new rows


def store(rows: Rows, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
    for source, ring in pairs:
        afterwards(_store, source, rows, ring)  # what waits may still read the ring as it was


@kernel
def _block_rows(start, stop, x, rows, w, mixed, head_weights):
    d, wide, width = x.shape[1], w.w_blocks.shape[1], w.ape.shape[1]
    product = np.empty((BLOCK, wide), np.float32)
    for first in range(start, stop, BLOCK):
        count = min(BLOCK, stop - first)
        gemm(x, first * d, d, w.w_blocks, 0, wide, product, 0, wide, count, d, wide, False)
        for i in range(count):
            row = first + i
            copy_row(product, i * wide, mixed, row * 2 * width, width)
            gates, out, bias = product[i, width:], mixed[row, width:], w.ape[rows.positions[row] % w.ratio]
            for c in range(width):
                out[c] = gates[c] + bias[c]
            for c in range(head_weights.shape[1]):
                head_weights[row, c] = product[i, 2 * width + c] * np.float32(w.index_scale)


@inlined
def _pool_block(sources, width, half, own, pooled, top, total):
    """Per channel, a softmax over the sources weighs their values. Sources from `own` on give their second half."""
    channels = len(pooled)
    for c in range(channels):
        pooled[c], top[c], total[c] = ZERO, -INF, ZERO
    for s in range(len(sources)):
        gates = sources[s, width + (half if s >= own else 0) :]
        for c in range(channels):
            top[c] = max(top[c], gates[c])
    for s in range(len(sources)):
        gates, values = sources[s, width + (half if s >= own else 0) :], sources[s, half if s >= own else 0 :]
        for c in range(channels):
            weight = exp(gates[c] - top[c])
            total[c] += weight
            pooled[c] = fma(weight, values[c], pooled[c])
    for c in range(channels):
        pooled[c] /= total[c]


@inlined
def _gather_sources(mixed, rows, segment, ring, begin, sources):
    """Rows of positions from `begin` on of a segment: of this step, or from the block ring."""
    start, width, length = rows.starts[segment], ring.shape[2], ring.shape[1]
    first, slot = rows.positions[start], rows.slots[segment]
    for i in range(len(sources)):
        position = begin + i
        if position >= first:
            copy_row(mixed, (start + position - first) * width, sources, i * width, width)
        else:
            copy_row(ring, (slot * length + position % length) * width, sources, i * width, width)


@kernel
def _complete_blocks(start, stop, mixed, rows, ring, pool, index_pool, w):
    ratio, width, dim, index_dim, pairs = w.ratio, w.ape.shape[1], pool.shape[1], index_pool.shape[1], len(w.freqs)
    back, half = (ratio, width // 2) if w.overlaps else (0, 0)
    per_page, channels = rows.page_tokens // ratio, dim + index_dim
    sources, freqs_cis = np.empty((back + ratio, 2 * width), np.float32), np.empty((pairs, 2), np.float32)
    pooled, top, total = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    for segment in range(len(rows.slots)):
        for row in range(max(start, rows.starts[segment]), min(stop, rows.starts[segment + 1])):
            end = rows.positions[row] + 1
            if end % ratio != 0:
                continue
            begin = max(end - ratio - back, 0)
            block = sources[: end - begin]
            _gather_sources(mixed, rows, segment, ring, begin, block)
            _pool_block(block, width, half, end - ratio - begin, pooled, top, total)
            entry = end // ratio - 1 - rows.dropped[segment] // ratio
            place = rows.pages[segment, entry // per_page] * per_page + entry % per_page
            for pair in range(pairs):
                angle = float(end - ratio) * w.freqs[pair]
                freqs_cis[pair, 0], freqs_cis[pair, 1] = math.cos(angle), math.sin(angle)
            rms_norm(pooled, w.entry_norm, pool[place], w.eps)
            rotate(pool[place], freqs_cis, ONE)
            if w.rounds_rows:
                round_key_row(pool[place], 2 * pairs)
            if index_dim > 0:
                key = pooled[dim:]
                rms_norm(key, w.index_norm, key, w.eps)
                rotate(key, freqs_cis, ONE)
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
                    round_index_row(index_pool[place])


@kernel
def _store(source, rows, ring):
    width, length = source.shape[1], ring.shape[1]
    for segment in range(len(rows.slots)):
        end = rows.starts[segment + 1]
        for row in range(max(rows.starts[segment], end - length), end):
            place = rows.slots[segment] * length + rows.positions[row] % length
            copy_row(source, row * width, ring, place * width, width)
