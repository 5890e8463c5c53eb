"""Interleaved rotary embedding on the last channels of a row, and its inverse (V4 spec 2.4).

Angles are computed in float64 from absolute 64-bit positions and only then cast: float32 angles drift past 100,000
tokens (spec 3.5).
"""

import math

import torch
from torch import Tensor


def rope_frequencies(dim: int, theta: float, yarn: tuple[float, float, float, int] | None) -> Tensor:
    """Angle per position of channel pairs, float64 [dim / 2]; yarn: factor, beta_fast, beta_slow, original length."""
    pairs = torch.arange(0, dim, 2, dtype=torch.float64)
    freqs = theta ** (-pairs / dim)
    if yarn is None:
        return freqs
    factor, beta_fast, beta_slow, original = yarn

    def pair_of(rotations: float) -> float:
        return dim * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(beta_fast)), 0), min(math.ceil(pair_of(beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return freqs / factor * ramp + freqs * (1 - ramp)


def rope_table(positions: Tensor, freqs: Tensor) -> Tensor:
    """positions int64 [N] -> e^(i * angle), complex64 [N, dim / 2]."""
    angles = positions.double()[:, None] * freqs
    return torch.complex(angles.cos().float(), angles.sin().float())


def rotate_(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Rotate the last 2 * freqs_cis.shape[-1] channels of x [..., K] in place; a conjugate table undoes it."""
    width = 2 * freqs_cis.shape[-1]
    pairs = torch.view_as_complex(x[..., x.shape[-1] - width :].unflatten(-1, (-1, 2)))
    pairs.mul_(freqs_cis)
    return x
