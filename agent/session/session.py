"""A session: one user's durable timeline, and its live sequence in the engine while it is open.

Owns how a turn begins and ends, what happens to one that was cut off, and when state is saved. The token log is the
truth: whatever the live sequence lacks of it is read from disk, or fed again token by token as it was, and counted.
Must not know how a turn goes on (loop) nor how state becomes bytes (keeper).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from itertools import takewhile
from typing import Any

from holdfast.agent.config import prompt_problem
from holdfast.agent.encoding.encode import EncodingError
from holdfast.agent.events import Error, Event, Notice, ToolResultGiven, TurnDone, Usage, UserMessage, entry
from holdfast.agent.models.rolling import rolled_out, rolls_of
from holdfast.agent.models.snapshots import UNREADABLE, Keeper
from holdfast.agent.session.left_behind import CALLS, UNKNOWN_OUTCOME, branch_value, changed_files
from holdfast.agent.session.turn import ANSWER_TOKENS, Live, Message, run_turn, shown_in, tool_message
from holdfast.agent.threads import to_end
from holdfast.engine import EngineError, Snapshot, StateError, TooManyTokens
from holdfast.memory import StoreError

UNREAD = "the last prompt was interrupted before the model answered: it is left out, and not read again"
BEFORE_AN_ANSWER = {"user", "rolled", "notice"}  # events of a turn to which the model has said nothing
MAX_SAVES = 4  # of one session that wait for the disk: each holds its pages in memory


class Session:
    """Open from `App.session` until `aclose`. One turn at a time."""

    def __init__(self, live: Live, keeper: Keeper, notices: Iterable[str] = ()):
        """`notices` are shown with the first turn."""
        self.live, self.keeper = live, keeper
        self.name = live.log.session.name
        self._notices = list(notices)
        self.is_closed = False
        self._saves: set[asyncio.Task[Snapshot]] = set()  # being written
        self._saved_at = live.seq.num_tokens
        live.checkpoint = self.checkpoint
        was_open = self._close_open_turn()
        if not self._take_back_unread() and was_open:
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
                        state = "done" if isinstance(event, TurnDone) else "failed"
                        await to_end(log.end_turn, state, [entry(event)])
                    yield event
            await self._save_later()
        except (EngineError, EncodingError) as e:
            error = Error(message=str(e))
            if log.open_turn is not None:
                await to_end(log.end_turn, "failed", [entry(error)])
            yield error
        except StoreError as e:  # the log takes nothing more: the turn is closed when it does again
            yield Error(message=str(e))
        except (asyncio.CancelledError, GeneratorExit):
            await to_end(self._end_cut_turn)
            raise

    async def checkpoint(self) -> None:
        """Save in the background if enough has come since the last time, or where other sessions can go on from.

        Call it while the sequence is idle.
        """
        live = self.live
        is_shared = live.seq.num_tokens == live.shared_tokens
        if is_shared or live.seq.num_tokens - self._saved_at >= live.settings.save_every:
            await self._save_later()

    @property
    def num_turns(self) -> int:
        return self.live.log.num_turns

    @property
    def num_tokens(self) -> int:
        return len(self.live.log.ids)

    async def turns(self) -> list[tuple[int, str]]:
        """The number of every turn, and what was asked."""
        events = await to_end(self.live.log.events, 0, ("user",))
        return [(event.turn, event.payload["text"]) for event in events]

    async def answer(self, is_allowed: bool) -> bool:
        """Answer what another client's turn asks, whether one does: a session of this process has no other client."""
        return False

    async def stop(self) -> bool:
        """Interrupt another client's turn, whether one runs: see `answer`."""
        return False

    async def branches(self) -> list[dict[str, Any]]:
        """Every branch of the session, see `branch_value`."""
        return [branch_value(branch, events) for branch, events in self.live.log.branches()]

    async def rewind(self, turn: int | None = None, token: int | None = None, branch: int | None = None) -> list[str]:
        """Go on from the end of an earlier turn (0: the beginning) or from a token of the log, on a new branch; what
        came after stays, as a branch of its own. Or go on where such a branch ended. Returns the files that the turns left
        behind have changed on disk, where they stay as they are.

        Raises StoreError when there is no such place. The state is found again with the next turn.
        """
        await to_end(self._close_open_turn)
        log = self.live.log
        if branch is not None:
            left = await to_end(log.switch, branch, CALLS)
        else:
            left = await to_end(log.rewind, turn, token, CALLS)
        events = await to_end(log.events, 0, ("rolled", "shown"))
        self.live.rolls = rolls_of(events)
        self.live.workspace.set_shown(shown_in(events))
        return changed_files(left)

    async def park(self) -> None:
        """Save the state and give its memory back; when it cannot be saved it will be computed again."""
        seq = self.live.seq
        try:
            stored = await self.keeper.save(seq, self.live.log.session.branch)
        except StoreError as e:
            self._notices.append(str(e))
            stored = None
        except EngineError:  # it is in use again
            return
        await self.live.engine.park(seq, stored)

    def take_notices(self) -> list[str]:
        """What the next turn would tell: of interest when there is none."""
        notices, self._notices = self._notices, []
        return notices

    async def aclose(self) -> None:
        """Save, give the live sequence back, and let another process open the session."""
        self.is_closed = True
        try:
            await self.written()
            await self._save_later(is_urgent=True)
            await self.written()
            with suppress(EngineError):  # an engine that has stopped holds nothing any more
                await self.live.engine.release(self.live.seq)
        finally:
            self.live.workspace.close()
            self.live.log.close()

    async def written(self) -> None:
        """Wait until the saves that have begun are on disk."""
        if self._saves:
            await asyncio.wait(set(self._saves))

    async def _turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        await to_end(self._end_cut_turn)
        if problem := prompt_problem(prompt):
            yield Error(message=problem)
            return
        usage = Usage(context_limit=self.live.engine.max_context)
        await self._bring_in(usage)
        text = f"{self._note()}{prompt}"
        messages: list[Message] = [*await to_end(self._results_not_fed), {"role": "user", "content": text}]
        try:
            ids = await asyncio.to_thread(self.live.encode, messages)
        except TooManyTokens as e:
            yield self._too_long(e.num_tokens)
            return
        if len(ids) > self.live.room:
            yield self._too_long(len(ids))
            return
        usage.new = len(ids)
        if not self.live.log.ids:
            await self._share_beginning(ids, usage)
            usage.new -= usage.from_disk
        for notice in self.take_notices():
            yield Notice(message=notice)
        await to_end(self.live.log.start_turn, [entry(UserMessage(text=prompt))], ids)
        async with aclosing(run_turn(self.live, usage)) as events:
            async for event in events:
                yield event

    def _end_cut_turn(self) -> None:
        """What a turn that was cut off leaves in the log: its end, and no prompt that the model never answered."""
        self._close_open_turn()
        self._take_back_unread()

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

    def _take_back_unread(self) -> bool:
        """Take the prompt of an interrupted turn out of the token log when the model said nothing to it: the next turn
        must not read it. The turn stays, without tokens; whether there was one."""
        log = self.live.log
        turn = log.turn_list()[-1] if log.num_turns else None
        if turn is None or turn.state != "interrupted" or turn.start_position == turn.end_position:
            return False
        events = [event for event in log.events(turn.start_position) if event.turn == turn.number]
        if events[0].position < turn.end_position or {event.type for event in events} - BEFORE_AN_ANSWER:
            return False
        kept = list(takewhile(lambda event: event.type != "rolled", events))
        log.empty_turn(kept[-1].seq)
        self.live.rolls = rolls_of(log.events(types=("rolled",)))
        self._saved_at = max(self._saved_at, self.live.seq.num_tokens)  # what was read of it is of no use
        self._notices.append(UNREAD)
        return True

    def _results_not_fed(self) -> list[Message]:
        """Results that a turn left behind when it ended before the model read them: no token follows them in the log."""
        last = self.live.log.events(min_position=len(self.live.log.ids)) if self.live.log.ids else []
        return [
            tool_message(ToolResultGiven.model_validate(event.payload)) for event in last if event.type == "tool_result"
        ]

    async def _bring_in(self, usage: Usage) -> None:
        """Make the live sequence the log's, with as much of its state as there is, and count where that came from.

        A sequence that is no beginning of the log is not the truth. It happens when the log could not be written, or
        when a cancelled request was not taken back.
        """
        live, started = self.live, time.perf_counter()
        held = live.seq.token_ids
        is_loaded = live.seq.stored is not None
        if live.seq.is_released or held != live.log.ids[: len(held)].tolist() or (live.log.ids and not held):
            await self._start_again()
            is_loaded = True
        while True:
            try:
                await live.engine.load(live.seq)
                break
            except UNREADABLE as e:
                self._notices.append(f"{e}; what it held is read again from the token log")
                await self.keeper.forget(e, live.seq.stored)
                await self._start_again()
            except StoreError as e:  # no damage: it may be read another time
                self._notices.append(f"{e}; what it held is read again from the token log")
                await live.engine.release(live.seq)
                live.seq = await live.engine.start(owner=live.log.session.owner)
        computed = live.seq.num_tokens
        await self._roll_again()
        if is_loaded:
            usage.load_s = time.perf_counter() - started
            self._saved_at = live.seq.num_tokens
        self._count(usage, is_loaded, computed)

    async def _share_beginning(self, ids: list[int], usage: Usage) -> None:
        """A new session goes on from the state of another of its owner that began alike, or from the public opening."""
        live, started = self.live, time.perf_counter()
        session = live.log.session
        stored = await self.keeper.find(ids[:-1], (), session.branch, owner=session.owner)
        if stored is None or len(stored.ids) < live.engine.config.page_tokens:
            return
        shared = await live.engine.start(stored)
        try:
            await live.engine.load(shared)
        except (StateError, StoreError) as e:
            if isinstance(e, UNREADABLE):
                await self.keeper.forget(e, stored)
            await live.engine.release(shared)
            return
        await live.engine.release(live.seq)
        live.seq, self._saved_at = shared, shared.num_tokens
        usage.from_disk, usage.load_s = shared.num_tokens, time.perf_counter() - started

    async def _start_again(self) -> None:
        """A new sequence on the longest stored state of the log."""
        live = self.live
        await live.engine.release(live.seq)
        await self.written()  # the state that is wanted may be about to be found
        session = live.log.session
        stored = await self.keeper.find(live.log.ids, live.rolls, session.branch, owner=session.owner)
        self._notices += self.keeper.take_notes()
        live.seq = await live.engine.start(stored, session.owner)

    async def _roll_again(self) -> None:
        """Bring a sequence that is behind the log through the rolls that the log went through."""
        live = self.live
        for roll in live.rolls[len(live.seq.chain.rolls) :]:
            for start in range(len(live.seq.token_ids), roll.position, live.settings.save_every):
                end = min(roll.position, start + live.settings.save_every)
                await live.engine.feed(live.seq, live.log.ids[start:end].tolist())
            await live.engine.roll(live.seq, roll)

    def _note(self) -> str:
        """What the model is told in the turn after one in which turns left its view."""
        log, rolls = self.live.log, self.live.rolls
        turns = log.turn_list()
        if not rolls or rolls[-1].position < turns[-1].start_position:
            return ""
        last = rolled_out(turns, rolls[-1].first_kept)
        return f"[Turns 1 to {last} have left your view; recall finds what was said in them.]\n\n" if last else ""

    def _count(self, usage: Usage, is_loaded: bool, computed: int) -> None:
        """The input of a turn that begins now, by where its state comes from: it was there for `computed` tokens."""
        dropped = self.live.seq.dropped_tokens
        held, computed = self.live.context_used, max(0, computed - dropped)
        lacking = held - computed
        if lacking > 1:  # 1: the last sampled token, whose state the next step computes as always
            usage.prefilled_again = lacking
            stored = f"state is stored up to token {computed + dropped}" if computed else "no stored state"
            usage.why = stored if is_loaded else "the last turn was cut off while it was read"
        present = computed if lacking > 1 else held
        usage.from_disk, usage.from_memory = (present, 0) if is_loaded and computed else (0, present)

    async def _save_later(self, is_urgent: bool = False) -> None:
        """Begin to save what has come since the last time, unless the disk is behind."""
        seq, position = self.live.seq, self.live.seq.num_tokens
        if position <= self._saved_at or len(self._saves) >= MAX_SAVES:
            return
        is_followed = len(self.live.log.ids) > len(seq.token_ids)
        try:
            writing = await self.keeper.begin_save(seq, self.live.log.session.branch, is_followed, is_urgent)
        except EngineError:  # it is in use, or the engine has stopped
            return
        if writing is not None:
            self._saved_at = position
            self._saves.add(writing)
            writing.add_done_callback(self._saved)

    def _saved(self, writing: "asyncio.Task[Snapshot]") -> None:
        self._saves.discard(writing)
        if writing.cancelled() or (error := writing.exception()) is None:
            return
        self._saved_at = 0  # the next save tries again
        self._notices.append(str(error))

    def _too_long(self, num_new: int) -> Error:
        used, limit = self.live.context_used, self.live.engine.max_context
        return Error(
            message=f"the prompt does not fit: it needs {num_new} tokens, and this session holds {used} of {limit}"
            f" ({ANSWER_TOKENS} are kept for the answer); shorten it, or start a fresh session with --new"
        )
