"""A live sequence and a request on it: plain data, changed by the scheduler alone."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from engine.drafts import Lookup
from engine.sampling import SamplingParams


@dataclass
class Sequence:
    """The live form of a session. Everything past `num_tokens` is scratch.

    `token_ids` are all its tokens, sampled ones too; the state in the cache covers the first `num_tokens` of them.
    `pages` is the page table of what is retained; `dropped_tokens` were retired from the front and are not in it.
    """

    id: int
    slot: int = -1  # of the tail, once it has run
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    dropped_tokens: int = 0
    is_released: bool = False
    request: "Request | None" = None  # the last one on it
    lookup: Lookup = field(default_factory=Lookup)
    drafts: list[int] = field(default_factory=list)  # guesses after token_ids that the next step verifies

    @property
    def num_waiting(self) -> int:
        """Tokens whose state has still to be computed."""
        return len(self.token_ids) - self.num_tokens


@dataclass
class Request:
    """Feed the waiting tokens of a sequence, then sample up to `params.max_tokens`.

    `on_token`, `on_prefill(done, total)` and `on_done(error)` are called on the engine's thread. `num_taken` counts
    tokens the consumer has received: sampling stays a bounded number ahead, so that a cancel can take them back.
    `scores` collects the logits of every fed token, [tokens, V] per step.
    """

    seq: Sequence
    params: SamplingParams
    on_token: Callable[[int], None]
    on_prefill: Callable[[int, int], None]
    on_done: Callable[[Exception | None], None]
    scores: list[Tensor] | None = None
    num_prompt: int = 0
    max_tokens: int = 0
    num_sampled: int = 0
    num_taken: int = 0
