"""The three named choices of arithmetic (plain, compact, official): what is rounded where (V4 spec 5)."""

from dataclasses import dataclass

from torch import Tensor

from engine.errors import EngineError
from kernels.norm import rms_norm
from kernels.quant import fake_fp8

NAMES = ("plain", "compact", "official")


@dataclass(frozen=True)
class Numerics:
    """`plain` rounds nothing. `compact` rounds stored rows. `official` rounds activations too, bf16 where the reference has it."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise EngineError(f"numerics {self.name!r} is not one of {', '.join(NAMES)}")

    @property
    def rounds_rows(self) -> bool:
        return self.name != "plain"

    @property
    def rounds_activations(self) -> bool:
        return self.name == "official"

    def bf16(self, x: Tensor) -> Tensor:
        """A value that the reference holds in bf16."""
        return x.bfloat16().float() if self.rounds_activations else x

    def head_norm(self, q: Tensor, eps: float) -> Tensor:
        """RMS norm of each query head; the reference does this one in bf16 throughout (spec 5.3)."""
        if not self.rounds_activations:
            return rms_norm(q, None, eps)
        mean = self.bf16(self.bf16(q.square()).mean(-1, keepdim=True))
        return self.bf16(q * self.bf16(self.bf16(mean + eps).rsqrt()))

    def act(self, x: Tensor) -> Tensor:
        """The input of a linear with FP8 or FP4 weights."""
        return fake_fp8(x, 128) if self.rounds_activations else x
