"""Attention of queries over window rows and compressed entries, one softmax with a sink (V4 spec 2.5).

Keys are values: one row serves both. So values carry the rotation of their position, and the output is rotated back.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.kernels.rope import rotate_
from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows


class AttendWeights(NamedTuple):
    sink: Tensor  # [H], counts in the denominator only
    scale: float
    window: int  # positions that a query sees, its own among them
    ratio: int  # tokens per entry; 0: no entries


def attend(
    q: Tensor,
    kv: Tensor,
    freqs_cis: Tensor,
    rows: Rows,
    ring: Tensor,
    pool: Tensor,
    chosen: Tensor | None,
    w: AttendWeights,
    *,
    num: Rounding,
) -> Tensor:
    """q [N, H, d], new window rows kv [N, d], freqs_cis of the rows -> o [N, H, d].

    Earlier window rows come from ring [slots, length, d], which does not hold these yet. Entries are rows of the pool:
    those of chosen [N, k], -1 for none, or without `chosen` all that a row may see.
    """
    o = torch.cat([_attend_segment(q, kv, rows, s, ring, pool, chosen, w, num) for s in range(len(rows.slots))])
    return num.bf16(rotate_(num.bf16(o), freqs_cis.conj().unsqueeze(1)))


def _attend_segment(
    q: Tensor,
    kv: Tensor,
    rows: Rows,
    segment: int,
    ring: Tensor,
    pool: Tensor,
    chosen: Tensor | None,
    w: AttendWeights,
    num: Rounding,
) -> Tensor:
    start, end = rows.starts[segment : segment + 2].tolist()
    t = torch.from_numpy(rows.positions[start:end]).unsqueeze(1)  # [n, 1]
    own = int(t[0])
    first = max(0, own - w.window + 1)
    old = ring[int(rows.slots[segment]), torch.arange(first, own) % ring.shape[1]]
    window = torch.cat((old, kv[start:end])).unsqueeze(0)
    position = torch.arange(first, own + end - start)
    masks = [(position <= t) & (t - position < w.window)]
    keys = [window]
    if w.ratio and chosen is not None:
        keys.append(pool[chosen[start:end].clamp(min=0)])  # [n, k, d]
        masks.append(chosen[start:end] >= 0)
    elif w.ratio:
        visible = (t + 1) // w.ratio - int(rows.dropped[segment]) // w.ratio
        entry, per_page = np.arange(int(visible.max())), rows.page_tokens // w.ratio
        keys.append(pool[rows.pages[segment, entry // per_page] * per_page + entry % per_page].unsqueeze(0))
        masks.append(torch.from_numpy(entry) < visible)
    return softmax_attend(q[start:end], keys, masks, w.sink, w.scale, num)


def softmax_attend(
    q: Tensor, keys: list[Tensor], masks: list[Tensor], sink: Tensor, scale: float, num: Rounding
) -> Tensor:
    """q [n, H, d], keys [n or 1, K, d], masks bool [n, K] -> [n, H, d], one softmax over all keys.

    Probabilities are rounded to bf16 in official numerics, before the product with the values.
    """
    scores = [
        (q * scale @ k.transpose(1, 2)).masked_fill(~mask.unsqueeze(1), float("-inf")) for k, mask in zip(keys, masks)
    ]
    sink = sink.view(1, -1, 1)
    top = torch.cat([sink.expand(len(q), -1, 1), *scores], 2).amax(2, keepdim=True)
    weights = [torch.exp(s - top) for s in scores]
    total = torch.exp(sink - top) + torch.cat(weights, 2).sum(2, keepdim=True)
    seen = [mask if len(k) > 1 else mask.any(0, keepdim=True) for k, mask in zip(keys, masks)]
    values = [k.masked_fill(~mask.unsqueeze(2), 0.0) for k, mask in zip(keys, seen)]  # an unseen row may hold anything
    return torch.stack([num.bf16(p) @ v for p, v in zip(weights, values)]).sum(0) / total
