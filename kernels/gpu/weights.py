"""Weights as the kernels read them: packed as in the checkpoint, with scales that a tile of any rows can load."""

from typing import NamedTuple

import torch
from torch import Tensor


class Fp8Weight(NamedTuple):
    """A linear with FP8 weights.

    One scale per row and 128 columns, repeated from the checkpoint's 128 x 128 blocks, so that weights can be put
    together and cut apart along their rows anywhere; it costs less than one byte in a hundred.
    """

    data: Tensor  # e4m3 [out, in]
    scale: Tensor  # uint8 [out, in / 128 rounded up]: exponent + 127
    outs: int = 0  # rows of the whole weight, where these are only a rank's


class Fp4Weight(NamedTuple):
    """Linears with FP4 weights, one per expert."""

    data: Tensor  # uint8 [E, out, in / 2]: the low nibble is the even column
    scale: Tensor  # uint8 [E, out, in / 32]: exponent + 127


def fp8_weight(data: Tensor, scale: Tensor, first_row: int = 0) -> Fp8Weight:
    """e4m3 [out, in] with the checkpoint's e8m0 [out / 128, in / 128] (both rounded up).

    A part of a weight may begin at any `first_row` of its first block.
    """
    rows = scale.view(torch.uint8).repeat_interleave(128, 0)[first_row : first_row + len(data)]
    return Fp8Weight(data.contiguous(), rows.contiguous())
