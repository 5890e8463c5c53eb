"""The loop of one turn: feed the model, stream what it says, run the calls it makes, and again until it answers.

Owns the order of things: tokens and events are in the log before a model request or a tool's side effect, and before
they are yielded. Must not know how a turn begins or ends (session) nor how an event is drawn.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from holdfast.agent.config import Settings
from holdfast.agent.encoding.call_grammar import begins_calls, calls_constraint, only_in_calls
from holdfast.agent.encoding.encode import USER, ProtocolTexts, encode_continuation, encode_messages
from holdfast.agent.encoding.parse import Delta, StreamParser, TextDelta, ThinkingDelta, ToolCallParsed
from holdfast.agent.events import (
    ApprovalNeeded,
    Error,
    Event,
    FileChange,
    Notice,
    PrefillProgress,
    Rolled,
    Shown,
    Text,
    Thinking,
    ToolCallMade,
    ToolResultGiven,
    TurnDone,
    Usage,
    entry,
)
from holdfast.agent.models.rolling import droppable, next_roll, rolled_out
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.threads import to_end
from holdfast.engine import Constraint, Engine, Roll, SamplingParams, Sequence
from holdfast.memory import LoggedEvent, SessionLog
from holdfast.tools import Cancellation, Tool, ToolCall, ToolResult, Workspace, run_tool

SYSTEM_TEXT = "You are holdfast, a coding agent. Use the tools to read and change the files of this workspace."
MAX_REFUSED_STEPS = 3  # calls that no tool accepts, in steps on end, before the turn is given up
ANSWER_SHARE = 8  # of the context: the room for an answer that is made before it, if the model may write that much
ANSWER_TOKENS = 64  # room that a prompt or a tool result must leave for the model's next words

Message = dict[str, Any]


def opening(tools: Mapping[str, Tool]) -> Message:
    """The first message of every session."""
    schemas = [{"type": "function", "function": tool.schema()} for tool in tools.values()]
    return {"role": "system", "content": SYSTEM_TEXT, "tools": schemas}


def shown_in(events: Iterable[LoggedEvent]) -> dict[str, int]:
    """Digests of the files that the model was shown on a branch, each as it was shown last."""
    shown: dict[str, int] = {}
    for event in events:
        if event.type == "shown":
            shown |= Shown.model_validate(event.payload).files
    return shown


async def _nothing() -> None:
    pass


@dataclass
class Live:
    """What a turn of one session works on. The log may be ahead of the sequence, never behind it."""

    engine: Engine
    seq: Sequence
    log: SessionLog
    texts: ProtocolTexts
    workspace: Workspace
    tools: Mapping[str, Tool]
    approvals: Approvals
    settings: Settings
    rolls: list[Roll]  # that the log went through
    shared_tokens: int = 0  # where a new session is saved for others that begin alike
    checkpoint: Callable[[], Awaitable[None]] = _nothing  # called between steps, when the sequence is idle

    def encode(self, messages: list[Message]) -> list[int]:
        """Tokens that put these messages after the log, up to where the model goes on. Raises TooManyTokens for a text that
        no context holds."""
        tokenizer, mode, most = self.engine.tokenizer, self.settings.thinking_mode, self.engine.max_context
        if not self.log.ids:
            opened = [opening(self.tools), *messages]
            return tokenizer.encode_pieces(encode_messages(opened, texts=self.texts, thinking_mode=mode), most)
        # a message of the model that was cut short must end like any other
        end = [] if self.log.ids[-1] == tokenizer.eos_id else [tokenizer.eos_id]
        return end + tokenizer.encode_pieces(encode_continuation(messages, thinking_mode=mode), most)

    @cached_property
    def calls(self) -> Constraint | None:
        """What a block of calls is held to from its first token on; None for a vocabulary that has none for calls."""
        tokenizer = self.engine.tokenizer
        is_possible = self.tools and begins_calls(tokenizer)
        return calls_constraint(tokenizer, [tool.schema() for tool in self.tools.values()]) if is_possible else None

    @property
    def stop_ids(self) -> frozenset[int]:
        """End of sentence, and the user's turn in case the model begins to write it."""
        tokenizer = self.engine.tokenizer
        user_id = tokenizer.token_id(USER)
        return frozenset({tokenizer.eos_id} if user_id is None else {tokenizer.eos_id, user_id})

    @property
    def context_used(self) -> int:
        """Tokens of the log that are in the window."""
        return len(self.log.ids) - self.seq.dropped_tokens

    @property
    def room(self) -> int:
        """Tokens that may still be added to the context if the model is to answer, rolling if need be."""
        return self.engine.max_context - self.context_used + droppable(self.engine, self.seq) - ANSWER_TOKENS

    def context_full(self) -> Error:
        limit = self.engine.max_context
        return Error(
            message=f"the context is full: this session holds {self.context_used} of {limit} tokens;"
            " start a fresh one with --new"
        )


@dataclass
class Step:
    """One message of the model, as far as it has come."""

    thinking: str = ""
    text: str = ""
    calls: list[ToolCallParsed] = field(default_factory=list)
    made: list[ToolCallMade] = field(default_factory=list)  # the calls as events, once they are complete
    is_cut: bool = True  # it did not reach its end of sentence

    def add(self, delta: Delta) -> Text | Thinking | None:
        """Take a piece in; returns the event to show at once, if any."""
        if isinstance(delta, ThinkingDelta):
            self.thinking += delta.text
            return Thinking(delta=delta.text)
        if isinstance(delta, TextDelta):
            self.text += delta.text
            return Text(delta=delta.text)
        if isinstance(delta, ToolCallParsed):
            self.calls.append(delta)
        return None

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """What the event log keeps of it."""
        said: list[Event] = [Thinking(delta=self.thinking)] if self.thinking else []
        said += [Text(delta=self.text)] if self.text else []
        return [entry(event) for event in [*said, *self.made]]


async def run_turn(live: Live, usage: Usage) -> AsyncGenerator[Event, None]:
    """From the tokens that the log has and the sequence has not, to the model's answer.

    The last event is TurnDone or Error, and the caller logs it; all others are in the log already.
    """
    num_refused = 0
    for _ in range(live.settings.max_steps):
        await live.checkpoint()
        for event in await _make_room(live):
            yield event
        step = Step()
        async with aclosing(_speak(live, usage, step)) as events:
            async for event in events:
                yield event
        if not step.calls:
            for event in _ending(live, usage, step):
                yield event
            return
        results = []
        async with aclosing(_answer_calls(live, usage, step)) as events:
            async for event in events:
                results += [event] if isinstance(event, ToolResultGiven) else []
                yield event
        num_refused = 0 if all(is_acceptable(live.tools, call) for call in step.calls) else num_refused + 1
        if num_refused > MAX_REFUSED_STEPS:
            yield Error(
                message=f"the model made {num_refused} calls in a row that no tool accepts, the last one: {results[-1].output};"
                " put the request in other words, or use a larger model"
            )
            return
        ids = live.encode([tool_message(result) for result in results])
        if len(ids) > live.room:
            yield live.context_full()
            return
        await to_end(live.log.append, [], ids)
        usage.new += len(ids)
    yield Error(message=f"no answer after {live.settings.max_steps} rounds of tool calls; ask again to let it go on")


async def _make_room(live: Live) -> list[Event]:
    """Roll if what waits and an answer of some length would not fit; what to tell the user."""
    engine, seq = live.engine, live.seq
    answer = min(live.settings.max_output_tokens, engine.max_context // ANSWER_SHARE)
    missing = live.context_used + answer - engine.max_context
    roll = next_roll(engine, seq, missing) if missing > 0 else None
    if roll is None:
        return []
    await engine.roll(seq, roll)
    live.rolls.append(roll)
    rolled = Rolled(position=roll.position, first_kept=roll.first_kept, head_tokens=roll.head_tokens)
    await to_end(live.log.append, [entry(rolled)])
    last = rolled_out(live.log.turn_list(), roll.first_kept)
    text = f"the context was full: its oldest tokens left the window, {live.context_used:,} stay"
    return [Notice(message=f"{text}; turns up to {last} are found by recall")] if last else [Notice(message=text)]


def tool_message(result: ToolResultGiven) -> Message:
    """A result as the encoding takes it."""
    return {"role": "tool", "tool_call_id": result.id, "content": result.output}


def is_acceptable(tools: Mapping[str, Tool], call: ToolCallParsed) -> bool:
    """Whether the call is whole, of a known tool, and its arguments fit: only such a call is asked about and run."""
    tool = tools.get(call.name)
    if call.malformed is not None or tool is None:
        return False
    try:
        tool.parameters.model_validate(json.loads(call.arguments_json))
    except (ValueError, RecursionError):
        return False
    return True


class Progress:
    """Of one request that reads `total` tokens together with others, `before` of which came before it."""

    def __init__(self, before: int, total: int):
        self._before, self._total = before, total
        self._updates: asyncio.Queue[PrefillProgress | None] = asyncio.Queue()

    def report(self, done: int, _: int) -> None:
        """What the engine calls."""
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


async def _speak(live: Live, usage: Usage, step: Step) -> AsyncGenerator[Event, None]:
    """Let the model write its next message; fill `step`. However this ends, what was sampled is in the log."""
    log, seq, tokenizer = live.log, live.seq, live.engine.tokenizer
    parser = StreamParser(thinking=live.settings.thinking_mode == "thinking")
    decoded = tokenizer.stream()
    try:
        async with aclosing(_sample(live, usage)) as items:
            async for item in items:
                if isinstance(item, PrefillProgress):
                    yield item
                    continue
                for delta in parser.feed(decoded.add(item)):
                    if event := step.add(delta):
                        yield event
                if parser.ended:
                    step.is_cut = False
                    break
        for delta in parser.finish().tail:
            if event := step.add(delta):
                yield event
        position = len(log.ids)  # grows from step to step, so the ids are unique in the session
        step.made = [
            ToolCallMade(id=f"call_{position}_{number}", name=call.name, arguments=call.arguments_json)
            for number, call in enumerate(step.calls, start=1)
        ]
    finally:
        sampled = seq.token_ids[len(log.ids) :]
        usage.output_tokens += len(sampled)
        await to_end(log.append, step.entries(), sampled)
    for call in step.made:
        yield call


async def _sample(live: Live, usage: Usage) -> AsyncGenerator[PrefillProgress | int, None]:
    """Progress of the prefill, then sampled tokens; counts the seconds spent waiting for each."""
    total = len(live.log.ids) - live.seq.num_tokens
    async with aclosing(_feed_ahead(live, usage, total)) as fed:
        async for update in fed:
            yield update
    waiting = live.log.ids[len(live.seq.token_ids) :].tolist()
    before = total - (len(live.log.ids) - live.seq.num_tokens)
    params = SamplingParams(
        temperature=live.settings.temperature,
        max_tokens=min(live.settings.max_output_tokens, live.engine.max_context - live.context_used),
        stop_ids=live.stop_ids,
        never=only_in_calls(live.engine.tokenizer),
        constraint=live.calls,
        begins=begins_calls(live.engine.tokenizer),
    )
    progress = Progress(before, total)
    sampled = live.engine.extend(live.seq, waiting, params, on_prefill=progress.report)
    async with aclosing(sampled) as tokens:  # type: ignore[type-var]
        started = time.perf_counter()
        first = asyncio.ensure_future(anext(tokens, None))
        async with aclosing(progress.until(first)) as updates:
            async for update in updates:
                yield update
        token = first.result()
        usage.prefill_s += time.perf_counter() - started
        while token is not None:
            yield token
            started = time.perf_counter()
            token = await anext(tokens, None)
            usage.decode_s += time.perf_counter() - started


async def _feed_ahead(live: Live, usage: Usage, total: int) -> AsyncGenerator[PrefillProgress, None]:
    """Feed a long prompt up to its last stretch, and save on the way, at multiples of `save_every`.

    Only there does the tail end with a block of every layer, which makes it small. A new session is also saved at the
    end of what it shares with others.
    """
    every, started = live.settings.save_every, time.perf_counter()
    while True:
        fed = len(live.seq.token_ids)
        end = live.shared_tokens if fed < live.shared_tokens else (fed // every + 1) * every
        if end >= len(live.log.ids):
            break
        progress = Progress(total - (len(live.log.ids) - live.seq.num_tokens), total)
        ids = live.log.ids[len(live.seq.token_ids) : end].tolist()
        feeding = asyncio.ensure_future(live.engine.feed(live.seq, ids, progress.report))
        async with aclosing(progress.until(feeding)) as updates:
            async for update in updates:
                yield update
        feeding.result()
        await live.checkpoint()
    usage.prefill_s += time.perf_counter() - started


def _ending(live: Live, usage: Usage, step: Step) -> list[Event]:
    """The events after a message without calls: the answer, or why it is none."""
    if step.is_cut and live.context_used >= live.engine.max_context:
        return [live.context_full()]
    usage.context_used = live.context_used
    assert live.log.open_turn is not None
    done = TurnDone(session=live.log.session.name, turn=live.log.open_turn, text=step.text, usage=usage)
    limit = live.settings.max_output_tokens
    return [Notice(message=f"the answer was cut at {limit} tokens"), done] if step.is_cut else [done]


async def _answer_calls(live: Live, usage: Usage, step: Step) -> AsyncGenerator[Event, None]:
    """One ToolResultGiven for each call, in order and in the log before it is yielded; runs what may run."""
    room = live.room
    for call, made in zip(step.calls, step.made, strict=True):
        refusal = None
        if call.malformed is not None:
            refusal = f"error: malformed tool call: {call.malformed}"
        elif is_acceptable(live.tools, call) and not live.approvals.allows(live.tools[call.name].risk):
            approved = False
            if live.approvals.asks:
                needed = ApprovalNeeded(**made.model_dump(exclude={"type"}))
                await to_end(live.log.append, [entry(needed)])
                yield needed
                approved = await live.approvals.ask(needed)
            refusal = None if approved else live.approvals.refusal(call.name)
        if refusal is None:
            result = await _run(live, usage, ToolCall(made.id, call.name, call.arguments_json), room)
        else:
            result = ToolResultGiven(id=made.id, ok=False, output=refusal, refused=call.malformed is None)
            await to_end(live.log.append, [entry(result)])
        room -= len(live.engine.tokenizer.encode(result.output))
        yield result


async def _run(live: Live, usage: Usage, call: ToolCall, room: int) -> ToolResultGiven:
    """Run a call on a thread. Cancelled, it tells the tool, and still waits: what has begun must have a known outcome."""
    started, cancellation = time.perf_counter(), Cancellation()
    running = asyncio.ensure_future(asyncio.to_thread(run_tool, live.tools, call, cancellation))
    try:
        await asyncio.shield(running)
    finally:
        cancellation.set()
        await asyncio.wait({running})
        usage.tools_s += time.perf_counter() - started
        result = _result(live, running.result(), room)
        shown = live.workspace.take_shown()
        await to_end(live.log.append, [entry(result), *([entry(Shown(files=shown))] if shown else [])])
    return result


def _result(live: Live, result: ToolResult, room: int) -> ToolResultGiven:
    """The result as text that the model can read: valid Unicode, and no longer than the context has room for."""
    output = result.output.encode(errors="replace").decode()
    num_tokens = len(live.engine.tokenizer.encode(output))
    if num_tokens > room:
        output = f"(the call ran, but its output of {num_tokens} tokens does not fit into the {max(room, 0)} left; ask for less)"
    changed = tuple(FileChange(**asdict(change)) for change in live.workspace.take_changes())
    return ToolResultGiven(id=result.id, ok=result.ok, output=output, changed=changed)
