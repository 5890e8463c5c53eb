"""The engine's thread: one plain loop that drains commands, schedules, runs and commits. It knows no event loop.

A failing step ends the requests in it with an error and the engine with them: state half written is not trusted.
Loader threads read and unpack stored state while other sequences run.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.files import MAX_TOKENIZER_BYTES, read_file
from holdfast.engine.columns import check_ranks
from holdfast.engine.errors import EngineError, RankLost
from holdfast.engine.placement import place
from holdfast.engine.runner import Runner
from holdfast.engine.scheduler import Scheduler
from holdfast.engine.sequence import Request, Sequence
from holdfast.engine.settings import EngineConfig
from holdfast.engine.snapshot import pack_page, place_pages
from holdfast.engine.state.content_ids import digest
from holdfast.engine.state.pinned_prefix import PinnedPrefix

LOADERS = 2  # sequences that are read at a time
OnCompile = Callable[[int, int], None]
Callbacks = list[tuple[Callable[..., object], tuple[object, ...]]]


class Worker:
    """Owns the runner and the scheduler, which are there once it has started. Only `start`, `put`, `end` and `join` are
    for other threads.

    `deliver` gets what `post` has collected in a step; `ask_to_park` asks an idle sequence's owner to give its memory
    back, and returns False when the sequence has no owner; `on_compile(number, total)` is delivered before a CPU kernel
    is compiled. All are called on this thread. Raises EngineError for an unusable configuration.
    """

    runner: Runner
    scheduler: Scheduler

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        deliver: Callable[[Callbacks], None],
        ask_to_park: Callable[[Sequence], bool],
        on_compile: OnCompile,
    ):
        self.directory, self.config = directory, config
        self.model_config = ModelConfig.from_dir(directory)
        placement = place(config.device)
        self.numerics = placement.numerics(config.numerics)
        check_ranks(self.model_config, placement, config.ranks)
        self.max_context = 0
        self.identity = ""
        self.layout = b""
        self.failure: EngineError | None = None
        self._deliver, self._ask_to_park, self._on_compile = deliver, ask_to_park, on_compile
        self._posted: Callbacks = []
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loaders = ThreadPoolExecutor(LOADERS, "holdfast-load")

    def start(self, on_started: Callable[[BaseException | None], None]) -> None:
        """Load the model and serve; `on_started` is called on the thread, with why it could not."""
        self._thread = threading.Thread(target=self._main, args=(on_started,), name="holdfast-engine", daemon=True)
        self._thread.start()

    def put(self, command: Callable[[], None]) -> None:
        """Run it on the thread, after those before it."""
        self._commands.put(command)

    def end(self) -> None:
        """End all requests and the thread; no command may be put any more."""
        self.failure = self.failure or EngineError("the engine is closed: open it again")
        self._commands.put(None)

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()
        self._loaders.shutdown(cancel_futures=True)

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Call `function` on the event loop after this step, with all others: a wake-up costs as much as a kernel."""
        self._posted.append((function, args))

    def _main(self, on_started: Callable[[BaseException | None], None]) -> None:
        try:
            self._load()
        except BaseException as e:
            on_started(e)
            return
        on_started(None)
        is_busy = False
        while self._drain(wait=not is_busy):
            self._hand_over()
            is_busy = self._step()
            self._hand_over()
        self._finish_all()
        self._hand_over()
        self.runner.close()

    def _load(self) -> None:
        config = self.config
        most = self.model_config.max_position_embeddings
        allowed = config.max_context or most
        if allowed > most:
            raise EngineError(f"max_context={allowed} is more than the {most} tokens that the model supports")
        self.runner = Runner.open(self.directory, self.model_config, config, self._lose_rank)
        model, cache = self.runner.model, self.runner.cache
        self.identity = model.identity
        self.max_context = min(allowed, cache.num_pages * config.page_tokens)
        self.scheduler = Scheduler(
            cache,
            self.max_context,
            config.prefill_tokens(cache.placement),
            config.max_sequences,
            config.num_drafts,
            self._start_load,
            self._ask_to_park,
            config.pinned_pages,
        )
        if not cache.placement.runs_triton:
            with model.ops.compiling(config.ranks, lambda *which: self._deliver([(self._on_compile, which)])):
                self._warm_up()
        self.layout = digest(
            b"state 1",
            self.identity.encode(),
            self.numerics.name.encode(),
            b"%d" % config.page_tokens,
            b"%d" % config.pinned_pages,
            self._tokenizer_file(),
        )

    def _tokenizer_file(self) -> bytes:
        try:
            return read_file(self.directory / "tokenizer.json", MAX_TOKENIZER_BYTES)
        except FileNotFoundError:
            return b""

    def _warm_up(self) -> None:
        """Call all kernels while the cache is empty: the first call compiles, which takes a minute for all of them."""
        cache, prefix = self.runner.cache, PinnedPrefix.empty(self.runner.cache, 0)
        self.runner.warm_up()
        place_pages(cache, [0], [pack_page(cache, 0, prefix, 0)], prefix)

    def _hand_over(self) -> None:
        if self._posted:
            posted, self._posted = self._posted, []
            self._deliver(posted)

    def _start_load(self, request: Request, missing: list[int]) -> None:
        """Read the stored state of a sequence, whose memory is already taken, on a loader thread."""
        seq, cache = request.seq, self.runner.cache
        stored = seq.stored
        assert stored is not None

        def load() -> None:
            error = None
            try:
                prefix = PinnedPrefix.empty(cache, self.config.pinned_pages * cache.page_tokens)
                self.runner.load(seq, stored, missing, prefix)
            except Exception as e:  # the request gets it; the sequence is stored as before
                error = e
            self._commands.put(lambda: self.scheduler.loaded(request, error))

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
        if self.failure is not None:  # what was on its way when the engine failed ends too
            self._finish_all()
            return False
        try:
            plan = self.scheduler.schedule()
            if plan:
                for (request, num_tokens), sampled in zip(plan, self.runner.run(plan)):
                    self.scheduler.commit(request, num_tokens, sampled)
            return bool(plan)
        except RankLost as e:
            self._fail(e)
        except Exception as e:  # our bug, or memory: no request may go on from a half-written state
            failure = EngineError(f"the engine stopped: {type(e).__name__}: {e}")
            failure.__cause__ = e
            self._fail(failure)
        return False

    def _lose_rank(self, error: RankLost) -> None:
        """Called on another thread."""
        self._commands.put(lambda: self._fail(error))

    def _fail(self, error: EngineError) -> None:
        """Nothing goes on: every request ends with this error, and so does every later one."""
        if self.failure is None:
            self.failure = error
            self._finish_all()
            self.runner.close()

    def _finish_all(self) -> None:
        """End every request with why the engine ended."""
        for request in [*self.scheduler.running, *self.scheduler.waiting, *self.scheduler.loading]:
            self.scheduler.finish(request, self.failure)
