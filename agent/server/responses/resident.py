"""Live sequences between responses: which response's end each one stands at, and how a conversation gets its state back.

Owns the idle ones, saves them in the background and gives them up when memory is short. Must not know requests.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from holdfast.agent.events import Usage
from holdfast.agent.models.snapshots import UNREADABLE, Keeper
from holdfast.agent.server.access import stored_owner
from holdfast.agent.server.responses.beginnings import Beginnings
from holdfast.agent.server.responses.response import Record
from holdfast.engine import Engine, EngineError, Sequence, Snapshot
from holdfast.memory import StoreError

log = logging.getLogger("holdfast.server")
MAX_IDLE = 64
MAX_SAVES = 8  # that wait for the disk: each holds its pages in memory
FEED_TOKENS = 8192  # at a time, so that checking them does not stop the event loop


@dataclass
class Idle:
    """A sequence at the end of a response."""

    record: Record
    seq: Sequence
    is_saved: bool


class Sequences:
    """All calls are made on the event loop."""

    def __init__(self, engine: Engine, keeper: Keeper):
        self._engine, self._keeper = engine, keeper
        self.beginnings = Beginnings(engine)
        self._idle: OrderedDict[str, Idle] = OrderedDict()
        self._saves: dict[str, asyncio.Task[Snapshot]] = {}
        self.settling: dict[str, asyncio.Future[None]] = {}  # responses that are over, but not given back yet

    async def claim(self, record: Record, ids: list[int], usage: Usage) -> Sequence:
        """A sequence that holds a beginning of `ids`, in memory, for a response that goes on from `record.before`.

        Counts into `usage` where the state of the input comes from. At least one token is left to be fed.
        """
        started = time.perf_counter()
        if record.before is not None and (settling := self.settling.get(record.before.id)):
            await asyncio.wait({settling})
        seq, is_loaded = await self._idle_of(record.before, ids), False
        if seq is not None:
            is_loaded = seq.stored is not None
            seq = await self._loaded(seq)
        if seq is None:
            seq = await self._from_memory(record, ids)
        if seq is None:
            if record.before is not None and record.before.id in self._saves:
                await asyncio.wait({self._saves[record.before.id]})
            seq, is_loaded = await self._from_disk(record, ids), True
        usage.load_s = time.perf_counter() - started if is_loaded else 0.0
        count(usage, record.known, len(ids), seq.num_tokens, is_loaded)
        return seq

    async def give(self, record: Record, seq: Sequence) -> None:
        """The response is over, and this is its sequence; save it if the response is stored."""
        idle = Idle(record, seq, not record.is_stored)
        self._idle[record.id] = idle
        try:
            await self.beginnings.keep(record.owner, seq, is_followed=False)
        except EngineError as e:  # the engine has stopped
            log.warning("%s", e)
        if record.is_stored and len(self._saves) < MAX_SAVES:
            await self._save(idle)
        while len(self._idle) > MAX_IDLE:
            await self.drop(next(iter(self._idle)))

    async def drop(self, id: str, save: bool = True) -> None:
        """Give up the sequence of a response, saved first unless nobody wants it; then no save of it is under way either."""
        if not save and id in self.settling:  # it was answered before its state is handed over
            await asyncio.wait({self.settling[id]})
        idle = self._idle.pop(id, None)
        if not save and id in self._saves:
            await asyncio.wait({self._saves[id]})
        if idle is None:
            return
        if save:
            await self._save(idle)
        await self._engine.release(idle.seq)

    async def park(self, seq: Sequence) -> None:
        """Memory is short: store what this idle sequence holds, or let it be computed again."""
        idle = next((idle for idle in self._idle.values() if idle.seq is seq), None)
        stored = None
        if idle is not None and idle.record.is_stored:
            try:
                stored = await self._keeper.save(seq, idle.record.branch)
                idle.is_saved = True
            except StoreError as e:
                log.warning("%s", e)
            except EngineError:  # it is in use again
                return
        await self._engine.park(seq, stored)

    async def aclose(self) -> None:
        """Save everything that is to be saved."""
        for id in list(self._idle):
            await self.drop(id)
        if self._saves:
            await asyncio.wait(set(self._saves.values()))

    async def _idle_of(self, before: Record | None, ids: list[int]) -> Sequence | None:
        idle = self._idle.pop(before.id, None) if before else None
        if idle is None:
            return None
        held = idle.seq.token_ids
        try:
            await self._save(idle)
            is_beginning = len(held) < len(ids) and await asyncio.to_thread(lambda: held == ids[: len(held)])
        except BaseException:
            await self._engine.release(idle.seq)
            raise
        if is_beginning:
            return idle.seq
        await self._engine.release(idle.seq)
        return None

    async def _loaded(self, seq: Sequence) -> Sequence | None:
        """The sequence, brought into memory; None when its state cannot be read."""
        try:
            await self._engine.load(seq)
            return seq
        except (*UNREADABLE, StoreError) as e:
            log.warning("%s; what it held is read again from the token log", e)
            if isinstance(e, UNREADABLE):
                await self._keeper.forget(e, seq.stored)
        except BaseException:
            await self._engine.release(seq)
            raise
        await self._engine.release(seq)
        return None

    async def _from_memory(self, record: Record, ids: list[int]) -> Sequence | None:
        """On the longest state in memory that this user's conversations begin with, if the disk cannot have a longer one
        of the conversation that goes on."""
        while (stored := await self.beginnings.find(record.owner, ids[:-1])) is not None:
            if len(stored.ids) < record.known - 1:
                return None
            seq = await self._loaded(await self._engine.start(stored))
            if seq is not None:
                return seq
            self.beginnings.drop(record.owner, stored)
        return None

    async def _from_disk(self, record: Record, ids: list[int]) -> Sequence:
        """On the longest stored state of this user's conversations that begins like it; else an empty one."""
        while True:
            branch = record.before.branch if record.before else 0
            owner = stored_owner(record.owner)
            stored = await self._keeper.find(ids[:-1], (), branch, record.session_id, owner)
            for note in self._keeper.take_notes():
                log.warning("%s", note)
            seq = await self._engine.start(stored, owner)
            if stored is None or (seq := await self._loaded(seq)) is not None:  # type: ignore[assignment]
                return seq

    async def _save(self, idle: Idle) -> None:
        """Begin to save an idle sequence; it may go on while it is written."""
        if idle.is_saved:
            return
        try:
            writing = await self._keeper.begin_save(idle.seq, idle.record.branch)
        except EngineError:  # it is in use, or the engine has stopped
            return
        idle.is_saved = True
        if writing is not None:
            self._saves[idle.record.id] = writing
            writing.add_done_callback(lambda task: self._saved(idle, task))

    def _saved(self, idle: Idle, writing: "asyncio.Task[Snapshot]") -> None:
        if self._saves.get(idle.record.id) is writing:
            del self._saves[idle.record.id]
        if not writing.cancelled() and (error := writing.exception()) is not None:
            idle.is_saved = False
            log.warning("%s", error)


def count(usage: Usage, known: int, total: int, computed: int, is_loaded: bool) -> None:
    """Where `total` tokens of input come from: `known` of them are in the token log, state is there for `computed`.

    One token that lacks is the last one sampled, whose state the next step computes as always.
    """
    lacking = known - computed if known - computed > 1 else 0
    present = computed if lacking else max(known, computed)
    usage.new, usage.prefilled_again = total - present - lacking, lacking
    usage.from_disk, usage.from_memory = (present, 0) if is_loaded else (0, present)
    if lacking:
        usage.why = f"state is stored up to token {computed}" if computed else "no stored state"
