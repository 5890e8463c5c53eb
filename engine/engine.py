"""The engine's public methods, and the one place where asyncio meets its thread (`engine/worker.py`).

A request becomes an async generator here; what the thread does is known only by commands put to it and callbacks posted
back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.engine.constraint import Compiler, Constraint
from holdfast.engine.errors import EngineError
from holdfast.engine.sampling import SamplingParams
from holdfast.engine.sequence import Request, Sequence, Stored
from holdfast.engine.settings import EngineConfig
from holdfast.engine.snapshot import Snapshot, snapshot
from holdfast.engine.state.content_ids import Chain, Roll
from holdfast.engine.tokenizer import Tokenizer
from holdfast.engine.worker import Callbacks, OnCompile, Worker

OnPrefill = Callable[[int, int], None]
GREEDY = SamplingParams()
DEFAULTS = EngineConfig()


def _unheard(number: int, total: int) -> None:
    pass


class Engine:
    """Made by `Engine.open`. Methods are called on one event loop; the work happens on the worker's thread."""

    def __init__(self, directory: Path, config: EngineConfig, on_compile: OnCompile = _unheard):
        self.directory, self.config = directory, config
        self.on_pressure: Callable[[Sequence], None] | None = None  # asks an idle sequence's owner to park it
        self._loop: asyncio.AbstractEventLoop
        self._worker = Worker(directory, config, self._deliver, self._ask_to_park, on_compile)
        self.model_config, self.numerics = self._worker.model_config, self._worker.numerics
        self._tokenizer: Tokenizer | None = None
        self._compiler = Compiler(lambda: self.tokenizer, self.model_config.vocab_size)
        self._ids = count()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, model: Path | str, config: EngineConfig = DEFAULTS, on_compile: OnCompile = _unheard
    ) -> AsyncIterator["Engine"]:
        """Load the model directory and run its engine. Raises EngineError (CheckpointError for the files).

        On a new machine kernels are compiled first, about a minute: `on_compile(number, total)` is called before each.
        """
        engine = cls(Path(model), config, on_compile)
        engine._loop = asyncio.get_running_loop()
        started: asyncio.Future[BaseException | None] = engine._loop.create_future()
        engine._worker.start(lambda error: engine._deliver([(_settle, (started, error))]))
        try:
            if (error := await started) is not None:
                raise error
            yield engine
        finally:
            engine._worker.end()
            await asyncio.to_thread(engine._worker.join)
            engine._compiler.close()

    @property
    def identity(self) -> str:
        """A hash of the weights."""
        return self._worker.identity

    @property
    def max_context(self) -> int:
        """How many tokens a sequence can have, by the configuration, the model and memory."""
        return self._worker.max_context

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises EngineError for a directory without tokenizer.json."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_dir(self.directory)
        return self._tokenizer

    @property
    def kernels_not_kept(self) -> str:
        """Why the next start compiles kernels again; empty when it does not."""
        return self._worker.runner.model.ops.not_kept

    @property
    def is_decoding(self) -> bool:
        """Whether a request has begun to sample and is not over. May be called on any thread."""
        return any(request.num_sampled for request in list(self._worker.scheduler.running))

    @property
    def pages_in_use(self) -> tuple[int, int]:
        """(pages in use, pages in the pool). May be called on any thread."""
        num_pages = self._worker.runner.cache.num_pages
        return num_pages - self._worker.scheduler.pool.num_free, num_pages

    def chain(self, rolls: Items[Roll] = (), owner: str = "") -> Chain:
        """Content ids of states of this engine, for tokens of an owner that went through these rolls."""
        chain = Chain(self._worker.layout, self.config.page_tokens, owner, self.config.public_ids)
        chain.rolls += rolls
        return chain

    async def start(self, stored: Stored | None = None, owner: str = "") -> Sequence:
        """A sequence, empty or going on from a stored state. It takes memory once it is extended.

        An empty one shares pages with those of the same owner alone, and with others what is public."""
        if stored is None:
            return Sequence(next(self._ids), self.chain(owner=owner))
        position = len(stored.ids)
        chain = self.chain(
            stored.chain.rolls, stored.chain.owner
        )  # not shared: what this one feeds is not what another one feeds
        chain.page_ids += stored.chain.page_ids[: position // self.config.page_tokens]
        return Sequence(
            next(self._ids),
            chain,
            token_ids=list(stored.ids),
            num_tokens=position,
            least_tokens=position,
            num_sealed=position // self.config.page_tokens,
            stored=stored,
        )

    async def snapshot(self, seq: Sequence, is_followed: bool = False) -> Snapshot | None:
        """The state of an idle sequence, at its last token that another follows; None when it holds none in memory.

        `is_followed`: there are more tokens than the sequence has, so its last one counts too.
        It holds the pages until it is closed; the sequence may go on meanwhile. Raises EngineError for a busy one.
        """
        taken: list[Snapshot] = []

        def take() -> None:
            if self._worker.scheduler.is_busy(seq):
                raise EngineError(f"sequence {seq.id} is being extended: wait for it")
            if seq.slot >= 0 and seq.num_tokens:
                pages = list(seq.pages)
                self._worker.scheduler.pool.hold(pages)
                drop = lambda: self._worker.put(lambda: self._worker.scheduler.pool.drop(pages))  # noqa: E731
                taken.append(snapshot(self._worker.runner.cache, seq, is_followed, drop))

        await self._call(take)
        return taken[0] if taken else None

    async def roll(self, seq: Sequence, roll: Roll) -> None:
        """Drop what an idle sequence holds before `roll.first_kept`, but for its pinned prefix, which moves there.

        `roll.position` must be where its state ends. Raises EngineError for a roll that is not possible.
        """

        def do() -> None:
            if self._worker.scheduler.is_busy(seq):
                raise EngineError(f"sequence {seq.id} cannot roll while it is being extended")
            if seq.slot >= 0:  # else it was parked since it was loaded
                self._worker.scheduler.roll(seq, roll, self._worker.runner.move_prefix)

        while roll not in seq.chain.rolls:
            await self.load(seq)
            await self._call(do)

    async def park(self, seq: Sequence, stored: Stored | None) -> bool:
        """Free the memory of an idle sequence, whose state is `stored` now; None gives it up, to be computed again.

        False when it is in use: then nothing has changed.
        """
        done = []

        def park() -> None:
            if not seq.is_released and not self._worker.scheduler.is_busy(seq):
                seq.stored = stored
                self._worker.scheduler.park(seq)
                done.append(True)

        await self._call(park)
        return bool(done)

    async def release(self, seq: Sequence) -> None:
        """End a sequence and free its memory; a request on it ends with an error."""
        await self._call(lambda: self._worker.scheduler.release(seq))

    async def extend(
        self, seq: Sequence, ids: Items[int], params: SamplingParams = GREEDY, on_prefill: OnPrefill | None = None
    ) -> AsyncIterator[int]:
        """Feed `ids`, then yield sampled tokens, a stop token too, up to `params.max_tokens`.

        Closing the generator leaves the sequence with exactly the tokens yielded. `on_prefill(done, total)` is called
        on the event loop. Raises ContextFull when the tokens do not fit, EngineError for ids outside the vocabulary
        and for a constraint that is not possible; then the sequence is as before. A constraint that turns out too
        complex for a step raises EngineError after the tokens sampled so far.
        """
        arrived: asyncio.Queue[int | BaseException | None] = asyncio.Queue()
        report = on_prefill or (lambda done, total: None)
        request = Request(
            seq,
            params,
            on_token=lambda token: self._worker.post(arrived.put_nowait, token),
            on_prefill=lambda done, total: self._worker.post(report, done, total),
            on_done=lambda error: self._worker.post(arrived.put_nowait, error),
        )
        try:
            await self._submit(request, ids)
            while (item := await arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                request.num_taken += 1
                self._worker.put(_nothing)  # the thread may be waiting for this
                yield item
        finally:
            if self._worker.failure is None:
                await self._call(lambda: self._worker.scheduler.cancel(request))

    async def check(self, constraint: Constraint) -> None:
        """Raises EngineError for a constraint that no text of this model can meet, or that is too large."""
        await asyncio.wrap_future(self._compiler.submit(constraint, frozenset()))

    async def score(self, ids: Items[int]) -> Tensor:
        """float32 [len(ids), vocab]: row t predicts token t + 1."""
        if not ids:
            return torch.zeros(0, self.model_config.vocab_size)
        seq = await self.start()
        scores: list[Tensor] = []
        try:
            await self._wait(seq, ids, scores=scores)
            return torch.cat(scores)
        finally:
            await self.release(seq)

    async def load(self, seq: Sequence) -> None:
        """Bring a stored sequence into memory now. Raises what its readers raise, and leaves it as it was then."""
        await self._wait(seq, (), is_load=True)

    async def feed(self, seq: Sequence, ids: Items[int], on_prefill: OnPrefill | None = None) -> None:
        """Compute the state of all its tokens and of `ids` after them, and sample nothing."""
        await self._wait(seq, ids, on_prefill)

    async def _wait(
        self,
        seq: Sequence,
        ids: Items[int],
        on_prefill: OnPrefill | None = None,
        scores: list[Tensor] | None = None,
        is_load: bool = False,
    ) -> None:
        """A request that samples nothing, from start to end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()
        report = on_prefill or (lambda done, total: None)
        request = Request(
            seq,
            SamplingParams(max_tokens=0),
            on_token=lambda token: None,
            on_prefill=lambda done, total: self._worker.post(report, done, total),
            on_done=lambda error: self._worker.post(_settle, ended, error),
            scores=scores,
            is_load=is_load,
        )
        try:
            await self._submit(request, ids)
            # shielded: or a cancelled wait would count as an ended request, which then went on
            if (error := await asyncio.shield(ended)) is not None:
                raise error
        finally:
            if self._worker.failure is None and not ended.done():
                await self._call(lambda: self._worker.scheduler.cancel(request))

    async def _submit(self, request: Request, ids: Items[int]) -> None:
        """Add ids to the sequence and queue the request, or leave the sequence as it was and raise."""
        vocab = self.model_config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise EngineError(f"token id {wrong} is outside the vocabulary of {vocab}")
        params = request.params
        if params.constraint is not None:
            request.matcher = await asyncio.wrap_future(
                self._compiler.submit(params.constraint, params.stop_ids, params.begins)
            )
        await self._call(lambda: self._worker.scheduler.add(request, list(ids)))

    async def _call(self, command: Callable[[], None]) -> None:
        """Run a command on the engine's thread and wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Exception | None] = loop.create_future()

        def run() -> None:
            try:
                command()
            except Exception as e:  # the caller gets it; the thread serves on
                self._worker.post(_settle, done, e)
            else:
                self._worker.post(_settle, done, None)

        if self._worker.failure is not None:
            raise self._worker.failure
        self._worker.put(run)
        # shielded: a cancelled turn must still see its request taken back
        if (error := await asyncio.shield(done)) is not None:
            raise error

    def _ask_to_park(self, seq: Sequence) -> bool:
        """Called on the worker's thread."""
        if self.on_pressure is None:
            return False
        self._worker.post(self.on_pressure, seq)
        return True

    def _deliver(self, callbacks: Callbacks) -> None:
        """Call all of it on the event loop. Called on the worker's thread."""

        def call() -> None:
            for function, args in callbacks:
                self._loop.call_soon(function, *args)  # each by itself: one that fails takes no other along

        if not self._loop.is_closed():  # a closed loop has no callers left
            self._loop.call_soon_threadsafe(call)


def _nothing() -> None:
    """A command that only wakes the thread."""


def _settle(future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result unless it is already done, for example cancelled."""
    if not future.done():
        future.set_result(value)
