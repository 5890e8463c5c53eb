"""One request to a model: tokens are read with progress, in stretches between which something may be done, and sampled.

Owns the order and the clock. Must not know what the tokens mean.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from collections.abc import Sequence as Items
from contextlib import aclosing
from typing import Any

from holdfast.agent.events import PrefillProgress, Usage
from holdfast.agent.models.model import Model
from holdfast.engine import SamplingParams, Sequence


async def generate(
    model: Model,
    seq: Sequence,
    ids: Items[int],
    params: SamplingParams | None,
    usage: Usage,
    places: Iterable[int] = (),
    at_place: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[PrefillProgress | int, None]:
    """Make `ids` the tokens of `seq`, whose beginning it has, and sample; nothing is sampled without `params`.

    At each of `places`, positions in `ids` in order, the sequence is idle while `at_place` is waited for. Gives
    progress of all that is read here, then tokens. Counts the seconds spent waiting for first and for later tokens into
    `usage`.
    """
    first, started = seq.num_tokens, time.perf_counter()

    def progress() -> Progress:
        return Progress(seq.num_tokens - first, len(ids) - first)

    for place in places:
        reading = progress()
        feeding = asyncio.ensure_future(model.feed(seq, list(ids[len(seq.token_ids) : place]), reading.report))
        async with aclosing(reading.until(feeding)) as updates:
            async for update in updates:
                yield update
        feeding.result()
        if at_place is not None:
            await at_place()
    if params is not None:
        reading = progress()
        sampled = model.extend(seq, list(ids[len(seq.token_ids) :]), params, reading.report)
        async with aclosing(sampled) as tokens:  # type: ignore[type-var]
            one = asyncio.ensure_future(anext(tokens, None))
            async with aclosing(reading.until(one)) as updates:
                async for update in updates:
                    yield update
            token = one.result()
            usage.prefill_s += time.perf_counter() - started
            while token is not None:
                yield token
                started = time.perf_counter()
                token = await anext(tokens, None)
                usage.decode_s += time.perf_counter() - started


class Progress:
    """The progress of one request that reads `total` tokens together with others, `before` of which came before it."""

    def __init__(self, before: int, total: int):
        self._before, self._total = before, total
        self._updates: asyncio.Queue[PrefillProgress | None] = asyncio.Queue()

    def report(self, done: int, _: int) -> None:
        """Take in what the model has read; the model calls it."""
        self._updates.put_nowait(PrefillProgress(done=self._before + done, total=self._total))

    async def until(self, request: "asyncio.Future[Any]") -> AsyncGenerator[PrefillProgress, None]:
        """What was reported up to the request's end; it is cancelled, and over, when this is closed."""
        request.add_done_callback(lambda _: self._updates.put_nowait(None))
        try:
            while (update := await self._updates.get()) is not None:
                yield update
        finally:
            request.cancel()
            await asyncio.wait({request})
