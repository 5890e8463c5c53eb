"""How an engine runs a model: what its user may choose, and what is refused."""

from dataclasses import dataclass

from engine.batch import ROWS_AT_ONCE
from engine.errors import EngineError
from engine.numerics import NAMES


@dataclass(frozen=True)
class EngineConfig:
    """How to run a model. `memory_bytes` bounds the page pool; `max_context` None is what the model and the pool allow.

    `ranks` processes share the model's heads and experts, each with a page pool of its own; `threads` are those of one rank.
    The first `pinned_pages` of a sequence stay when it rolls. `num_drafts` tokens are guessed and verified per step of a lone request; they change its speed, never its tokens.
    """

    device: str = "auto"
    ranks: int = 1
    numerics: str = "auto"
    max_context: int | None = None
    page_tokens: int = 256
    pinned_pages: int = 1
    prefill_chunk: int = 512
    memory_bytes: int = 2**30
    max_sequences: int = 64
    threads: int | None = None
    num_drafts: int = 3

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise EngineError(f"device {self.device!r} is not available in this build: use auto or cpu")
        if self.numerics != "auto" and self.numerics not in NAMES:
            raise EngineError(f"numerics {self.numerics!r} is not one of auto, {', '.join(NAMES)}")
        if self.pinned_pages < 0:
            raise EngineError(f"pinned_pages={self.pinned_pages} must be at least 0")
        for name in ("ranks", "page_tokens", "prefill_chunk", "memory_bytes", "max_sequences"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.num_drafts < ROWS_AT_ONCE:
            raise EngineError(f"num_drafts={self.num_drafts} must be 0 (off) to {ROWS_AT_ONCE - 1}")
        if self.max_context is not None and self.max_context < 1:
            raise EngineError(f"max_context={self.max_context} must be at least 1")
