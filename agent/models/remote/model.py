"""A model behind HTTP, as the agent uses a model: sequences are lists of tokens, and each request brings all of them.

Owns what the agent asks of a model that has no state here: nothing to load, to store or to park. Must not know how it
is asked.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from collections.abc import Sequence as Items
from contextlib import aclosing
from dataclasses import dataclass, field

from holdfast.agent.models.model import OnPrefill
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.models.remote.wire import Wire
from holdfast.engine import (
    Chain,
    Constraint,
    ContextFull,
    EngineConfig,
    EngineError,
    Roll,
    SamplingParams,
    Sequence,
    Snapshot,
    Stored,
    Tokenizer,
)


@dataclass(frozen=True)
class Reported:
    """What an endpoint says that one request cost it, in its own tokens; None where it does not say."""

    input: int | None = None
    cached: int | None = None
    output: int | None = None


@dataclass
class RemoteSequence(Sequence):
    """`reports` are of the requests since they were last taken."""

    endpoint: Endpoint = field(kw_only=True)
    reports: list[Reported] = field(default_factory=list)


class RemoteModel(ABC):
    """Open until `aclose`. The context is the endpoint's, in tokens of our vocabulary."""

    kernels_not_kept: str | None = None
    is_decoding = False
    on_pressure: Callable[[Sequence], None] | None = None
    pages_in_use = (0, 0)

    def __init__(self, endpoint: Endpoint, tokenizer: Tokenizer, config: EngineConfig, max_context: int, wire: Wire):
        self.endpoint, self.tokenizer, self.config, self.max_context = endpoint, tokenizer, config, max_context
        self.identity = endpoint.identity
        self._wire = wire
        self._num_started = 0

    @abstractmethod
    def _answer(self, seq: RemoteSequence, params: SamplingParams) -> AsyncGenerator[list[int], None]:
        """Tokens of the model's next message as they come, after all tokens of `seq`."""

    async def start(self, stored: Stored | None = None, owner: str = "") -> RemoteSequence:
        """An empty sequence: nothing is stored of one."""
        assert stored is None, "a remote model has no stored state"
        self._num_started += 1
        return RemoteSequence(self._num_started, self.chain(owner=owner), endpoint=self.endpoint)

    async def extend(
        self, seq: Sequence, ids: Items[int], params: SamplingParams, on_prefill: OnPrefill | None = None
    ) -> AsyncIterator[int]:
        """Ask for what follows. Raises ContextFull and RemoteError."""
        assert isinstance(seq, RemoteSequence)
        await self.feed(seq, ids)
        if params.constraint is not None and not params.begins:
            raise EngineError(f"{self.identity} cannot hold its answer to a grammar: ask without a format")
        num_sampled = 0
        async with aclosing(self._answer(seq, params)) as answer:
            async for tokens in answer:
                if num_sampled == 0 and on_prefill is not None:
                    on_prefill(len(ids), len(ids))
                for token in tokens:
                    if num_sampled == params.max_tokens:
                        return
                    num_sampled += 1
                    self._add(seq, [token])
                    yield token

    async def feed(self, seq: Sequence, ids: Items[int], on_prefill: OnPrefill | None = None) -> None:
        """Remember `ids`: the next request brings them."""
        if len(seq.token_ids) - seq.dropped_tokens + len(ids) > self.max_context:
            raise ContextFull(f"the context of {self.max_context} tokens is full")
        self._add(seq, list(ids))

    async def load(self, seq: Sequence) -> None:
        """A list of tokens is in memory as long as it lives."""
        assert not seq.is_released, seq.id

    async def roll(self, seq: Sequence, roll: Roll) -> None:
        """What is dropped is not sent any more."""
        seq.chain.rolls.append(roll)

    async def release(self, seq: Sequence) -> None:
        seq.is_released = True

    def chain(self, rolls: Items[Roll] = (), owner: str = "") -> Chain:
        """Names no stored state: nothing is stored under this layout."""
        chain = Chain(self.identity.encode(), self.config.page_tokens, owner)
        chain.rolls += rolls
        return chain

    async def snapshot(self, seq: Sequence, is_followed: bool = False) -> Snapshot | None:
        """There is none."""
        return None

    async def park(self, seq: Sequence, stored: Stored | None) -> bool:
        """A list of tokens has no memory to give back."""
        return False

    async def check(self, constraint: Constraint) -> None:
        """Raises EngineError: a grammar cannot be held from here."""
        raise EngineError(f"{self.identity} cannot hold its answer to a format")

    async def aclose(self) -> None:
        await self._wire.close()

    def _add(self, seq: Sequence, ids: list[int]) -> None:
        seq.token_ids += ids
        seq.num_tokens = len(seq.token_ids)
