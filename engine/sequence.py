"""A sequence and a request on it: plain data, changed by the engine's thread and, while it loads, a loader's."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from torch import Tensor

from holdfast.engine.constraint import Matcher
from holdfast.engine.drafts import Lookup
from holdfast.engine.sampling import SamplingParams
from holdfast.engine.state.content_ids import Chain
from holdfast.engine.state.pinned_prefix import PinnedPrefix


@dataclass
class Stored:
    """A sequence's state outside the engine: what `Engine.start` goes on from.

    `page_ids` are its full pages in order, those of a moved prefix first. The readers are called on a worker thread,
    and what they raise ends the request that needed the state. Pages that are in memory already are not read.
    """

    chain: Chain
    ids: Items[int]
    page_ids: list[bytes]
    read_tail: Callable[[], bytes]
    read_pages: Callable[[list[int]], Iterable[bytes]]  # numbers into page_ids -> their bytes, in that order


@dataclass
class Sequence:
    """The live form of a session. Everything past `num_tokens` is scratch.

    `token_ids` are all its tokens, sampled ones too; the state covers the first `num_tokens` of them, and lies in the
    cache (`slot` >= 0) or in `stored`. `pages` is the page table of what is retained: first those of a moved prefix,
    then those of the window; `dropped_tokens` is the position where the first of them stands. `prefix` are the pinned
    rows.
    """

    id: int
    chain: Chain = field(default_factory=lambda: Chain(b"", 256))
    slot: int = -1  # of the tail, once it has run
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    least_tokens: int = 0  # the state cannot go back further: it was loaded at this position
    pages: list[int] = field(default_factory=list)
    num_sealed: int = 0  # pages of the whole history that are sealed
    stored: Stored | None = None
    prefix: PinnedPrefix | None = None
    is_released: bool = False
    is_asked_to_park: bool = False
    request: "Request | None" = None  # the last one on it
    lookup: Lookup = field(default_factory=Lookup)
    drafts: list[int] = field(default_factory=list)  # guesses after token_ids that the next step verifies

    @property
    def num_waiting(self) -> int:
        """Tokens whose state has still to be computed."""
        return len(self.token_ids) - self.num_tokens

    @property
    def is_complete(self) -> bool:
        """Whether the last request had a constraint and sampled all of its text; else it was cut."""
        matcher = self.request and self.request.matcher
        return matcher is not None and matcher.is_over

    @property
    def dropped_tokens(self) -> int:
        return self.chain.rolls[-1].dropped_tokens if self.chain.rolls else 0


@dataclass
class Request:
    """Feed the waiting tokens of a sequence, then sample up to `params.max_tokens`; or, `is_load`, only load it.

    `on_token`, `on_prefill(done, total)` and `on_done(error)` are called on the engine's thread. `num_taken` counts
    tokens the consumer has received: sampling stays a bounded number ahead, so that a cancel can take them back.
    `scores` collects the logits of every fed token, [tokens, V] per step. `matcher` has seen every sampled token.
    """

    seq: Sequence
    params: SamplingParams
    on_token: Callable[[int], None]
    on_prefill: Callable[[int, int], None]
    on_done: Callable[[Exception | None], None]
    scores: list[Tensor] | None = None
    matcher: Matcher | None = None
    is_load: bool = False
    num_prompt: int = 0
    max_tokens: int = 0
    num_sampled: int = 0
    num_taken: int = 0
    is_over: bool = False
