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
    column = torch.arange(entries, device=scores.device)
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 makes -0 equal to 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # same order as the floats
    keys = (ordered << 32) | (entries - column)  # unique: the lower index wins a tie
    keys = keys.masked_fill_(column >= visible.unsqueeze(1), torch.iinfo(torch.int64).min)
    if entries < k:
        keys = F.pad(keys, (0, k - entries), value=torch.iinfo(torch.int64).min)
    chosen = keys.topk(k, 1, sorted=False)
    index = chosen.indices.masked_fill(chosen.values == torch.iinfo(torch.int64).min, entries).sort(1).values
    valid = index < entries
    return index.masked_fill_(~valid, 0), valid
