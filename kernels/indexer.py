"""The lightning indexer: which compressed entries a query attends to (V4 spec 2.7)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.kernels.rounding import Rounding
from holdfast.kernels.rows import Rows


def select(
    index_q: Tensor, head_weights: Tensor, rows: Rows, index_pool: Tensor, ratio: int, k: int, *, num: Rounding
) -> Tensor:
    """Rows of the pool [N, k] of the k best entries that each row may see, in order of entry; -1 for none."""
    parts, per_page = [], rows.page_tokens // ratio
    for segment, (start, end) in enumerate(zip(rows.starts[:-1], rows.starts[1:])):
        visible = torch.from_numpy((rows.positions[start:end] + 1) // ratio - rows.dropped[segment] // ratio)
        entry = np.arange(int(visible.max()))
        places = torch.from_numpy(rows.pages[segment, entry // per_page] * per_page + entry % per_page)
        scores = num.bf16(index_scores(index_q[start:end], index_pool[places], head_weights[start:end]))
        best = select_top(scores, visible, k)
        parts.append(torch.where(best >= 0, F.pad(places, (0, 1))[best], -1))
    return torch.cat(parts)


def index_scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """queries [n, H, d], keys [E, d], weights [n, H] -> sum over heads of weight * relu(q . k), [n, E]."""
    return (torch.relu(queries @ keys.t()) * weights.unsqueeze(-1)).sum(1)


def select_top(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """The k best of the first visible[i] entries of row i: [n, E], [n] -> int64 [n, k], -1 for none.

    Ascending; of equal ones the lower is better.
    """
    scores = F.pad(scores, (0, k))  # there are always k
    seen = torch.arange(scores.shape[1]) < visible.unsqueeze(1)
    order = torch.sort(torch.where(seen, scores, float("-inf")), dim=1, descending=True, stable=True).indices[:, :k]
    chosen = torch.where(torch.arange(k) < visible.unsqueeze(1), order, scores.shape[1]).sort(1).values
    return torch.where(chosen < scores.shape[1], chosen, -1)
