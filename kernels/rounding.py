"""What `official` numerics round inside: bf16 where the reference has bf16, FP8 inputs of linears (V4 spec 5)."""

from dataclasses import dataclass

from torch import Tensor

from holdfast.kernels.norm import rms_norm
from holdfast.kernels.quant import fake_fp8


@dataclass(frozen=True)
class Rounding:
    """Nothing is rounded unless `official`."""

    official: bool

    def bf16(self, x: Tensor) -> Tensor:
        """A value that the reference holds in bf16."""
        return x.bfloat16().float() if self.official else x

    def act(self, x: Tensor) -> Tensor:
        """The input of a linear with FP8 or FP4 weights."""
        return fake_fp8(x, 128) if self.official else x

    def head_norm(self, q: Tensor, eps: float) -> Tensor:
        """RMS norm of each query head; the reference does this one in bf16 throughout (spec 5.3)."""
        if not self.official:
            return rms_norm(q, None, eps)
        mean = self.bf16(self.bf16(q.square()).mean(-1, keepdim=True))
        return self.bf16(q * self.bf16(self.bf16(mean + eps).rsqrt()))
