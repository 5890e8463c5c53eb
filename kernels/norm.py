"""RMS norm (V4 spec 2: `RMS(x; w) = x * rsqrt(mean(x^2) + eps) * w`, float32 inside)."""

from torch import Tensor


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """x [..., K] -> rsqrt(mean(x^2) + eps) [..., 1]."""
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., K], weight [K] or None -> [..., K]."""
    y = x * inverse_rms(x, eps)
    return y if weight is None else y * weight
