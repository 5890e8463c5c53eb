"""Matrix products whose rows do not depend on each other: a row has the same bits in every batch and every chunk.

The CPU library picks its code path by shape: a product of few rows can differ from the same rows of a large one. How
many rows are enough is a property of the machine, so it is measured once (`row_tile`), and callers pad their rows to
that. While the inner size stays within EXACT_K a row is then the same for every number of rows; wider products run
tile by tile.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT_K = 640


@functools.cache
def row_tile() -> int:
    """The fewest rows, of 4, 8 and 16, whose product equals the same rows of a large product on this machine."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, n, generator=generator) for n in (EXACT_K, EXACT_K))
    for rows in (4, 8):
        if all(
            torch.equal(F.linear(x[:rows, :k], weight[:, :k]), F.linear(x[:, :k], weight[:, :k])[:rows])
            for k in (128, 192, 384, EXACT_K)
        ):
            return rows
    return 16


def pad_rows(count: int) -> int:
    """`count` rounded up to whole row tiles."""
    return -(-count // row_tile()) * row_tile()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, K], N a multiple of the row tile; weight [out, K] -> [N, out]."""
    tile = row_tile()
    assert x.shape[0] % tile == 0, x.shape
    if x.shape[1] <= EXACT_K or x.shape[0] == tile:
        return F.linear(x, weight)
    return torch.cat([F.linear(tile, weight) for tile in x.split(tile)])


def tiled_bmm(a: Tensor, b: Tensor) -> Tensor:
    """Batched product [G, M, K] x [G, K, N]; rows of `a` below a row tile are padded and cut off again."""
    missing = row_tile() - a.shape[1]
    if missing <= 0:
        return torch.bmm(a, b)
    return torch.bmm(F.pad(a, (0, 0, 0, missing)), b)[:, : a.shape[1]]


def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, G, K], weight [G, out, K] -> [N, G * out]: every group has its own weight."""
    if weight.shape[2] > EXACT_K:
        return torch.cat([linear(x[:, g], w) for g, w in enumerate(weight)], 1)
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def pair_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over `dim` by adding neighbours: an order that trailing zeros do not change."""
    x = x.movedim(dim, 0)
    while x.shape[0] > 1:
        if x.shape[0] % 2:
            x = torch.cat((x, torch.zeros_like(x[:1])))
        x = x[0::2] + x[1::2]
    return x[0]
