"""Compiled sibling of holdfast.kernels.attention: tiles of rows against the window and the entries, in one softmax.

A tile's rows share an image of the window rows, which starts at a multiple of 16 positions: the lanes of a sum are then
the same in every tile. Positions that a row may not see have weight zero and add exactly zero.
"""

import numpy as np

from holdfast.kernels.attention import AttendWeights
from holdfast.kernels.cpu.gemm import gemm
from holdfast.kernels.cpu.jit import inlined, kernel
from holdfast.kernels.cpu.maths import ONE, exp, rotate
from holdfast.kernels.cpu.threads import over_rows, settle
from holdfast.kernels.cpu.vector import LANES, clear_row, copy_row, max_row, sum_row, transpose_16
from holdfast.kernels.rows import Rows

TILE = 16
ALL_ENTRIES = np.empty((0, 0), np.int64)


def attend(
    q: np.ndarray,
    kv: np.ndarray,
    freqs_cis: np.ndarray,
    rows: Rows,
    ring: np.ndarray,
    pool: np.ndarray,
    chosen: np.ndarray | None,
    w: AttendWeights,
) -> np.ndarray:
    if w.ratio == 0:
        settle()  # kv of the other rows; in compressed layers `complete_blocks` has seen to that
    out = np.empty_like(q)
    over_rows(_attend, len(q), q, kv, freqs_cis, rows, ring, pool, ALL_ENTRIES if chosen is None else chosen, w, out)
    return out


@inlined
def _whole(count):
    return (count + LANES - 1) // LANES * LANES


@inlined
def _scale(row, factor, out):
    for c in range(len(row)):
        out[c] = row[c] * factor


@inlined
def _window_image(kv, ring, start, own, slot, base, first, last, image):
    """image row i = the row of position base + i: of this step from `own` on, else of the ring.

    Zeros before `first`, and after `last` up to a multiple of 16 rows: how many rows that makes.
    """
    length, dim, count = ring.shape[1], ring.shape[2], _whole(last + 1 - base)
    clear_row(image, 0, (first - base) * dim)
    for position in range(first, min(own, last + 1)):
        copy_row(ring, (slot * length + position % length) * dim, image, (position - base) * dim, dim)
    for position in range(max(first, own), last + 1):
        copy_row(kv, (start + position - own) * dim, image, (position - base) * dim, dim)
    clear_row(image, (last + 1 - base) * dim, (count - (last + 1 - base)) * dim)
    return count


@inlined
def _entry_image(pool, places, count, image):
    """image row i = the pool row places[i], then zeros up to a multiple of 16 rows: how many rows that makes."""
    dim, whole = pool.shape[1], _whole(count)
    for i in range(count):
        copy_row(pool, places[i] * dim, image, i * dim, dim)
    clear_row(image, count * dim, (whole - count) * dim)
    return whole


@inlined
def _scores(queries, first, num, keys_image, count, keys, scores):
    """scores [num, count] = queries first ... . rows of an image; `keys` is room for the image turned over."""
    dim, step = queries.shape[1], scores.shape[1]
    for i in range(0, count, LANES):
        for c in range(0, dim, LANES):
            transpose_16(keys_image, i * dim + c, dim, keys, c * step + i, step)
    gemm(queries, first * dim, dim, keys, 0, step, scores, 0, step, num, dim, count, False)


@inlined
def _to_weights(scores, first, count, top):
    """exp(score - top) of the scores first ... first + count - 1, in place, zero for the others; their sum."""
    clear_row(scores, 0, first)
    seen = scores[first : first + count]
    for i in range(count):
        seen[i] = exp(seen[i] - top)
    clear_row(scores, first + count, len(scores) - first - count)
    return sum_row(scores, 0, len(scores))


@inlined
def _softmax(near, first, count, far, num_entries, sink):
    """Weights in place of both kinds of scores; the denominator."""
    top = max(sink, max(max_row(near, first, count), max_row(far, 0, num_entries)))
    return _to_weights(far, 0, num_entries, top) + _to_weights(near, first, count, top) + exp(sink - top)


@inlined
def _most_entries(rows, ratio):
    """Entries that some row may see."""
    most = 0
    for segment in range(len(rows.slots)):
        end = rows.positions[rows.starts[segment + 1] - 1] + 1
        most = max(most, end // ratio - rows.dropped[segment] // ratio)
    return most


@kernel
def _attend(start, stop, q, kv, freqs_cis, rows, ring, pool, chosen, w, out):
    heads, dim, k, ratio = q.shape[1], q.shape[2], chosen.shape[1], max(w.ratio, 1)
    per_page, shares_entries = rows.page_tokens // ratio, w.ratio > 0 and k == 0
    near_step = _whole(w.window + TILE + LANES)
    far_step = _whole(_most_entries(rows, ratio) if shares_entries else k)
    queries, totals = np.empty((TILE * heads, dim), np.float32), np.empty(TILE * heads, np.float32)
    image, keys = np.empty((near_step, dim), np.float32), np.empty((dim, near_step), np.float32)
    entries, entry_keys = np.empty((far_step, dim), np.float32), np.empty((dim, far_step), np.float32)
    near, far = np.empty((TILE * heads, near_step), np.float32), np.empty((TILE * heads, far_step), np.float32)
    places = np.empty(far_step, np.int64)
    for segment in range(len(rows.slots)):
        slot, dropped, pages = rows.slots[segment], rows.dropped[segment] // ratio, rows.pages[segment]
        segment_start, end = rows.starts[segment], min(stop, rows.starts[segment + 1])
        for row in range(max(start, segment_start), end, TILE):
            count, t, at = min(TILE, end - row), rows.positions[row], row * heads * dim
            for i in range(count * heads):
                _scale(q[row + i // heads, i % heads], np.float32(w.scale), queries[i])
            first = max(0, t - w.window + 1)
            base = first // LANES * LANES
            own, last = rows.positions[segment_start], t + count - 1
            whole = _window_image(kv, ring, segment_start, own, slot, base, first, last, image)
            _scores(queries, 0, count * heads, image, whole, keys, near)
            num_entries, whole_entries = 0, 0
            if shares_entries:
                num_entries = (last + 1) // ratio - dropped
                for e in range(num_entries):
                    places[e] = pages[e // per_page] * per_page + e % per_page
                whole_entries = _entry_image(pool, places, num_entries, entries)
                _scores(queries, 0, count * heads, entries, whole_entries, entry_keys, far)
            for i in range(count):
                far_at = i * heads
                if w.ratio > 0:
                    num_entries = (t + i + 1) // ratio - dropped
                if k > 0:
                    far_at, num_entries = 0, min(num_entries, k)
                    whole_entries = _entry_image(pool, chosen[row + i], num_entries, entries)
                    _scores(queries, i * heads, heads, entries, whole_entries, entry_keys, far)
                seen = max(0, t + i - w.window + 1)
                for h in range(heads):
                    totals[i * heads + h] = _softmax(
                        near[i * heads + h, :whole],
                        seen - base,
                        t + i + 1 - seen,
                        far[far_at + h, :whole_entries],
                        num_entries,
                        w.sink[h],
                    )
                if k > 0:
                    to = at + i * heads * dim
                    gemm(far, 0, far_step, entries, 0, dim, out, to, dim, heads, whole_entries, dim, False)
            if shares_entries:
                gemm(far, 0, far_step, entries, 0, dim, out, at, dim, count * heads, whole_entries, dim, False)
            gemm(near, 0, near_step, image, 0, dim, out, at, dim, count * heads, whole, dim, w.ratio > 0)
            for i in range(count * heads):
                result = out[row + i // heads, i % heads]
                _scale(result, ONE / totals[i], result)
                rotate(result, freqs_cis[row + i // heads], -ONE)
