"""RMS norm (V4 spec 2: `RMS(x; w) = x * rsqrt(mean(x^2) + eps) * w`, float32 inside)."""

import functools

import torch
from torch import Tensor


@functools.cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(value)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """x [..., K] -> rsqrt(mean(x^2) + eps) [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_scalar(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., K], weight [K] or None -> [..., K]."""
    y = x * inverse_rms(x, eps)
    return y if weight is None else y.mul_(weight)
