"""Sequences in memory between responses: each is idle at the end of one response, and the next response takes it.

Owns the idle sequences, saves them in the background and releases them when memory is short. Must not know requests.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from holdfast.agent.events import Usage
from holdfast.agent.models.opened import AnyModel
from holdfast.agent.models.resume import Resume, count
from holdfast.agent.models.snapshots import Saves, Snapshots
from holdfast.agent.server.access import stored_owner
from holdfast.agent.server.responses.beginnings import Beginnings
from holdfast.agent.server.responses.response import Response
from holdfast.engine import EngineError, Sequence

log = logging.getLogger("holdfast.server")
MAX_IDLE = 64
MAX_SAVES = 8  # that wait for the disk
FEED_TOKENS = 8192  # at a time, so that checking them does not stop the event loop


@dataclass
class Idle:
    """A sequence at the end of a response."""

    response: Response
    seq: Sequence
    is_saved: bool


class Sequences:
    """The idle sequences of all responses. All calls are made on the event loop."""

    def __init__(self, engine: AnyModel, snapshots: Snapshots):
        self._engine, self._snapshots = engine, snapshots
        self.beginnings = Beginnings(engine)
        self._idle: OrderedDict[str, Idle] = OrderedDict()
        self._resume = Resume(engine, snapshots, lambda problem: log.warning("%s", problem))
        self._saves = Saves(snapshots, MAX_SAVES)
        self._settling: dict[str, asyncio.Future[None]] = {}  # of responses whose sequence was not given back yet

    async def claim(self, response: Response, ids: list[int], usage: Usage) -> Sequence:
        """A sequence that holds a beginning of `ids`, in memory, for a response that goes on from `response.before`.

        Counts into `usage` where the state of the input comes from. At least one token is left to be fed.
        """
        started = time.perf_counter()
        if response.before is not None and (settling := self._settling.get(response.before.id)):
            await asyncio.wait({settling})
        seq, is_loaded = await self._idle_of(response.before, ids), False
        if seq is not None:
            is_loaded = seq.stored is not None
            seq = await self._resume.loaded(seq)
        if seq is None:
            seq = await self._from_memory(response, ids)
        if seq is None:
            branch = response.before.branch if response.before else 0
            if response.before is not None:
                await self._saves.written(response.before.id)
            owner = stored_owner(response.owner)
            seq = await self._resume.from_disk(ids[:-1], branch, owner, session_id=response.session_id)
            is_loaded = True
        usage.load_s = time.perf_counter() - started if is_loaded else 0.0
        usage.new = len(ids) - count(usage, response.num_known_tokens, seq.num_tokens, is_loaded)
        return seq

    @contextmanager
    def settling(self, response: Response) -> Iterator[None]:
        """While its sequence is not given back yet, responses that go on from this response wait in `claim`."""
        settled = self._settling[response.id] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._settling[response.id]
            settled.set_result(None)

    async def give(self, response: Response, seq: Sequence) -> None:
        """Take the sequence of a response that is over, and save it if the response is stored."""
        if response.status == "failed":
            await self._engine.release(seq)
            return
        idle = Idle(response, seq, not response.is_stored)
        self._idle[response.id] = idle
        try:
            await self.beginnings.keep(response.owner, seq, is_followed=False)
        except EngineError as e:  # the engine has stopped
            log.warning("%s", e)
        if response.is_stored and not self._saves.are_full:
            await self._save(idle)
        while len(self._idle) > MAX_IDLE:
            await self.drop(next(iter(self._idle)))

    async def drop(self, id: str, *, save: bool = True) -> None:
        """Release the sequence of a response. Without `save` it is not saved, and a save under way has ended on
        return."""
        if not save and id in self._settling:  # it is over, but its sequence is not given back yet
            await asyncio.wait({self._settling[id]})
        idle = self._idle.pop(id, None)
        if not save:
            await self._saves.written(id)
        if idle is None:
            return
        if save:
            await self._save(idle)
        await self._engine.release(idle.seq)

    async def park(self, seq: Sequence) -> None:
        """Free the memory of an idle sequence: its state is stored, or computed again later."""
        idle = next((idle for idle in self._idle.values() if idle.seq is seq), None)
        if idle is None or not idle.response.is_stored:
            await self._resume.park(seq, None)
        elif await self._resume.park(seq, idle.response.branch):
            idle.is_saved = True

    async def aclose(self) -> None:
        """Save and release all idle sequences."""
        for id in list(self._idle):
            await self.drop(id)
        await self._saves.written()

    async def _idle_of(self, before: Response | None, ids: list[int]) -> Sequence | None:
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

    async def _from_memory(self, response: Response, ids: list[int]) -> Sequence | None:
        """A sequence from the longest state in `beginnings`; None if the stored state of the previous response may be
        longer."""
        while (stored := await self.beginnings.find(response.owner, ids[:-1])) is not None:
            if len(stored.ids) < response.num_known_tokens - 1:
                return None
            seq = await self._resume.loaded(await self._engine.start(stored))
            if seq is not None:
                return seq
            self.beginnings.drop(response.owner, stored)
        return None

    async def _save(self, idle: Idle) -> None:
        """Begin to save an idle sequence; it can be used while it is written."""
        if not idle.is_saved:
            idle.is_saved = await self._saves.begin(
                idle.response.id, idle.seq, idle.response.branch, lambda error: _not_saved(idle, error)
            )


def _not_saved(idle: Idle, error: str) -> None:
    idle.is_saved = False
    log.warning("%s", error)
