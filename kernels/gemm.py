"""Matrix products whose rows do not depend on each other: a row has the same bits in every batch and every chunk.

The CPU library picks its code path by shape. On AVX2 and AVX-512 machines a row of a float32 product was the same for
every number of rows from 16 up while the inner size stayed within EXACT_K; beyond it only equal shapes gave equal
bits, so wider products run tile by tile. Callers therefore pad their rows to ROW_TILE.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_TILE = 16
EXACT_K = 640


def pad_rows(count: int) -> int:
    """`count` rounded up to whole row tiles."""
    return -(-count // ROW_TILE) * ROW_TILE


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, K], N a multiple of ROW_TILE; weight [out, K] -> [N, out]."""
    assert x.shape[0] % ROW_TILE == 0, x.shape
    if x.shape[1] <= EXACT_K or x.shape[0] == ROW_TILE:
        return F.linear(x, weight)
    return torch.cat([F.linear(tile, weight) for tile in x.split(ROW_TILE)])


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, G, K], weight [G, out, K] -> [N, G * out]: every group has its own weight."""
    return torch.cat([linear(x[:, g], weight[g]) for g in range(len(weight))], 1)


def pair_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by adding neighbours: an order that trailing zeros do not change."""
    x = x.movedim(dim, 0)
    while x.shape[0] > 1:
        if x.shape[0] % 2:
            x = torch.cat((x, torch.zeros_like(x[:1])))
        x = x[0::2] + x[1::2]
    return x[0]
