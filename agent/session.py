"""A session: one user's durable timeline, and its live sequence in the engine while it is open.

Owns how a turn begins and ends, and what happens to one that was cut off. The token log is the truth: whatever the
live sequence lacks of it is fed again, token by token as it was, and counted. Must not know how a turn goes on (loop).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from agent.config import prompt_problem
from agent.encoding import EncodingError
from agent.loop import ANSWER_TOKENS, Live, Message, run_turn, tool_message
from agent.messages import Error, Event, Notice, ToolResultGiven, TurnDone, Usage, UserMessage, entry
from engine import EngineError
from memory import StoreError

UNKNOWN_OUTCOME = "error: the turn was interrupted before this call gave a result; it may or may not have taken effect"


class Session:
    """Open from `App.session` until `aclose`. One turn at a time."""

    def __init__(self, live: Live, notices: Iterable[str] = ()):
        """`notices` are shown with the first turn."""
        self.live = live
        self.name = live.log.session.name
        self._notices = list(notices)
        if self._close_open_turn():
            self._notices.append("the last turn was interrupted; this one goes on after it")

    async def turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        """One turn: the prompt in, events out, the last of them TurnDone or Error.

        Use it inside `contextlib.aclosing`: closing or cancelling it ends the turn as interrupted, and the session
        stays valid. A prompt that is empty, not text or too long for the context changes nothing.
        """
        log = self.live.log
        try:
            async with aclosing(self._turn(prompt)) as events:
                async for event in events:
                    if log.open_turn is not None and isinstance(event, TurnDone | Error):
                        log.end_turn("done" if isinstance(event, TurnDone) else "failed", [entry(event)])
                    yield event
        except (EngineError, EncodingError) as e:
            error = Error(message=str(e))
            if log.open_turn is not None:
                log.end_turn("failed", [entry(error)])
            yield error
        except StoreError as e:  # the log takes nothing more: the turn is closed when it does again
            yield Error(message=str(e))
        except (asyncio.CancelledError, GeneratorExit):
            self._close_open_turn()
            raise

    async def aclose(self) -> None:
        """Give the live sequence back and let another process open the session."""
        try:
            await self.live.engine.release(self.live.seq)
        finally:
            self.live.log.close()

    async def _turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        self._close_open_turn()
        if problem := prompt_problem(prompt):
            yield Error(message=problem)
            return
        await self._follow_log()
        ids = self.live.encode([*self._results_not_fed(), {"role": "user", "content": prompt}])
        if len(ids) > self.live.room:
            yield self._too_long(len(ids))
            return
        while self._notices:
            yield Notice(message=self._notices.pop(0))
        usage = self._usage(len(ids))
        self.live.log.start_turn([entry(UserMessage(text=prompt))], ids)
        async with aclosing(run_turn(self.live, usage)) as events:
            async for event in events:
                yield event

    def _close_open_turn(self) -> bool:
        """Mark a turn that was cut off as interrupted, and its calls without a result; whether there was one."""
        log = self.live.log
        if log.open_turn is None:
            return False
        last = log.events(min_position=len(log.ids))
        given = {event.payload["id"] for event in last if event.type == "tool_result"}
        lost = [event.payload["id"] for event in last if event.type == "tool_call" and event.payload["id"] not in given]
        results = [ToolResultGiven(id=call_id, ok=False, output=UNKNOWN_OUTCOME) for call_id in lost]
        log.end_turn("interrupted", [*map(entry, results), entry(Notice(message="interrupted"))])
        return True

    def _results_not_fed(self) -> list[Message]:
        """Results that a turn left behind when it ended before the model read them: no token follows them in the log."""
        last = self.live.log.events(min_position=len(self.live.log.ids)) if self.live.log.ids else []
        return [
            tool_message(ToolResultGiven.model_validate(event.payload)) for event in last if event.type == "tool_result"
        ]

    async def _follow_log(self) -> None:
        """A sequence that is no beginning of the log is not the truth: begin a new one. It happens when the log could
        not be written, or when a cancelled request was not taken back."""
        held = self.live.seq.token_ids
        if held != self.live.log.ids[: len(held)].tolist():
            await self.live.engine.release(self.live.seq)
            self.live.seq = await self.live.engine.start()

    def _usage(self, num_new: int) -> Usage:
        """The input of a turn that begins now, by where its state comes from."""
        held, computed = len(self.live.log.ids), self.live.seq.num_tokens
        usage = Usage(new=num_new, from_memory=held, context_limit=self.live.engine.max_context)
        if held - computed > 1:  # 1: the last sampled token, whose state the next step computes as always
            usage.from_memory, usage.prefilled_again = computed, held - computed
            usage.why = "the last turn was cut off while it was read" if computed else "no stored state"
        return usage

    def _too_long(self, num_new: int) -> Error:
        used, limit = len(self.live.log.ids), self.live.engine.max_context
        return Error(
            message=f"the prompt does not fit: it needs {num_new} tokens, and this session holds {used} of {limit}"
            f" ({ANSWER_TOKENS} are kept for the answer); shorten it, or start a fresh session with --new"
        )
