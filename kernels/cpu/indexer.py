"""Compiled sibling of kernels.indexer: the best entries of each row, held in a small buffer while scores stream by."""

import numpy as np

from kernels.cpu.gemm import gemm
from kernels.cpu.jit import inlined, kernel
from kernels.cpu.maths import INF, ZERO
from kernels.cpu.threads import over_rows
from kernels.cpu.vector import LANES, clear_row, fma, transpose_16
from kernels.rows import Rows

TILE = 8  # rows that share the keys
CHUNK = 128  # entries scored at once


def select(
    index_q: np.ndarray, head_weights: np.ndarray, rows: Rows, index_pool: np.ndarray, ratio: int, k: int
) -> np.ndarray:
    chosen = np.empty((len(index_q), k), np.int64)
    over_rows(_select, len(index_q), index_q, head_weights, rows, index_pool, ratio, chosen)
    return chosen


@inlined
def _kth_largest(values, count, k):
    """The k-th largest of values[:count], which are reordered (Hoare's quickselect, pivots from the middle)."""
    low, high, place = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@inlined
def _keep_best(scores, entries, count, k, scratch):
    """Keep the k best of `count` > k candidates, in order, ties to the lower entry; the least score that was kept."""
    scratch[:count] = scores[:count]
    least = _kth_largest(scratch, count, k)
    ties = k
    for i in range(count):
        if scores[i] > least:
            ties -= 1
    kept = 0
    for i in range(count):
        if scores[i] > least or (scores[i] == least and ties > 0):
            if scores[i] == least:
                ties -= 1
            scores[kept], entries[kept] = scores[i], entries[i]
            kept += 1
    return least


@inlined
def _score_chunk(index_q, row, count, index_pool, pages, per_page, first, columns, keys, products):
    """products [count * heads, CHUNK] = queries . keys of entries first ... first + columns - 1, in groups of 16."""
    heads, dim = index_q.shape[1], index_q.shape[2]
    for group in range(0, columns, LANES):
        entry = first + group
        place = pages[entry // per_page] * per_page + entry % per_page
        for c in range(0, dim, LANES):
            transpose_16(index_pool, place * dim + c, dim, keys, c * CHUNK + group, CHUNK)
    whole = (columns + LANES - 1) // LANES * LANES
    gemm(index_q, row * heads * dim, dim, keys, 0, CHUNK, products, 0, CHUNK, count * heads, dim, whole, False)


@inlined
def _add_candidates(products, weights, first, columns, line, scores, entries, held, least, scratch, k):
    """Score the entries of a chunk for one row and keep those better than `least`: (how many are held, the new least)."""
    clear_row(line, 0, CHUNK)
    for h in range(len(weights)):
        product, weight = products[h], weights[h]
        for e in range(CHUNK):
            line[e] = fma(weight, max(product[e], ZERO), line[e])
    for e in range(columns):
        if line[e] > least:  # a later entry loses a tie
            scores[held], entries[held] = line[e], first + e
            held += 1
    if held > k + CHUNK:
        least = _keep_best(scores, entries, held, k, scratch)
        held = k
    return held, least


@kernel
def _select(start, stop, index_q, head_weights, rows, index_pool, ratio, chosen):
    heads, dim, k = index_q.shape[1], index_q.shape[2], chosen.shape[1]
    per_page, room = rows.page_tokens // ratio, k + 2 * CHUNK
    keys, products = np.zeros(dim * CHUNK, np.float32), np.zeros((TILE * heads, CHUNK), np.float32)
    line, scratch = np.empty(CHUNK, np.float32), np.empty(room, np.float32)
    scores, entries = np.empty((TILE, room), np.float32), np.empty((TILE, room), np.int64)
    held, least = np.empty(TILE, np.int64), np.empty(TILE, np.float32)
    for segment in range(len(rows.slots)):
        pages, dropped = rows.pages[segment], rows.dropped[segment] // ratio
        end = min(stop, rows.starts[segment + 1])
        for row in range(max(start, rows.starts[segment]), end, TILE):
            count = min(TILE, end - row)
            held[:], least[:] = 0, -INF
            visible = (rows.positions[row + count - 1] + 1) // ratio - dropped
            for first in range(0, visible, CHUNK):
                columns = min(CHUNK, visible - first)
                _score_chunk(index_q, row, count, index_pool, pages, per_page, first, columns, keys, products)
                for i in range(count):
                    own = min(columns, (rows.positions[row + i] + 1) // ratio - dropped - first)
                    held[i], least[i] = _add_candidates(
                        products[i * heads : (i + 1) * heads], head_weights[row + i], first, own, line,
                        scores[i], entries[i], held[i], least[i], scratch, k,
                    )  # fmt: skip
            for i in range(count):
                if held[i] > k:
                    _keep_best(scores[i], entries[i], held[i], k, scratch)
                for place in range(k):
                    entry = entries[i, place]
                    known = place < held[i]
                    chosen[row + i, place] = pages[entry // per_page] * per_page + entry % per_page if known else -1
