"""A session: one user's durable timeline, while it is open.

Owns how a turn begins and ends, and what happens to one that was cut off. Must not know how a turn goes on (turn) nor
how the sequence comes to have the state of the log (window).
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from itertools import takewhile
from typing import Any

from holdfast.agent.config import Settings, prompt_problem
from holdfast.agent.encoding.encode import EncodingError, ProtocolTexts
from holdfast.agent.events import Answer, Error, Event, Notice, ToolResultGiven, TurnDone, Usage, UserMessage, entry
from holdfast.agent.models.rolling import rolled_out, rolls_of
from holdfast.agent.session.left_behind import CALLS, UNKNOWN_OUTCOME, branch_value, changed_files
from holdfast.agent.session.outcome import Outcome
from holdfast.agent.session.restored import Part, Restored
from holdfast.agent.session.turn import ANSWER_TOKENS, Message, Toolbox, Turn, run_turn, shown_in, tool_message
from holdfast.agent.session.undo import rewind
from holdfast.agent.session.window import ContextWindow
from holdfast.agent.threads import to_end
from holdfast.engine import EngineError, TooManyTokens
from holdfast.memory import NO_CHANGE, SessionLog, Settled, StoreError
from holdfast.tools import Job

UNREAD = "the last prompt was interrupted before the model answered: it is left out, and not read again"
BEFORE_AN_ANSWER = {"user", "rolled", "notice"}  # events of a turn to which the model has said nothing


class Session:
    """Open from `App.session` until `aclose`. One turn at a time."""

    def __init__(
        self,
        log: SessionLog,
        window: ContextWindow,
        toolbox: Toolbox,
        settings: Settings,
        texts: ProtocolTexts,
        notices: list[str],
    ):
        """`notices` are shown with the next turn; the window's are added to them."""
        self.log, self.window, self.toolbox, self.settings, self.texts = log, window, toolbox, settings, texts
        self.name = log.session.name
        self._notices = notices
        self.is_closed = False
        was_open = self._recover()
        if not self._take_back_unread() and was_open:
            self._notices.append("the last turn was interrupted; this one goes on after it")

    async def turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        """One turn: the prompt in, events out, the last of them TurnDone or Error, after Changes if any.

        Use it inside `contextlib.aclosing`: closing or cancelling it ends the turn as interrupted, and the session
        stays valid. A prompt that is empty, not text or too long for the context changes nothing.
        """
        log, outcome = self.log, Outcome()
        try:
            async with aclosing(self._turn(prompt)) as events:
                async for event in events:
                    outcome.add(event)
                    if log.open_turn is not None and isinstance(event, TurnDone | Error):
                        state = "done" if isinstance(event, TurnDone) else "failed"
                        await to_end(log.end_turn, state, [entry(event)])
                    if isinstance(event, TurnDone | Error) and (changes := outcome.changes()) is not None:
                        yield changes
                    yield event
            await self.window.save()
        except (EngineError, EncodingError) as e:
            error = Error(message=str(e))
            if log.open_turn is not None:
                await to_end(log.end_turn, "failed", [entry(error)])
            if (changes := outcome.changes()) is not None:
                yield changes
            yield error
        except StoreError as e:  # the log takes nothing more: the turn is closed when it does again
            yield Error(message=str(e))
        except (asyncio.CancelledError, GeneratorExit):
            await to_end(self._end_cut_turn)
            raise

    @property
    def num_turns(self) -> int:
        return self.log.num_turns

    @property
    def num_tokens(self) -> int:
        return len(self.log.ids)

    async def turns(self) -> list[tuple[int, str]]:
        """The number of every turn, and what was asked."""
        events = await to_end(self.log.events, 0, ("user",))
        return [(event.turn, event.payload["text"]) for event in events]

    async def answer(self, answer: Answer) -> bool:
        """Answer what another client's turn asks, whether one does: a session of this process has no other client."""
        return False

    async def stop(self) -> bool:
        """Interrupt another client's turn, whether one runs: see `answer`."""
        return False

    async def branches(self) -> list[dict[str, Any]]:
        """Every branch of the session, see `branch_value`."""
        return [branch_value(branch, events) for branch, events in self.log.branches()]

    async def jobs(self) -> list[str]:
        """A line on each command in the background."""
        return [job.line for job in self.toolbox.shell.jobs.all]

    async def rewind(
        self, turn: int | None = None, token: int | None = None, branch: int | None = None, part: Part = "both"
    ) -> Restored:
        """Go on from an earlier turn, a token or a branch, with the files of then; or bring one of the two there.

        A turn (0: the beginning) or a token of the log begins a new branch, and what came after stays on the old one;
        a branch goes on where it ended. A rewind of the conversation alone tells which files its turns leave changed.
        The next turn finds the state again.

        Raises StoreError when there is no such place.
        """
        await to_end(self._close_open_turn)
        log = self.log
        restored, left = await to_end(rewind, log, self.toolbox.history, (turn, token, branch), part, CALLS)
        if part == "files":
            return restored
        events = await to_end(log.events, 0, ("rolled", "shown"))
        self.window.rolls = rolls_of(events)
        self.toolbox.workspace.shown.set(shown_in(events))
        return replace(restored, left=tuple(changed_files(left))) if part == "conversation" else restored

    async def undo(self) -> Restored:
        """Take back the files of the last turn that changed any: see `FileHistory.undo`."""
        await to_end(self._close_open_turn)
        return await to_end(self.toolbox.history.undo)

    async def redo(self) -> Restored:
        """Take back the last undo: see `FileHistory.redo`."""
        await to_end(self._close_open_turn)
        return await to_end(self.toolbox.history.redo)

    async def park(self) -> None:
        """Give the memory of its state back, see `ContextWindow.park`."""
        await self.window.park()

    def take_notices(self) -> list[str]:
        """What the next turn would tell: of interest when there is none."""
        notices = self._notices[:]
        self._notices.clear()
        return notices

    async def aclose(self) -> None:
        """Save, give the sequence back, and let another process open the session."""
        self.is_closed = True
        try:
            await self.toolbox.shell.aclose()
            await self.window.release()
        finally:
            self.toolbox.workspace.close()
            self.log.close()

    async def written(self) -> None:
        """Wait until the saves that have begun are on disk."""
        await self.window.written()

    async def _turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        await to_end(self._end_cut_turn)
        if problem := prompt_problem(prompt):
            yield Error(message=problem)
            return
        usage = Usage(context_limit=self.window.model.max_context)
        turn = Turn(self.log, self.window, self.toolbox, self.settings, self.texts, usage)
        await self.window.bring_in(usage)
        ended = self.toolbox.shell.jobs.ended()
        text = f"{self._note()}{_ended_note(ended)}{prompt}"
        messages: list[Message] = [*await to_end(self._results_not_fed), {"role": "user", "content": text}]
        try:
            ids = await asyncio.to_thread(turn.encode, messages)
        except TooManyTokens as e:
            yield self._too_long(e.num_tokens)
            return
        if len(ids) > turn.room:
            yield self._too_long(len(ids))
            return
        usage.new = len(ids)
        if not self.log.ids:
            await self.window.share_beginning(ids, usage)
            usage.new -= usage.from_disk
        for notice in [*self.take_notices(), *(job.line for job in ended)]:
            yield Notice(message=notice)
        for job in ended:
            job.is_told = True
        await to_end(self.log.start_turn, [entry(UserMessage(text=prompt))], ids)
        async with aclosing(run_turn(turn)) as events:
            async for event in events:
                yield event

    def _end_cut_turn(self) -> None:
        """What a turn that was cut off leaves in the log: its end, and no prompt that the model never answered."""
        self._close_open_turn()
        self._take_back_unread()

    def _recover(self) -> bool:
        """Put right what a killed process left behind; whether a turn was open.

        From here on the files that calls change are recorded.
        """
        settled, lines = self.toolbox.history.recover()
        self._notices += lines
        was_open = self._close_open_turn(settled)
        if not was_open and settled != NO_CHANGE:
            self.log.settle(settled)
        self.toolbox.workspace.journal = self.toolbox.history
        return was_open

    def _close_open_turn(self, settled: Settled = NO_CHANGE) -> bool:
        """Mark a turn that was cut off as interrupted, and its calls without a result; whether there was one."""
        log = self.log
        if log.open_turn is None:
            return False
        last = log.events(min_position=len(log.ids))
        given = {event.payload["id"] for event in last if event.type == "tool_result"}
        lost = [event.payload["id"] for event in last if event.type == "tool_call" and event.payload["id"] not in given]
        results = [ToolResultGiven(id=call_id, ok=False, output=UNKNOWN_OUTCOME) for call_id in lost]
        log.end_turn("interrupted", [*map(entry, results), entry(Notice(message="interrupted"))], settled)
        return True

    def _take_back_unread(self) -> bool:
        """Take the prompt of an interrupted turn out of the token log when the model said nothing to it: the next turn
        must not read it. The turn stays, without tokens; whether there was one."""
        log = self.log
        turn = log.turn_list()[-1] if log.num_turns else None
        if turn is None or turn.state != "interrupted" or turn.start_position == turn.end_position:
            return False
        events = [event for event in log.events(turn.start_position) if event.turn == turn.number]
        if events[0].position < turn.end_position or {event.type for event in events} - BEFORE_AN_ANSWER:
            return False
        kept = list(takewhile(lambda event: event.type != "rolled", events))
        log.empty_turn(kept[-1].seq)
        self.window.take_back(rolls_of(log.events(types=("rolled",))))
        self._notices.append(UNREAD)
        return True

    def _results_not_fed(self) -> list[Message]:
        """Results at the end of the log that no token follows: the turn ended before the model read them."""
        last = self.log.events(min_position=len(self.log.ids)) if self.log.ids else []
        return [
            tool_message(ToolResultGiven.model_validate(event.payload)) for event in last if event.type == "tool_result"
        ]

    def _note(self) -> str:
        """What the model is told in the turn after one in which turns left its view."""
        log, rolls = self.log, self.window.rolls
        turns = log.turn_list()
        if not rolls or rolls[-1].position < turns[-1].start_position:
            return ""
        last = rolled_out(turns, rolls[-1].first_kept)
        return f"[Turns 1 to {last} have left your view; recall finds what was said in them.]\n\n" if last else ""

    def _too_long(self, num_new: int) -> Error:
        used, limit = self.window.used, self.window.model.max_context
        return Error(
            message=f"the prompt does not fit: it needs {num_new} tokens, and this session holds {used} of {limit}"
            f" ({ANSWER_TOKENS} are kept for the answer); shorten it, or start a fresh session with --new"
        )


def _ended_note(jobs: Iterable[Job]) -> str:
    """What the model is told of jobs that have ended since it last looked."""
    lines = "\n".join(job.line for job in jobs)
    return f"[{lines}\nThe tool jobs shows what they put out.]\n\n" if lines else ""
