"""How an engine runs a model: what its user may choose, and what is refused."""

from dataclasses import dataclass

from holdfast.engine.batch import ROWS_AT_ONCE
from holdfast.engine.errors import EngineError
from holdfast.engine.numerics import NAMES
from holdfast.engine.placement import DEVICES, Placement

FREE_SHARE = 0.8  # of a GPU's free memory; the rest is for the activations of a prefill step and for graphs


@dataclass(frozen=True)
class EngineConfig:
    """How to run a model. `memory_bytes` bounds the page pool (None: 1 GiB, or most of a GPU's free memory) and
    `prefill_chunk` a prefill step (None: 512 tokens, 4,096 on a GPU); `max_context` None is what the model and the pool
    allow.

    `ranks` processes share the columns of the model's weights, each with its own page pool; `threads` are those of one
    rank. The first `pinned_pages` of a sequence stay when it rolls. `num_drafts` tokens are guessed and verified per
    step of a lone request; they change its speed, never its tokens. Sequences of several owners share the beginning
    that is in `public_ids`, and nothing else.
    """

    device: str = "auto"
    ranks: int = 1
    numerics: str = "auto"
    max_context: int | None = None
    page_tokens: int = 256
    pinned_pages: int = 1
    prefill_chunk: int | None = None
    memory_bytes: int | None = None
    max_sequences: int = 64
    threads: int | None = None
    num_drafts: int = 3
    public_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise EngineError(f"device {self.device!r} is not one of {', '.join(DEVICES)}")
        if self.numerics != "auto" and self.numerics not in NAMES:
            raise EngineError(f"numerics {self.numerics!r} is not one of auto, {', '.join(NAMES)}")
        if self.pinned_pages < 0:
            raise EngineError(f"pinned_pages={self.pinned_pages} must be at least 0")
        for name in ("ranks", "page_tokens", "prefill_chunk", "memory_bytes", "max_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EngineError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.num_drafts < ROWS_AT_ONCE:
            raise EngineError(f"num_drafts={self.num_drafts} must be 0 (off) to {ROWS_AT_ONCE - 1}")
        if self.max_context is not None and self.max_context < 1:
            raise EngineError(f"max_context={self.max_context} must be at least 1")

    def prefill_tokens(self, placement: Placement) -> int:
        """Tokens of a prefill step: enough to fill the machine, few enough not to keep decodes waiting."""
        return self.prefill_chunk or (4096 if placement.is_gpu else 512)

    def pool_bytes(self, placement: Placement) -> int:
        """Memory for pages, once the weights are loaded: on a GPU most of what is free."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return int(FREE_SHARE * placement.memory_bytes()) if placement.is_gpu else 2**30
