"""The context window of a session: the sequence in the model that follows the session's token log.

Owns how the sequence comes to have the state of the log, what leaves when it is full, and when state is saved. The log
may be ahead of the sequence, never behind it. Must not know turns.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from holdfast.agent.events import PrefillProgress, Rolled, Usage, entry
from holdfast.agent.models.generate import generate
from holdfast.agent.models.model import Stateful
from holdfast.agent.models.remote.costs import settle
from holdfast.agent.models.remote.model import RemoteSequence
from holdfast.agent.models.resume import Resume, count
from holdfast.agent.models.rolling import droppable, next_roll
from holdfast.agent.models.snapshots import Saves, Snapshots
from holdfast.agent.threads import to_end
from holdfast.engine import EngineError, Roll, SamplingParams, Sequence
from holdfast.memory import SessionLog

MAX_SAVES = 4  # of one session that wait for the disk


class ContextWindow:
    """Open as long as its session. `tell` gets what the user should know, a line each."""

    def __init__(
        self,
        model: Stateful,
        snapshots: Snapshots,
        seq: Sequence,
        log: SessionLog,
        rolls: list[Roll],
        save_every: int,
        shared_tokens: int,
        tell: Callable[[str], None],
    ):
        """`rolls` are those that the log went through; at `shared_tokens` a new session is saved for others that begin
        alike; afterwards state is saved every `save_every` tokens."""
        self.model, self.seq, self.rolls = model, seq, rolls
        self._log, self._save_every, self._shared_tokens, self._tell = log, save_every, shared_tokens, tell
        self._snapshots, self._resume, self._saves = (
            snapshots,
            Resume(model, snapshots, tell),
            Saves(snapshots, MAX_SAVES),
        )
        self._saved_at = seq.num_tokens

    @property
    def used(self) -> int:
        """Tokens of the log that are in the window."""
        return len(self._log.ids) - self.seq.dropped_tokens

    @property
    def free(self) -> int:
        """Tokens that may still be added, rolling if need be."""
        return self.model.max_context - self.used + droppable(self.model, self.seq)

    async def bring_in(self, usage: Usage) -> None:
        """Make the sequence the log's, with as much of its state as there is, and count where that came from.

        A sequence that is no beginning of the log is not the truth. It happens when the log could not be written, or
        when a cancelled request was not taken back.
        """
        started, log = time.perf_counter(), self._log
        held = self.seq.token_ids
        unread, seq = self.seq.stored, None
        is_loaded = unread is not None
        if not (self.seq.is_released or held != log.ids[: len(held)].tolist() or (log.ids and not held)):
            seq = await self._resume.loaded(self.seq)
        if seq is None:
            await self.model.release(self.seq)
            await self._saves.written()  # the state that is wanted may be about to be found
            session = log.session
            seq = await self._resume.from_disk(log.ids, session.branch, session.owner, self.rolls, unread=unread)
            is_loaded = True
        self.seq = seq
        computed = seq.num_tokens
        await self._roll_again()
        if is_loaded:
            usage.load_s = time.perf_counter() - started
            self._saved_at = self.seq.num_tokens
        dropped = self.seq.dropped_tokens
        count(usage, self.used, max(0, computed - dropped), is_loaded, dropped)
        if usage.prefilled_again and not is_loaded:
            usage.why = "the last turn was cut off while it was read"

    async def share_beginning(self, ids: list[int], usage: Usage) -> None:
        """A new session goes on from the state of another of its owner that began alike, or from the public opening."""
        started, session = time.perf_counter(), self._log.session
        stored = await self._snapshots.find(ids[:-1], (), session.branch, owner=session.owner)
        if stored is None or len(stored.ids) < self.model.config.page_tokens:
            return
        shared = await self._resume.loaded(await self.model.start(stored))
        if shared is None:
            return
        await self.model.release(self.seq)
        self.seq, self._saved_at = shared, shared.num_tokens
        usage.from_disk, usage.load_s = shared.num_tokens, time.perf_counter() - started

    def generate(self, usage: Usage, params: SamplingParams) -> AsyncGenerator[PrefillProgress | int, None]:
        """Read what the log has and the sequence has not, and sample: see `generate`.

        A long prompt is read in stretches up to its last one, and saved on the way at multiples of `save_every`: only
        there does the tail end with a block of every layer, which makes it small.
        """
        end, every = len(self._log.ids), self._save_every
        shared = [self._shared_tokens] if len(self.seq.token_ids) < self._shared_tokens < end else []
        after = max([len(self.seq.token_ids), *shared])
        places = [*shared, *range((after // every + 1) * every, end, every)]
        return generate(self.model, self.seq, self._log.ids, params, usage, places, self.checkpoint)

    def settle(self, usage: Usage) -> None:
        """Count where the input came from as an endpoint says it; what has its state here is counted already."""
        if isinstance(self.seq, RemoteSequence):
            settle(usage, self.seq)

    async def make_room(self, missing: int) -> Roll | None:
        """Roll, so that this many tokens more have room; what was rolled, in the log already.

        None when that cannot be.
        """
        roll = next_roll(self.model, self.seq, missing) if missing > 0 else None
        if roll is None:
            return None
        await self.model.roll(self.seq, roll)
        self.rolls.append(roll)
        rolled = Rolled(position=roll.position, first_kept=roll.first_kept, head_tokens=roll.head_tokens)
        await to_end(self._log.append, [entry(rolled)])
        return roll

    async def checkpoint(self) -> None:
        """Save in the background if enough has come since the last time, or where other sessions can go on from.

        Call it while the sequence is idle.
        """
        is_shared = self.seq.num_tokens == self._shared_tokens
        if is_shared or self.seq.num_tokens - self._saved_at >= self._save_every:
            await self.save()

    async def save(self, is_urgent: bool = False) -> None:
        """Begin to save what has come since the last time, unless the disk is behind."""
        position = self.seq.num_tokens
        if position <= self._saved_at or self._saves.are_full:
            return
        is_followed = len(self._log.ids) > len(self.seq.token_ids)
        branch = self._log.session.branch
        if await self._saves.begin(position, self.seq, branch, self._not_saved, is_followed, is_urgent):
            self._saved_at = position

    async def written(self) -> None:
        """Wait until the saves that have begun are on disk."""
        await self._saves.written()

    async def park(self) -> None:
        """Save the state and give its memory back; when it cannot be saved it will be computed again."""
        await self._resume.park(self.seq, self._log.session.branch)

    async def release(self) -> None:
        """Save what there is, and give the sequence back."""
        await self.written()
        await self.save(is_urgent=True)
        await self.written()
        with suppress(EngineError):  # an engine that has stopped holds nothing any more
            await self.model.release(self.seq)

    def take_back(self, rolls: list[Roll]) -> None:
        """Follow a log that ends earlier now, after these rolls only; nothing more of the sequence is saved."""
        self.rolls = rolls
        self._saved_at = max(self._saved_at, self.seq.num_tokens)

    async def _roll_again(self) -> None:
        """Bring a sequence that is behind the log through the rolls that the log went through."""
        for roll in self.rolls[len(self.seq.chain.rolls) :]:
            for start in range(len(self.seq.token_ids), roll.position, self._save_every):
                end = min(roll.position, start + self._save_every)
                await self.model.feed(self.seq, self._log.ids[start:end].tolist())
            await self.model.roll(self.seq, roll)

    def _not_saved(self, error: str) -> None:
        self._saved_at = 0  # the next save tries again
        self._tell(error)
