"""One response of the plain model: state, prefill, sampling, and how it ends. Must not know which clients follow it."""

import asyncio
import logging
from array import array
from contextlib import aclosing
from dataclasses import dataclass

from holdfast.agent.encoding.deltas import TextDelta
from holdfast.agent.encoding.encode import USER
from holdfast.agent.encoding.parse import StreamParser
from holdfast.agent.events import PrefillProgress, Usage
from holdfast.agent.models.generate import generate
from holdfast.agent.models.opened import AnyModel
from holdfast.agent.server.responses.items import fingerprints, messages_of
from holdfast.agent.server.responses.output import Output
from holdfast.agent.server.responses.request import full_name, namespaces_of
from holdfast.agent.server.responses.resident import FEED_TOKENS, Sequences
from holdfast.agent.server.responses.response import End, Response
from holdfast.engine import EngineError, SamplingParams, Sequence
from holdfast.memory import StoreError

log = logging.getLogger("holdfast.server")


@dataclass(frozen=True)
class Generation:
    """What to feed after the `ids` of a response, and how to sample; without `params` nothing is sampled."""

    ids: list[int]
    params: SamplingParams | None
    is_thinking: bool = False
    stop: tuple[str, ...] = ()


class Writing:
    """The message that the model writes, up to where it stops."""

    def __init__(self, response: Response, generation: Generation, engine: AnyModel):
        self.output = Output(response.emit, response.id, namespaces_of(response.object["tools"]))
        self.usage = Usage(context_limit=engine.max_context)
        self.reasoning_tokens = 0
        self.is_cut = True  # sampling stopped before the end of the message
        is_held = generation.params is not None and generation.params.constraint is not None
        self._parser = StreamParser(generation.is_thinking, in_pieces=True, unwraps=not is_held)
        self._decoded = engine.tokenizer.stream()
        self._stops = StopTexts(generation.stop)

    def token(self, token: int) -> bool:
        """Add a sampled token; gives whether the message has ended."""
        self.usage.output_tokens += 1
        self._read(self._decoded.add(token))
        self.reasoning_tokens += self.output.is_reasoning
        is_ended = self._parser.ended or self.stopped_by is not None
        self.is_cut = not is_ended
        return is_ended

    @property
    def stopped_by(self) -> str | None:
        """The stop text at which the message ended, if any."""
        return self._stops.found

    def finish(self) -> None:
        """End the message: no more tokens come."""
        if self.stopped_by is None:
            for delta in self._parser.finish().tail:
                self.output.add(delta)
            if rest := self._stops.rest():
                self.output.add(TextDelta(rest))
        self.output.close(is_cut=self.is_cut)

    def _read(self, text: str) -> None:
        for delta in self._parser.feed(text):
            if isinstance(delta, TextDelta):
                if shown := self._stops.add(delta.text):
                    self.output.add(TextDelta(shown))
                if self.stopped_by is not None:
                    return
            else:
                self.output.add(delta)


class StopTexts:
    """The texts at which an answer ends, without being part of it. Text that may become one is held back."""

    def __init__(self, stops: tuple[str, ...]):
        self._stops, self._held = stops, ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Add text; gives what can be shown."""
        text = self._held + text
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            (place, self.found), self._held = min(found), ""
            return text[:place]
        num_held = max((n for stop in self._stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


async def run(
    response: Response, generation: Generation, engine: AnyModel, sequences: Sequences
) -> tuple[End, Sequence | None]:
    """Sample the response; gives its end and its sequence, if it got one. Raises only if the server stops."""
    response.emit_object("response.in_progress")
    writing = Writing(response, generation, engine)
    held: list[Sequence] = []
    error: str | None = None
    try:
        await response.run(_sample(response, generation, writing, engine, sequences, held))
    except asyncio.CancelledError:
        if not response.is_cancelled:
            raise
    except (EngineError, StoreError) as e:
        log.warning("%s: %s", response.id, e)
        error = str(e)
    writing.finish()
    seq = held[0] if held else None
    ids = None
    if seq is not None and generation.params is not None and error is None:
        ids = await asyncio.to_thread(array, "i", seq.token_ids)
    return _end(response, writing, ids, error), seq


async def _sample(
    response: Response,
    generation: Generation,
    writing: Writing,
    engine: AnyModel,
    sequences: Sequences,
    held: list[Sequence],
) -> None:
    """Feed and sample. The sequence is put into `held`, where it stays if this is cancelled."""
    params = generation.params
    ids = await asyncio.to_thread(lambda: [*response.ids, *generation.ids])
    seq = await sequences.claim(response, ids, writing.usage)
    held.append(seq)
    first = seq.num_tokens
    end = len(ids) - (params is not None)
    kept = _places_to_keep(response, engine, ids, seq, end)
    stops = {*kept, end} if params is None else set(kept)  # up to the last it is fed in parts
    places = sorted(stops | {*range(first + FEED_TOKENS, max(stops, default=0), FEED_TOKENS)})

    async def keep() -> None:
        if len(seq.token_ids) in kept:
            await sequences.beginnings.keep(response.owner, seq, is_followed=True)

    async with aclosing(generate(engine, seq, ids, params, writing.usage, places, keep)) as items:
        async for item in items:
            if isinstance(item, PrefillProgress):
                response.emit_own("prefill.progress", {"done": first + item.done, "total": first + item.total})
            elif writing.token(item) or response.steering:
                return
    # what is only read is never cut; a grammar may have come to its end without a stop token
    writing.is_cut = params is not None and not seq.is_complete


def _places_to_keep(response: Response, engine: AnyModel, ids: list[int], seq: Sequence, end: int) -> list[int]:
    """The positions whose state other conversations may start from: before the first user message, up to which they
    share instructions and tools, and at the end of the input. Each at least a page after the one before."""
    user_id = engine.tokenizer.token_id(USER)
    is_new = response.before is None and user_id in ids
    places = [*([ids.index(user_id)] if is_new and user_id is not None else []), end]
    kept: list[int] = []
    for place in places:
        if place <= end and place >= (kept[-1] if kept else seq.num_tokens) + engine.config.page_tokens:
            kept.append(place)
    return kept


def _end(response: Response, writing: Writing, ids: "array[int] | None", error: str | None) -> End:
    """How the response has ended."""
    items = writing.output.items
    said = messages_of(items, is_first=False, answers_calls=False).messages
    status, reason = _status(response, writing)
    end = End(
        status=status,
        reason=reason,
        output=items,
        usage=writing.usage,
        reasoning_tokens=writing.reasoning_tokens,
        digest=fingerprints(response.digest, said)[-1] if said else None,
        ids=ids,
        calls={item["call_id"]: full_name(item) for item in items if item["type"] == "function_call"},
        stopped_by=writing.stopped_by,
    )
    return end if error is None else end.failed(error)


def _status(response: Response, writing: Writing) -> tuple[str, str | None]:
    """The status of a response that did not fail, and why it is incomplete."""
    if response.is_cancelled:
        return response.cancelled_status, None
    if writing.is_cut or any(item["status"] == "incomplete" for item in writing.output.items):
        return "incomplete", "steered" if response.steering else "max_output_tokens" if writing.is_cut else None
    return "completed", None
