"""The lightning indexer: which compressed entries a query attends to (V4 spec 2.7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gemm import linear, pad_rows, pair_sum


def index_scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """queries [n, H, d], keys [E, d], weights [n, H] -> sum over heads of weight * relu(q . k), [n, E].

    E is a multiple of 16.
    """
    n, heads, d = queries.shape
    flat = F.pad(queries.reshape(n * heads, d), (0, 0, 0, pad_rows(n * heads) - n * heads))
    scores = torch.relu_(linear(flat, keys))[: n * heads].view(n, heads, -1)
    return pair_sum(scores.mul_(weights.unsqueeze(-1)), 1)


def select_top(scores: Tensor, visible: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the first visible[i] entries of row i, ascending, ties to the lower index.

    scores [n, E], visible int64 [n] -> (entry indices int64 [n, k], which of them count bool [n, k]).
    """
    entries = scores.shape[1]
    seen = torch.arange(entries, device=scores.device) < visible.unsqueeze(1)
    scores = torch.where(seen, scores, float("-inf"))
    if entries < k:
        scores = F.pad(scores, (0, k - entries), value=float("-inf"))
    best = scores.topk(k, 1)
    least = best.values[:, -1:]
    # ties matter only where entries equal to the least chosen one were left out
    tied = (scores == least).sum(1) > (best.values == least).sum(1)
    tied &= visible > k  # else all that is seen is chosen
    index = torch.where(best.values == float("-inf"), entries, best.indices)
    if tied.any():
        exact = torch.sort(scores[tied], dim=1, descending=True, stable=True)
        index[tied] = torch.where(exact.values == float("-inf"), entries, exact.indices)[:, :k]
    index = index.sort(1).values
    valid = index < entries
    return index.masked_fill_(~valid, 0), valid
