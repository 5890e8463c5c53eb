"""What answers: a model, at the level of tokens. A session's token log stays the truth for every model.

The engine of this process is one (`holdfast.engine.Engine`). Must not know sessions, nor how text becomes tokens.
"""

from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from typing import Protocol

from holdfast.engine import Chain, EngineConfig, Roll, SamplingParams, Sequence, Snapshot, Stored, Tokenizer

OnPrefill = Callable[[int, int], None]  # tokens read so far of this request, and how many it has


class Model(Protocol):
    """Methods are called on one event loop. They raise EngineError, or what the readers of a stored state raise."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def identity(self) -> str:
        """Names the model that wrote a session's tokens: another model cannot go on with them."""

    @property
    def max_context(self) -> int:
        """Tokens that a sequence can have."""

    async def start(self, stored: Stored | None = None, owner: str = "") -> Sequence:
        """A sequence, empty or on a stored state, for tokens of this owner."""

    def extend(
        self, seq: Sequence, ids: Items[int], params: SamplingParams, on_prefill: OnPrefill | None = None
    ) -> AsyncIterator[int]:
        """Read `ids`, and sample. The only method that asks the model for tokens."""

    async def feed(self, seq: Sequence, ids: Items[int], on_prefill: OnPrefill | None = None) -> None:
        """Read `ids`, and sample nothing."""

    async def load(self, seq: Sequence) -> None:
        """Bring the stored state of a sequence into memory."""

    async def roll(self, seq: Sequence, roll: Roll) -> None:
        """Drop the oldest tokens behind the pinned ones."""

    async def release(self, seq: Sequence) -> None:
        """End a sequence."""


class Stateful(Model, Protocol):
    """A model whose sequences have a state that can be stored."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def is_decoding(self) -> bool:
        """Whether a client waits for its next token."""

    def chain(self, rolls: Items[Roll] = (), owner: str = "") -> Chain:
        """Content ids of states, for tokens of an owner that went through these rolls."""

    async def snapshot(self, seq: Sequence, is_followed: bool = False) -> Snapshot | None:
        """The state of an idle sequence; None when none is in memory."""

    async def park(self, seq: Sequence, stored: Stored | None) -> bool:
        """Free the memory of an idle sequence, whose state is `stored` now."""
