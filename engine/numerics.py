"""The three named choices of arithmetic (plain, compact, official): what is rounded where (V4 spec 5)."""

from dataclasses import dataclass

from holdfast.engine.errors import EngineError
from holdfast.kernels.rounding import Rounding

NAMES = ("plain", "compact", "official")


@dataclass(frozen=True)
class Numerics:
    """What is rounded where.

    `plain` rounds nothing. `compact` rounds stored rows. `official` rounds activations too, bf16 where the reference
    has it.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise EngineError(f"numerics {self.name!r} is not one of {', '.join(NAMES)}")

    @property
    def rounds_rows(self) -> bool:
        return self.name != "plain"

    @property
    def rounding(self) -> Rounding:
        return Rounding(self.name == "official")
