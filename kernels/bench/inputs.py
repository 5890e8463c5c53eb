"""Random inputs of cases, the same for an op and its twin; on the meta device only their shapes."""

import torch
from torch import Tensor

from holdfast.kernels.gpu.weights import Fp8Weight
from holdfast.kernels.quant import from_e8m0


def random(device: torch.device, *shape: int) -> Tensor:
    """float32, of standard deviation 1."""
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(sum(shape)), device=device)


def scale_byte(depth: int) -> int:
    """The e8m0 byte of about 1 / sqrt(depth): products with so many inputs keep their size."""
    return 127 - (depth.bit_length() - 1) // 2


def fp8(device: torch.device, *shape: int) -> Fp8Weight:
    """A weight [..., out, in] of about 1 / sqrt(in)."""
    blocks = (*shape[:-1], -(-shape[-1] // 128))
    scale = torch.full(blocks, scale_byte(shape[-1]), dtype=torch.uint8, device=device)
    return Fp8Weight(random(device, *shape).to(torch.float8_e4m3fn), scale)


def fp8_values(weight: Fp8Weight) -> Tensor:
    """[..., out, in] -> float32 [..., in, out], as twins take it."""
    scale = from_e8m0(weight.scale).repeat_interleave(128, -1)[..., : weight.data.shape[-1]]
    return (weight.data.float() * scale).transpose(-1, -2)
