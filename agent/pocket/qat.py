"""Rounding during training, so that the exported FP4/FP8 checkpoint is the model that was trained.

Every function returns the rounded value and passes the gradient straight through. Formats are those of the
DeepSeek-V4 checkpoint and its KV rows (V4 spec 4.3, 5.1, 5.2): power-of-two scales, e4m3 in 128 x 128 blocks,
e2m1 in groups of 32, e4m3 in blocks of 64 for the non-rotary part of a KV row.
"""

import torch
from torch import Tensor

FP8_MAX, FP4_MAX = 448.0, 6.0


def _scale(amax: Tensor, limit: float) -> Tensor:
    """The smallest power of two s with amax / s <= limit, from the exponent bits."""
    mantissa, exponent = torch.frexp(amax.clamp_min(1e-10) / limit)
    return torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())


def _e4m3(x: Tensor) -> Tensor:
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def _e2m1(x: Tensor) -> Tensor:
    """Round to the grid 0, .5, 1, 1.5, 2, 3, 4, 6 (nearest, ties to even)."""
    a = x.abs().clamp(max=FP4_MAX)
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return torch.copysign((a / step).round() * step, x)


def _straight(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


class Rounding:
    """What is rounded in a forward pass: nothing, or everything the official format rounds."""

    def __init__(self, on: bool):
        self.on = on

    def bf16(self, w: Tensor) -> Tensor:
        return _straight(w, w.detach().bfloat16().float()) if self.on else w

    def fp8(self, w: Tensor) -> Tensor:
        """Weight [out, in] in blocks of 128 x 128 (ragged edges allowed)."""
        if not self.on:
            return w
        d = w.detach()
        out, width = d.shape
        padded = torch.nn.functional.pad(d, (0, -width % 128, 0, -out % 128))
        blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))  # [ob, 128, ib, 128]
        s = _scale(blocks.abs().amax((1, 3), keepdim=True), FP8_MAX)
        return _straight(w, (_e4m3(blocks / s) * s).flatten(2).flatten(0, 1)[:out, :width])

    def fp4(self, w: Tensor) -> Tensor:
        """Weight [..., in] in groups of 32 along the input."""
        if not self.on:
            return w
        groups = w.detach().unflatten(-1, (-1, 32))
        s = _scale(groups.abs().amax(-1, keepdim=True), FP4_MAX)
        return _straight(w, (_e2m1(groups / s) * s).flatten(-2))

    def kv_row(self, row: Tensor, rope: int) -> Tensor:
        """A window or compressed row [..., nope + rope]: e4m3 per 64 on the non-rotary part, bf16 on the rest."""
        if not self.on:
            return row
        d = row.detach()
        nope = d[..., :-rope].unflatten(-1, (-1, 64))
        s = _scale(nope.abs().amax(-1, keepdim=True).clamp_min(1e-4), FP8_MAX)
        rounded = torch.cat(((_e4m3(nope / s) * s).flatten(-2), d[..., -rope:].bfloat16().float()), -1)
        return _straight(row, rounded)

    def index_row(self, row: Tensor) -> Tensor:
        return self.fp4(row)
