"""Compiled sibling of `kernels/indexer.py`: scores of a tile of rows, then each row's best entries by bisection."""

import numpy as np

from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import INF, ZERO
from holdfast.kernels.cpu.threads import over_rows
from holdfast.kernels.cpu.vector import LANES, as_float, as_int, clear_row, count_from, fma, max_row, transpose_16
from holdfast.kernels.rows import Rows

TILE = 16  # rows that share the keys
CHUNK = 128  # entries scored at once


def select(
    index_q: np.ndarray, head_weights: np.ndarray, rows: Rows, index_pool: np.ndarray, ratio: int, k: int
) -> np.ndarray:
    chosen = np.empty((len(index_q), k), np.int64)
    over_rows(_select, len(index_q), index_q, head_weights, rows, index_pool, ratio, chosen)
    return chosen


@inlined
def _ordered(x):
    """Integers in the order of floats."""
    bits = as_int(x)
    return np.int64(bits if bits >= 0 else bits ^ np.int32(0x7FFFFFFF))


@inlined
def _float_of(ordered):
    bits = np.int32(ordered)
    return as_float(np.int32(bits if bits >= 0 else bits ^ np.int32(0x7FFFFFFF)))


@inlined
def _least_chosen(scores, k):
    """A bound that k scores or more reach: exactly k where no ties prevent it, else the k-th largest score itself.

    Bisection over the ordered integers: passes that only count, without a branch that data decides.
    """
    low, high = _ordered(-INF), _ordered(max_row(scores, 0, len(scores))) + 1
    while high - low > 1:
        middle = (low + high) // 2
        reached = count_from(scores, 0, len(scores), _float_of(middle))
        if reached >= k:
            low = middle
        else:
            high = middle
        if reached == k:
            break
    return _float_of(low)


@inlined
def _choose(scores, pages, per_page, chosen):
    """The pool rows of the best scores, in order of entry, ties to the lower; -1 where there are fewer than wanted."""
    k, bound, spare = len(chosen), -INF, 0
    if len(scores) > k:
        bound = _least_chosen(scores, k)
        spare = count_from(scores, 0, len(scores), bound) - k  # the last ones equal to the bound have to go
    ties = 0
    if spare > 0:
        for e in range(len(scores)):
            ties += scores[e] == bound
    kept = 0
    for e in range(len(scores)):
        if scores[e] >= bound:
            if spare > 0 and scores[e] == bound:
                ties -= 1
                if ties < spare:
                    continue
            chosen[kept] = pages[e // per_page] * per_page + e % per_page
            kept += 1
    for i in range(kept, k):
        chosen[i] = -1


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
def _combine(products, weights, line):
    """line = the sum over heads of weight * relu(product)."""
    clear_row(line, 0, len(line))
    for h in range(len(weights)):
        product, weight = products[h], weights[h]
        for e in range(len(line)):
            line[e] = fma(weight, max(product[e], ZERO), line[e])


@inlined
def _visible(rows, segment, row, ratio):
    return (rows.positions[row] + 1) // ratio - rows.dropped[segment] // ratio


@kernel
def _select(start, stop, index_q, head_weights, rows, index_pool, ratio, chosen):
    heads, dim, per_page = index_q.shape[1], index_q.shape[2], rows.page_tokens // ratio
    keys, products = np.zeros((dim, CHUNK), np.float32), np.zeros((TILE * heads, CHUNK), np.float32)
    for segment in range(len(rows.slots)):
        begin, end = max(start, rows.starts[segment]), min(stop, rows.starts[segment + 1])
        if begin >= end:
            continue
        pages = rows.pages[segment]
        lines = np.empty((TILE, _visible(rows, segment, end - 1, ratio) + CHUNK), np.float32)
        for row in range(begin, end, TILE):
            count = min(TILE, end - row)
            most = _visible(rows, segment, row + count - 1, ratio)
            for first in range(0, most, CHUNK):
                columns = min(CHUNK, most - first)
                _score_chunk(index_q, row, count, index_pool, pages, per_page, first, columns, keys, products)
                for i in range(count):
                    _combine(
                        products[i * heads : (i + 1) * heads], head_weights[row + i], lines[i, first : first + columns]
                    )
            for i in range(count):
                _choose(lines[i, : _visible(rows, segment, row + i, ratio)], pages, per_page, chosen[row + i])
