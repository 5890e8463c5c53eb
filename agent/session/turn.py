"""The loop of one turn: feed the model, stream what it says, run the calls it makes, and again until it answers.

Owns the order of things: tokens and events are in the log before a model request or a tool's side effect, and before
they are yielded. Must not know how a turn begins or ends (session) nor how an event is drawn.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from holdfast.agent.config import Settings
from holdfast.agent.encoding.call_grammar import begins_calls, calls_constraint, only_in_calls
from holdfast.agent.encoding.deltas import Delta, TextDelta, ThinkingDelta, ToolCallParsed
from holdfast.agent.encoding.encode import ProtocolTexts, encode_continuation, encode_messages
from holdfast.agent.encoding.parse import StreamParser, stop_ids
from holdfast.agent.events import (
    Answer,
    ApprovalNeeded,
    CommandEnd,
    Error,
    Event,
    FileChange,
    Notice,
    PrefillProgress,
    Shown,
    Text,
    Thinking,
    ToolCallMade,
    ToolOutput,
    ToolResultGiven,
    TurnDone,
    Usage,
    entry,
)
from holdfast.agent.models.rolling import rolled_out
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.permissions.rules import RuleError, rule_of
from holdfast.agent.permissions.rules_file import BrokenRules, WorkspaceRules
from holdfast.agent.session.approvals import Approvals, Decision, Verdict, answered, question, refuse
from holdfast.agent.session.undo import FileHistory
from holdfast.agent.session.window import ContextWindow
from holdfast.agent.threads import to_end
from holdfast.engine import Constraint, ContextFull, SamplingParams
from holdfast.memory import LoggedEvent, SessionLog
from holdfast.tools import (
    Budget,
    CheckedCall,
    Context,
    Permission,
    Result,
    Risk,
    Seen,
    Shell,
    Tool,
    ToolError,
    Workspace,
    check_call,
    read_call,
)

SYSTEM_TEXT = "You are holdfast, a coding agent. Use the tools to read and change the files of this workspace."
MAX_REFUSED_STEPS = 3  # calls that no tool accepts, in steps on end, before the turn is given up
ANSWER_SHARE = 8  # of the context: the room for an answer that is made before it, if the model may write that much
ANSWER_TOKENS = 64  # room that a prompt or a tool result must leave for the model's next words

Message = dict[str, Any]


def opening(tools: Mapping[str, Tool]) -> Message:
    """The first message of every session."""
    schemas = [{"type": "function", "function": tool.schema()} for tool in tools.values()]
    return {"role": "system", "content": SYSTEM_TEXT, "tools": schemas}


def shown_in(events: Iterable[LoggedEvent]) -> dict[str, Seen]:
    """The files that the model was shown on a branch, each as it was shown last."""
    seen: dict[str, Seen] = {}
    for event in events:
        if event.type == "shown":
            shown = Shown.model_validate(event.payload)
            seen |= {path: Seen(digest, shown.lines.get(path, ())) for path, digest in shown.files.items()}
    return seen


@dataclass
class Toolbox:
    """What the calls of a session work with."""

    workspace: Workspace
    tools: Mapping[str, Tool]
    approvals: Approvals
    rules: WorkspaceRules
    shell: Shell
    history: FileHistory


@dataclass
class Turn:
    """What a turn works on, and what it has cost."""

    log: SessionLog
    window: ContextWindow
    toolbox: Toolbox
    settings: Settings
    texts: ProtocolTexts
    usage: Usage

    @property
    def room(self) -> int:
        """Tokens that may still be added to the context if the model is to answer."""
        return self.window.free - ANSWER_TOKENS

    def encode(self, messages: list[Message]) -> list[int]:
        """Tokens that put these messages after the log, up to where the model goes on.

        Raises TooManyTokens for a text that no context holds.
        """
        model, mode = self.window.model, self.settings.thinking_mode
        tokenizer, most = model.tokenizer, model.max_context
        if not self.log.ids:
            opened = [opening(self.toolbox.tools), *messages]
            return tokenizer.encode_pieces(encode_messages(opened, texts=self.texts, thinking_mode=mode), most)
        # a message of the model that was cut short must end like any other
        end = [] if self.log.ids[-1] == tokenizer.eos_id else [tokenizer.eos_id]
        return end + tokenizer.encode_pieces(encode_continuation(messages, thinking_mode=mode), most)

    @cached_property
    def calls(self) -> Constraint | None:
        """The grammar of a block of calls from its first token on; None if the vocabulary has no tokens for calls."""
        tokenizer, tools = self.window.model.tokenizer, self.toolbox.tools
        is_possible = tools and begins_calls(tokenizer)
        return calls_constraint(tokenizer, [tool.schema() for tool in tools.values()]) if is_possible else None

    def sampling(self) -> SamplingParams:
        """How the model's next message is sampled: up to its end, with calls that fit the tools."""
        tokenizer, settings = self.window.model.tokenizer, self.settings
        return SamplingParams(
            temperature=settings.temperature,
            max_tokens=min(settings.max_output_tokens, self.window.model.max_context - self.window.used),
            stop_ids=stop_ids(tokenizer),
            never=only_in_calls(tokenizer),
            constraint=self.calls,
            begins=begins_calls(tokenizer),
        )

    def context_full(self) -> Error:
        return Error(
            message=f"the context is full: this session holds {self.window.used} of"
            f" {self.window.model.max_context} tokens;"
            " start a fresh one with --new"
        )


@dataclass
class Reply:
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


async def run_turn(turn: Turn) -> AsyncGenerator[Event, None]:
    """From the tokens that the log has and the sequence has not, to the model's answer.

    The last event is TurnDone or Error, and the caller logs it; all others are in the log already.
    """
    num_refused = 0
    for _ in range(turn.settings.max_steps):
        await turn.window.checkpoint()
        for event in await _make_room(turn):
            yield event
        reply = Reply()
        try:
            async with aclosing(_speak(turn, reply)) as events:
                async for event in events:
                    yield event
        except ContextFull as e:  # of an endpoint, whose context is less than was thought
            has_spoken = reply.text or reply.thinking
            if has_spoken or not (notices := await _roll(turn, turn.window.used // 2)):
                raise
            yield Notice(message=str(e))
            for event in notices:
                yield event
            continue
        if not reply.calls:
            for event in _turn_end(turn, reply):
                yield event
            return
        results = []
        async with aclosing(_answer_calls(turn, reply)) as events:
            async for event in events:
                results += [event] if isinstance(event, ToolResultGiven) else []
                yield event
        num_refused = 0 if all(is_acceptable(turn.toolbox.tools, call) for call in reply.calls) else num_refused + 1
        if num_refused > MAX_REFUSED_STEPS:
            yield Error(
                message=f"the model made {num_refused} calls in a row that no tool accepts,"
                f" the last one: {results[-1].output};"
                " put the request in other words, or use a larger model"
            )
            return
        ids = turn.encode([tool_message(result) for result in results])
        if len(ids) > turn.room:
            yield turn.context_full()
            return
        await to_end(turn.log.append, [], ids)
        turn.usage.new += len(ids)
    yield Error(message=f"no answer after {turn.settings.max_steps} rounds of tool calls; ask again to let it go on")


async def _make_room(turn: Turn) -> list[Event]:
    """Roll if what waits and an answer of some length would not fit; what to tell the user."""
    limit = turn.window.model.max_context
    answer = min(turn.settings.max_output_tokens, limit // ANSWER_SHARE)
    return await _roll(turn, turn.window.used + answer - limit)


async def _roll(turn: Turn, missing: int) -> list[Event]:
    """Roll so that so many tokens have room, if that can be; what to tell the user."""
    roll = await turn.window.make_room(missing)
    if roll is None:
        return []
    last = rolled_out(turn.log.turn_list(), roll.first_kept)
    text = f"the context was full: its oldest tokens left the window, {turn.window.used:,} stay"
    return [Notice(message=f"{text}; turns up to {last} are found by recall")] if last else [Notice(message=text)]


def tool_message(result: ToolResultGiven) -> Message:
    """A result as the encoding takes it."""
    return {"role": "tool", "tool_call_id": result.id, "content": result.output}


def is_acceptable(tools: Mapping[str, Tool], call: ToolCallParsed) -> bool:
    """Whether the call is whole, of a known tool, and its arguments fit: only such a call is asked about and run."""
    try:
        read_call(tools, call.name, call.arguments_json)
    except ToolError:
        return False
    return call.malformed is None


async def _speak(turn: Turn, reply: Reply) -> AsyncGenerator[Event, None]:
    """Let the model write its next message; fill `reply`. However this ends, what was sampled is in the log."""
    log, seq, tokenizer = turn.log, turn.window.seq, turn.window.model.tokenizer
    parser = StreamParser(thinking=turn.settings.thinking_mode == "thinking")
    decoded = tokenizer.stream()
    try:
        async with aclosing(turn.window.generate(turn.usage, turn.sampling())) as items:
            async for item in items:
                if isinstance(item, PrefillProgress):
                    yield item
                    continue
                for delta in parser.feed(decoded.add(item)):
                    if event := reply.add(delta):
                        yield event
                if parser.ended:
                    reply.is_cut = False
                    break
        for delta in parser.finish().tail:
            if event := reply.add(delta):
                yield event
        position = len(log.ids)  # grows from message to message, so the ids are unique in the session
        reply.made = [
            ToolCallMade(id=f"call_{position}_{number}", name=call.name, arguments=call.arguments_json)
            for number, call in enumerate(reply.calls, start=1)
        ]
    finally:
        sampled = seq.token_ids[len(log.ids) :]
        turn.usage.output_tokens += len(sampled)
        await to_end(log.append, reply.entries(), sampled)
    for call in reply.made:
        yield call


def _turn_end(turn: Turn, reply: Reply) -> list[Event]:
    """The events after a message without calls: the answer, or why it is none."""
    if reply.is_cut and turn.window.used >= turn.window.model.max_context:
        return [turn.context_full()]
    turn.usage.context_used = turn.window.used
    turn.window.settle(turn.usage)
    assert turn.log.open_turn is not None
    done = TurnDone(session=turn.log.session.name, turn=turn.log.open_turn, text=reply.text, usage=turn.usage)
    limit = turn.settings.max_output_tokens
    return [Notice(message=f"the answer was cut at {limit} tokens"), done] if reply.is_cut else [done]


async def _answer_calls(turn: Turn, reply: Reply) -> AsyncGenerator[Event, None]:
    """Run what may run. Each call gives what it puts out and one ToolResultGiven, which is in the log before that."""
    room = turn.room

    def count_tokens(text: str) -> int:
        return len(turn.window.model.tokenizer.encode(text))

    for call, made in zip(reply.calls, reply.made, strict=True):
        context = Context(turn.toolbox.workspace, budget=Budget(room, count_tokens))
        checked, decision = await _decide(turn, call, context)
        if decision.verdict is Verdict.ASK:
            needed = question(made, checked.permission)
            await to_end(turn.log.append, [entry(needed)])
            yield needed
            answer = await turn.toolbox.approvals.ask(needed)
            if notice := await _remember(turn, needed, answer):
                yield notice
            decision = answered(call.name, answer)
        if decision.verdict is not Verdict.RUN:
            refused = ToolResultGiven(id=made.id, ok=False, output=decision.why, refused=True)
            await to_end(turn.log.append, [entry(refused)])
            room -= count_tokens(refused.output)
            yield refused
            continue
        async with aclosing(_run(turn, made.id, checked, context)) as events:
            async for event in events:
                room -= count_tokens(event.output) if isinstance(event, ToolResultGiven) else 0
                yield event


async def _decide(turn: Turn, call: ToolCallParsed, context: Context) -> tuple[CheckedCall, Decision]:
    """What the call would do, and whether it may, by the rules as they are now."""
    toolbox = turn.toolbox
    try:
        rules = await asyncio.to_thread(toolbox.rules.load)
    except BrokenRules as e:
        return CheckedCall(Permission(Risk.READ, refusal=str(e))), refuse(call.name, str(e))
    toolbox.workspace.set_denied(rules.denied_path)
    checked = await _check(turn, call, context)
    if toolbox.workspace.take_denied():
        return checked, Decision(Verdict.REFUSE, f"error: {checked.permission.refusal}")
    return checked, await asyncio.to_thread(toolbox.approvals.decide, call.name, checked.permission, rules)


async def _remember(turn: Turn, asked: ApprovalNeeded, answer: Answer) -> Notice | None:
    """Do what `always` says: another mode, or a rule. A notice where that cannot be; the call runs all the same."""
    if not answer.approve or not answer.always:
        return None
    if asked.always_mode:
        turn.toolbox.approvals.mode.set(Policy(asked.always_mode))
    if asked.always_rule:
        try:
            await to_end(turn.toolbox.rules.remember, rule_of(asked.always_rule))
        except (BrokenRules, RuleError, OSError) as e:
            return Notice(message=f"the rule was not written: {e}")
    return None


async def _check(turn: Turn, call: ToolCallParsed, context: Context) -> CheckedCall:
    """What the call would do; one that came damaged does nothing, and is told why."""
    if call.malformed is not None:
        return CheckedCall(Permission(Risk.READ, refusal=f"malformed tool call: {call.malformed}"))
    return await check_call(turn.toolbox.tools, call.name, call.arguments_json, context)


async def _run(
    turn: Turn, id_: str, call: CheckedCall, context: Context
) -> AsyncGenerator[ToolOutput | ToolResultGiven, None]:
    """Run a call: what it puts out, and its result, which is in the log before it is yielded.

    Cancelled or closed, it tells the tool, and still waits: what has begun must have a known outcome.
    """
    outputs: asyncio.Queue[str | None] = asyncio.Queue()
    started = time.perf_counter()
    running = asyncio.ensure_future(call.run(replace(context, emit=outputs.put_nowait)))
    running.add_done_callback(lambda _: outputs.put_nowait(None))
    try:
        while (output := await outputs.get()) is not None:
            yield ToolOutput(id=id_, delta=output)
    finally:
        context.cancelled.set()
        await asyncio.wait({running})
        turn.usage.tools_s += time.perf_counter() - started
        result = _result(turn, id_, running.result())
        seen = turn.toolbox.workspace.shown.take()
        files = {path: file.digest for path, file in seen.items()}
        shown = Shown(files=files, lines={path: file.lines for path, file in seen.items() if file.lines})
        settled = await to_end(turn.toolbox.history.settled, result.ok)
        await to_end(turn.log.append, [entry(result), *([entry(shown)] if seen else [])], settled=settled)
    yield result


def _result(turn: Turn, id_: str, result: Result) -> ToolResultGiven:
    changed = tuple(FileChange(**asdict(change)) for change in turn.toolbox.workspace.take_changes())
    command = CommandEnd(**asdict(result.command)) if result.command else None
    is_denied = bool(turn.toolbox.workspace.take_denied()) and not result.ok
    return ToolResultGiven(
        id=id_, ok=result.ok, output=result.output, changed=changed, command=command, refused=is_denied
    )
