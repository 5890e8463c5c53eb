"""Gated pooling of a block of tokens into one entry (V4 spec 2.6)."""

import torch
from torch import Tensor

from kernels.gemm import pair_sum


def pool_blocks(values: Tensor, gates: Tensor) -> Tensor:
    """values, gates [blocks, slots, d] -> entries [blocks, d]: per channel, a softmax over the slots weighs the values.

    A gate of -inf leaves its slot out. Neighbours are added pairwise, so a block does not depend on the others.
    """
    weights = torch.exp(gates - gates.amax(1, keepdim=True))
    return pair_sum(weights * values, 1) / pair_sum(weights, 1)


def overlapping(rows: Tensor) -> Tensor:
    """[blocks, 8, 2d] -> [blocks, 8, d]: the A halves of the previous block's four tokens, the B halves of this one's."""
    d = rows.shape[2] // 2
    return torch.cat((rows[:, :4, :d], rows[:, 4:, d:]), 1)
