"""The engine: one plain loop on its own thread, and the one place where asyncio meets it.

The thread drains commands, schedules, runs and commits. The event loop side turns a request into an async generator.
A failing step ends the requests in it with an error and the engine with them: state half written is not trusted.
Stored state is read and unpacked on threads of its own, while other sequences run.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from engine.chain import Chain, Roll, digest
from engine.config import ModelConfig
from engine.constraint import Compiler, Constraint
from engine.errors import EngineError, RankLost
from engine.parallel import check_ranks
from engine.pinned import PinnedHead
from engine.placement import place
from engine.runner import Runner
from engine.sampling import SamplingParams
from engine.scheduler import Scheduler
from engine.sequence import Request, Sequence, Stored
from engine.settings import EngineConfig
from engine.state import Snapshot, pack_page, place_pages, snapshot
from engine.tokenizer import Tokenizer

OnPrefill = Callable[[int, int], None]
LOADERS = 2  # sequences that are read at a time
GREEDY = SamplingParams()
DEFAULTS = EngineConfig()


class Engine:
    """Made by `Engine.open`. Methods are called on one event loop; the work happens on the engine's thread."""

    def __init__(self, directory: Path, config: EngineConfig):
        self.directory, self.config = directory, config
        self.model_config = ModelConfig.from_dir(directory)
        placement = place(config.device)
        self.numerics = placement.numerics(config.numerics)
        self.max_context = 0
        self.identity = ""
        self.layout = b""
        self.on_pressure: Callable[[Sequence], None] | None = None  # asks an idle sequence's owner to park it
        self._tokenizer: Tokenizer | None = None
        self._compiler = Compiler(lambda: self.tokenizer, self.model_config.vocab_size)
        self._loaders = ThreadPoolExecutor(LOADERS, "holdfast-load")
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._told: list[tuple[Callable, tuple[object, ...]]] = []  # to the event loop, not handed over yet
        self._ids = count()
        self._loaded: asyncio.Future[None]
        self._failure: EngineError | None = None
        check_ranks(self.model_config, placement, config.ranks)
        self._thread = threading.Thread(target=self._main, name="holdfast-engine", daemon=True)

    @classmethod
    @asynccontextmanager
    async def open(cls, model: Path | str, config: EngineConfig = DEFAULTS) -> AsyncIterator["Engine"]:
        """Load the model directory and run its engine. Raises EngineError (CheckpointError for the files)."""
        engine = cls(Path(model), config)
        loop = asyncio.get_running_loop()
        engine._loaded = loop.create_future()
        engine._thread.start()
        try:
            await engine._loaded
            yield engine
        finally:
            engine._failure = engine._failure or EngineError("the engine is closed: open it again")
            engine._commands.put(None)
            await asyncio.to_thread(engine._thread.join)
            engine._loaders.shutdown(cancel_futures=True)
            engine._compiler.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises EngineError for a directory without tokenizer.json."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_dir(self.directory)
        return self._tokenizer

    @property
    def compiles_kernels(self) -> bool:
        """Whether the next steps take half a minute longer: no machine code of the kernels was found."""
        return self._runner.model.ops.compiles

    @property
    def is_decoding(self) -> bool:
        """Whether somebody is waiting for the next sampled token. May be asked on any thread."""
        return any(request.num_sampled for request in list(self._scheduler.running))

    @property
    def pages_in_use(self) -> tuple[int, int]:
        """How many pages of the pool are held, and how many there are. May be asked on any thread."""
        num_pages = self._runner.cache.num_pages
        return num_pages - self._scheduler.pool.num_free, num_pages

    def chain(self, rolls: Items[Roll] = ()) -> Chain:
        """Content ids of states of this engine, for tokens that went through these rolls."""
        chain = Chain(self.layout, self.config.page_tokens)
        chain.rolls += rolls
        return chain

    async def start(self, stored: Stored | None = None) -> Sequence:
        """A sequence, empty or going on from a stored state. It takes memory once it is extended."""
        if stored is None:
            return Sequence(next(self._ids), self.chain())
        position = len(stored.ids)
        return Sequence(
            next(self._ids), stored.chain, token_ids=list(stored.ids), num_tokens=position, least_tokens=position,
            num_sealed=position // self.config.page_tokens, stored=stored,
        )  # fmt: skip

    async def snapshot(self, seq: Sequence, is_followed: bool = False) -> Snapshot | None:
        """The state of an idle sequence, at its last token that another follows; None when it holds none in memory.

        `is_followed`: there are more tokens than the sequence has, so its last one counts too.
        It holds the pages until it is closed; the sequence may go on meanwhile. Raises EngineError for a busy one.
        """
        taken: list[Snapshot] = []

        def take() -> None:
            if self._scheduler.is_busy(seq):
                raise EngineError(f"sequence {seq.id} is being extended: wait for it")
            if seq.slot >= 0 and seq.num_tokens:
                pages = list(seq.pages)
                self._scheduler.pool.hold(pages)
                drop = lambda: self._commands.put(lambda: self._scheduler.pool.drop(pages))  # noqa: E731
                taken.append(snapshot(self._runner.cache, seq, is_followed, drop))

        await self._call(take)
        return taken[0] if taken else None

    async def roll(self, seq: Sequence, roll: Roll) -> None:
        """Drop what an idle sequence holds before `roll.first_kept`, but for its pinned head, which moves there.

        `roll.position` must be where its state ends. Raises EngineError for a roll that is not possible.
        """

        def do() -> None:
            if self._scheduler.is_busy(seq):
                raise EngineError(f"sequence {seq.id} cannot roll while it is being extended")
            if seq.slot >= 0:  # else it was parked since it was loaded
                self._scheduler.roll(seq, roll, self._runner.move_head)

        while roll not in seq.chain.rolls:
            await self.load(seq)
            await self._call(do)

    async def park(self, seq: Sequence, stored: Stored | None) -> bool:
        """Free the memory of an idle sequence, whose state is `stored` now; None gives it up, to be computed again.

        False when it is in use: then nothing has changed.
        """
        done = []

        def park() -> None:
            if not seq.is_released and not self._scheduler.is_busy(seq):
                seq.stored = stored
                self._scheduler.park(seq)
                done.append(True)

        await self._call(park)
        return bool(done)

    async def release(self, seq: Sequence) -> None:
        """End a sequence and free its memory; whatever extends it ends with an error."""
        await self._call(lambda: self._scheduler.release(seq))

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
            on_token=lambda token: self._tell(arrived.put_nowait, token),
            on_prefill=lambda done, total: self._tell(report, done, total),
            on_done=lambda error: self._tell(arrived.put_nowait, error),
        )
        try:
            await self._submit(request, ids)
            while (item := await arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                request.num_taken += 1
                self._commands.put(_nothing)  # the thread may be waiting for this
                yield item
        finally:
            if self._failure is None:
                await self._call(lambda: self._scheduler.cancel(request))

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
        self, seq: Sequence, ids: Items[int], on_prefill: OnPrefill | None = None,
        scores: list[Tensor] | None = None, is_load: bool = False,
    ) -> None:  # fmt: skip
        """A request that samples nothing, from start to end."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()
        report = on_prefill or (lambda done, total: None)
        request = Request(
            seq,
            SamplingParams(max_tokens=0),
            on_token=lambda token: None,
            on_prefill=lambda done, total: self._tell(report, done, total),
            on_done=lambda error: self._tell(_settle, ended, error),
            scores=scores,
            is_load=is_load,
        )
        try:
            await self._submit(request, ids)
            if (error := await ended) is not None:
                raise error
        finally:
            if self._failure is None and not ended.done():
                await self._call(lambda: self._scheduler.cancel(request))

    async def _submit(self, request: Request, ids: Items[int]) -> None:
        """Add ids to the sequence and queue the request, or leave the sequence as it was and raise."""
        vocab = self.model_config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise EngineError(f"token id {wrong} is outside the vocabulary of {vocab}")
        params = request.params
        if params.constraint is not None:
            request.matcher = await asyncio.wrap_future(
                self._compiler.submit(params.constraint, params.stop_ids, params.instead)
            )
        await self._call(lambda: self._scheduler.add(request, list(ids)))

    async def _call(self, command: Callable[[], None]) -> None:
        """Run a command on the engine's thread and wait for it."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Exception | None] = loop.create_future()

        def run() -> None:
            try:
                command()
            except Exception as e:  # whoever asked gets it; the thread serves on
                self._tell(_settle, done, e)
            else:
                self._tell(_settle, done, None)

        if self._failure is not None:
            raise self._failure
        self._commands.put(run)
        # shielded: a cancelled turn must still see its request taken back
        if (error := await asyncio.shield(done)) is not None:
            raise error

    # ---- the engine's thread -------------------------------------------------------------------------------------

    def _main(self) -> None:
        loop = self._loaded.get_loop()
        try:
            self._load()
        except BaseException as e:
            _post(loop, self._loaded.set_exception, e)
            return
        _post(loop, self._loaded.set_result, None)
        is_busy = False
        while self._drain(wait=not is_busy):
            self._hand_over()
            is_busy = self._step()
            self._hand_over()
        self._finish_all()
        self._hand_over()
        self._runner.close()

    def _load(self) -> None:
        config = self.config
        most = self.model_config.max_position_embeddings
        allowed = config.max_context or most
        if allowed > most:
            raise EngineError(f"max_context={allowed} is more than the {most} tokens that the model supports")
        self._runner = Runner.open(self.directory, self.model_config, config, self._lose_rank)
        model, cache = self._runner.model, self._runner.cache
        self.identity = model.identity
        self.max_context = min(allowed, cache.num_pages * config.page_tokens)
        self._scheduler = Scheduler(
            cache, self.max_context, config.prefill_tokens(cache.placement), config.max_sequences, config.num_drafts,
            self._start_load, self._ask_to_park, config.pinned_pages,
        )  # fmt: skip
        # once round before anything lies there: the kernels of reading state are compiled by their first call
        head = PinnedHead.empty(cache, 0)
        place_pages(cache, [0], [pack_page(cache, 0, head, 0)], head)
        tokenizer = self.directory / "tokenizer.json"
        self.layout = digest(
            b"state 1", self.identity.encode(), self.numerics.name.encode(), b"%d" % config.page_tokens,
            b"%d" % config.pinned_pages,
            tokenizer.read_bytes() if tokenizer.is_file() else b"",
        )  # fmt: skip

    def _tell(self, function: Callable, *args: object) -> None:
        """Call on the event loop, with what else it is to know after this step: waking it up costs as much as a kernel."""
        self._told.append((function, args))

    def _hand_over(self) -> None:
        if self._told:
            told, self._told = self._told, []
            _post(self._loaded.get_loop(), _call_all, self._loaded.get_loop(), told)

    def _ask_to_park(self, seq: Sequence) -> bool:
        if self.on_pressure is None:
            return False
        self._tell(self.on_pressure, seq)
        return True

    def _start_load(self, request: Request, missing: list[int]) -> None:
        """Read the stored state of a sequence, whose memory is taken already, on a thread of its own."""
        seq, cache = request.seq, self._runner.cache
        stored = seq.stored
        assert stored is not None

        def load() -> None:
            error = None
            try:
                head = PinnedHead.empty(cache, self.config.pinned_pages * cache.page_tokens)
                self._runner.load(seq, stored, missing, head)
                seq.head = head
            except Exception as e:  # whoever needed it gets it; the sequence is stored as before
                error = e
            self._commands.put(lambda: self._scheduler.loaded(request, error))

        self._loaders.submit(load)

    def _drain(self, wait: bool) -> bool:
        """Run all commands that have come, or wait for one. False ends the thread."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _step(self) -> bool:
        """Schedule, run, commit; False when nothing could run."""
        if self._failure is not None:  # what was on its way when the engine failed ends too
            self._finish_all()
            return False
        try:
            plan = self._scheduler.schedule()
            if plan:
                for (request, num_tokens), sampled in zip(plan, self._runner.run(plan)):
                    self._scheduler.commit(request, num_tokens, sampled)
            return bool(plan)
        except RankLost as e:
            self._fail(e)
        except Exception as e:  # our bug, or memory: nobody may go on from a half-written state
            failure = EngineError(f"the engine stopped: {type(e).__name__}: {e}")
            failure.__cause__ = e
            self._fail(failure)
        return False

    def _lose_rank(self, error: RankLost) -> None:
        """Called on another thread."""
        self._commands.put(lambda: self._fail(error))

    def _fail(self, error: EngineError) -> None:
        """Nothing goes on: every request ends with this error, and so does every later one."""
        if self._failure is None:
            self._failure = error
            self._finish_all()
            self._runner.close()

    def _finish_all(self) -> None:
        """End every request with why the engine ended."""
        for request in [*self._scheduler.running, *self._scheduler.waiting, *self._scheduler.loading]:
            self._scheduler.finish(request, self._failure)


def _nothing() -> None:
    """A command that only wakes the thread."""


def _post(loop: asyncio.AbstractEventLoop, function: Callable, *args: object) -> None:
    """Call on the event loop; a loop that is gone has nobody to tell."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)


def _call_all(loop: asyncio.AbstractEventLoop, told: list[tuple[Callable, tuple[object, ...]]]) -> None:
    for function, args in told:
        loop.call_soon(function, *args)  # each by itself: one that fails takes no other along


def _settle(future: asyncio.Future, value: object) -> None:
    """Give a future its result unless whoever waited for it has gone."""
    if not future.done():
        future.set_result(value)
