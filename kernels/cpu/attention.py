"""Compiled sibling of kernels.attention: tiles of rows against the window and the entries, in one softmax.

A tile's rows share an image of the window rows, which starts at a multiple of 16 positions: the lanes of a sum are then
the same whatever tile a row is in. What a row may not see has the weight zero, and adds exactly nothing.
"""

import numpy as np

from kernels.attention import AttendWeights
from kernels.cpu.gemm import gemm
from kernels.cpu.jit import inlined, kernel
from kernels.cpu.maths import ZERO, exp
from kernels.cpu.threads import over_rows
from kernels.cpu.vector import LANES, max_row, sum_row, transpose_16
from kernels.rows import Rows

TILE = 16
ALL_ENTRIES = np.empty((0, 0), np.int64)


def attend(
    q: np.ndarray,
    kv: np.ndarray,
    rows: Rows,
    ring: np.ndarray,
    pool: np.ndarray,
    chosen: np.ndarray | None,
    w: AttendWeights,
) -> np.ndarray:
    out = np.empty_like(q)
    over_rows(_attend, len(q), q, kv, rows, ring, pool, ALL_ENTRIES if chosen is None else chosen, w, out)
    return out


@inlined
def _whole(count):
    return (count + LANES - 1) // LANES * LANES


@inlined
def _transpose(rows, count, dim, out, step):
    """rows [count, dim] -> out [dim, step]; count and dim are multiples of 16."""
    for i in range(0, count, LANES):
        for c in range(0, dim, LANES):
            transpose_16(rows, i * dim + c, dim, out, c * step + i, step)


@inlined
def _window_image(kv, rows, segment, ring, base, first, last, image):
    """image [i] = the row of position base + i, from this step or the ring; zeros before `first`, and after `last` to a multiple of 16."""
    start = rows.starts[segment]
    own, slot = rows.positions[start], rows.slots[segment]
    count = _whole(last + 1 - base)
    for i in range(count):
        position = base + i
        if position < first or position > last:
            image[i] = ZERO
        elif position >= own:
            image[i] = kv[start + position - own]
        else:
            image[i] = ring[slot, position % ring.shape[1]]
    return count


@inlined
def _entry_image(pool, places, count, image):
    """image [i] = the pool row places[i], then zeros to a multiple of 16."""
    whole = _whole(count)
    for i in range(whole):
        if i < count:
            image[i] = pool[places[i]]
        else:
            image[i] = ZERO
    return whole


@inlined
def _to_weights(scores, at, first, count, whole, top):
    """exp(score - top) of the scores first ... first + count - 1, zero for the others of `whole`; their sum."""
    for i in range(first):
        scores[at + i] = ZERO
    for i in range(first, first + count):
        scores[at + i] = exp(scores[at + i] - top)
    for i in range(first + count, whole):
        scores[at + i] = ZERO
    return sum_row(scores, at, whole)


@inlined
def _softmax(near, near_at, first, count, whole, far, far_at, num_entries, whole_entries, sink):
    """Weights in place of both kinds of scores; the denominator."""
    top = max(sink, max(max_row(near, near_at + first, count), max_row(far, far_at, num_entries)))
    total = _to_weights(far, far_at, 0, num_entries, whole_entries, top)
    return total + _to_weights(near, near_at, first, count, whole, top) + exp(sink - top)


@kernel
def _attend(start, stop, q, kv, rows, ring, pool, chosen, w, out):
    heads, dim, queries = q.shape[1], q.shape[2], q.ravel()
    k, per_page = chosen.shape[1], rows.page_tokens // max(w.ratio, 1)
    near_step, far_step = _whole(w.window + TILE + LANES), _whole(k)
    if w.ratio > 0 and k == 0:
        for segment in range(len(rows.slots)):
            last = rows.positions[rows.starts[segment + 1] - 1]
            far_step = max(far_step, _whole((last + 1) // w.ratio))
    scaled = np.empty(TILE * heads * dim, np.float32)
    image, keys = np.empty((near_step, dim), np.float32), np.empty(dim * near_step, np.float32)
    near, far = np.empty(TILE * heads * near_step, np.float32), np.empty(TILE * heads * far_step, np.float32)
    entries, entry_keys = np.empty((far_step, dim), np.float32), np.empty(dim * far_step, np.float32)
    places, totals = np.empty(far_step, np.int64), np.empty(TILE * heads, np.float32)
    for segment in range(len(rows.slots)):
        dropped = rows.dropped[segment] // max(w.ratio, 1)
        end = min(stop, rows.starts[segment + 1])
        for row in range(max(start, rows.starts[segment]), end, TILE):
            count = min(TILE, end - row)
            t = rows.positions[row]
            at = row * heads * dim
            for i in range(count * heads * dim):
                scaled[i] = queries[at + i] * np.float32(w.scale)
            first = max(0, t - w.window + 1)
            base = first // LANES * LANES
            whole = _window_image(kv, rows, segment, ring, base, first, t + count - 1, image)
            _transpose(image, whole, dim, keys, near_step)
            gemm(scaled, 0, dim, keys, 0, near_step, near, 0, near_step, count * heads, dim, whole, False)
            whole_entries = 0
            if w.ratio > 0 and k == 0:  # the rows share their entries
                visible = (t + count) // w.ratio - dropped
                for e in range(visible):
                    places[e] = rows.pages[segment, e // per_page] * per_page + e % per_page
                whole_entries = _entry_image(pool, places, visible, entries)
                _transpose(entries, whole_entries, dim, entry_keys, far_step)
                gemm(
                    scaled, 0, dim, entry_keys, 0, far_step, far, 0, far_step, count * heads, dim, whole_entries, False
                )
            for i in range(count):
                position = t + i
                visible = (position + 1) // w.ratio - dropped if w.ratio > 0 else 0
                if k > 0:
                    visible = min(visible, k)
                    whole_entries = _entry_image(pool, chosen[row + i], visible, entries)
                    _transpose(entries, whole_entries, dim, entry_keys, far_step)
                    gemm(
                        scaled,
                        i * heads * dim,
                        dim,
                        entry_keys,
                        0,
                        far_step,
                        far,
                        0,
                        far_step,
                        heads,
                        dim,
                        whole_entries,
                        False,
                    )
                seen = max(0, position - w.window + 1)
                for h in range(heads):
                    far_at = (h if k > 0 else i * heads + h) * far_step
                    totals[i * heads + h] = _softmax(
                        near, (i * heads + h) * near_step, seen - base, position + 1 - seen, whole,
                        far, far_at, visible, whole_entries, w.sink[h],
                    )  # fmt: skip
                if k > 0:
                    gemm(
                        far,
                        0,
                        far_step,
                        entries,
                        0,
                        dim,
                        out,
                        at + i * heads * dim,
                        dim,
                        heads,
                        whole_entries,
                        dim,
                        False,
                    )
            if w.ratio > 0 and k == 0:
                gemm(far, 0, far_step, entries, 0, dim, out, at, dim, count * heads, whole_entries, dim, False)
            gemm(near, 0, near_step, image, 0, dim, out, at, dim, count * heads, whole, dim, w.ratio > 0)
            for i in range(count * heads):
                for c in range(dim):
                    out[row + i // heads, i % heads, c] /= totals[i]
