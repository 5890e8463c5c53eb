"""Keeps the state of sequences on disk and finds it again: the one place that knows both snapshots and their store.

The engine says what the bytes mean, memory where they lie, the session when. State is a cache of the token log: what
cannot be found or read costs prefill, never history.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from holdfast.agent.models.model import Stateful
from holdfast.engine import Chain, EngineError, PageKey, Roll, Snapshot, StateError, Stored
from holdfast.engine import Sequence as LiveSequence
from holdfast.memory import PAGES, TAILS, DamagedBlob, PageData, SnapshotStore, StoredTail, StoreError, TailRow

WRITERS = 2  # an urgent save does not wait for one that pauses
PAUSE_S = 0.25  # so that far fewer than one in a hundred tokens meets a page that is written
UNREADABLE = (DamagedBlob, StateError)


class Snapshots:
    """One per engine. Saves run on separate threads, beside the engine."""

    def __init__(self, engine: Stateful, store: SnapshotStore):
        self.engine, self.store = engine, store
        self.bytes_written = 0
        self._writer = ThreadPoolExecutor(WRITERS, "holdfast-save")

    async def find(
        self, ids: Sequence[int], rolls: Iterable[Roll], branch: int, session_id: int | None = None, owner: str = ""
    ) -> Stored | None:
        """The stored state that covers most of these tokens: of this owner, or public.

        With a session, only state that its branches use.

        `branch` goes on from it; 0 when that is no branch yet.
        """
        chain = self.engine.chain(list(rolls), owner)
        return await asyncio.to_thread(self._find, ids, chain, branch, session_id)

    async def save(self, seq: LiveSequence, branch: int, is_followed: bool = False) -> Stored | None:
        """Make the state of an idle sequence durable; None when it holds none in memory. See `Engine.snapshot`.

        Raises StoreError when it cannot be written: nothing is lost but the time that reading it would have saved.
        """
        writing = await self.begin_save(seq, branch, is_followed, is_urgent=True)
        if writing is None:
            return None
        saved = await writing
        tail = await asyncio.to_thread(self.store.find, [saved.tail_id])
        if tail is None:
            raise StoreError(f"the state at token {saved.position} was removed as soon as it was saved: try again")
        return self._stored(tail, seq.token_ids[: saved.position], self.engine.chain(saved.rolls, seq.chain.owner))

    async def begin_save(
        self, seq: LiveSequence, branch: int, is_followed: bool = False, is_urgent: bool = False
    ) -> "asyncio.Task[Snapshot] | None":
        """As `save`, but only the snapshot is waited for: the sequence may go on while the task writes. It gives the
        snapshot, closed.

        Unless it `is_urgent`, it waits while tokens are sampled.
        """
        snapshot = await self.engine.snapshot(seq, is_followed)
        if snapshot is None:
            return None

        async def write() -> Snapshot:
            with snapshot:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._writer, self._write, snapshot, branch, is_urgent)
            return snapshot

        return asyncio.create_task(write())

    async def forget(self, error: Exception, stored: Stored | None) -> None:
        """Drop what turned out to be damaged, so that it is not found again: one page or tail, or where it is not known
        which, everything of a state."""
        if isinstance(error, DamagedBlob):
            await asyncio.to_thread(self.store.forget_damaged, error.kind, error.id)
        elif stored is not None:
            tail_id = stored.chain.tail_id(stored.ids, len(stored.ids))
            for kind, id_ in [(TAILS, tail_id), *((PAGES, page_id) for page_id in stored.page_ids)]:
                await asyncio.to_thread(self.store.forget_damaged, kind, id_)

    def take_notes(self) -> list[str]:
        """Damage that was met since the last call, a line for each."""
        notes = self.store.notes[:]
        del self.store.notes[: len(notes)]
        return notes

    def close(self) -> None:
        self._writer.shutdown()

    def _write(self, snapshot: Snapshot, branch: int, is_urgent: bool) -> None:
        def page(key: PageKey) -> PageData:
            # threads share the interpreter, and a page takes it for as long as a token of a small model does
            if not is_urgent and self.engine.is_decoding:
                time.sleep(PAUSE_S)
            return PageData(key.id, key.parent, key.number, snapshot.page_data(key))

        keys = [*snapshot.prefix, *snapshot.pages]
        missing = self.store.missing_pages([key.id for key in keys])
        last = snapshot.pages[-1] if snapshot.pages else None
        row = TailRow(
            id=snapshot.tail_id,
            last_page=last.id if last else None,
            first_number=snapshot.pages[0].number if snapshot.pages else 0,
            head=b"".join(key.id for key in snapshot.prefix),
            position=snapshot.position,
        )
        pages = (page(key) for key in keys if key.id in missing)
        self.bytes_written += self.store.add(row, snapshot.tail_data(), pages, branch).bytes_written

    def _find(self, ids: Sequence[int], chain: Chain, branch: int, session_id: int | None) -> Stored | None:
        rolls = chain.rolls
        tails: dict[bytes, tuple[int, bool]] = {}  # id -> position, and whether rolls at just that position are in it
        for position in self.store.positions(len(ids), session_id):
            for is_rolled in (True, False):
                tails.setdefault(chain.tail_id(ids, position, is_rolled), (position, is_rolled))
        tail = self.store.find(list(tails), session_id)
        if tail is None:
            return None
        if branch:
            self.store.use(tail.id, branch)
        position, is_rolled = tails[tail.id]
        applied = [r for r in rolls if r.position < position or (is_rolled and r.position == position)]
        return self._stored(tail, ids[:position], self.engine.chain(applied, chain.owner))

    def _stored(self, tail: StoredTail, ids: Sequence[int], chain: Chain) -> Stored:
        return Stored(
            chain,
            ids,
            tail.page_ids,
            lambda: self.store.read_tail(tail),
            lambda numbers: self.store.read_pages(tail, numbers),
        )


class Saves:
    """Saves under way, of sequences that go on while they are written.

    No more than `most`: each holds its pages in memory.

    A key names what is saved: a response, a position.
    """

    def __init__(self, snapshots: Snapshots, most: int):
        self._snapshots, self._most = snapshots, most
        self._tasks: dict[Hashable, asyncio.Task[Snapshot]] = {}

    @property
    def are_full(self) -> bool:
        return len(self._tasks) >= self._most

    async def begin(
        self,
        key: Hashable,
        seq: LiveSequence,
        branch: int,
        failed: Callable[[str], None],
        is_followed: bool = False,
        is_urgent: bool = False,
    ) -> bool:
        """Whether there was a state to save: see `Snapshots.begin_save`.

        `failed` is called when it cannot be written.
        """
        try:
            writing = await self._snapshots.begin_save(seq, branch, is_followed, is_urgent)
        except EngineError:  # it is in use, or the engine has stopped
            return False
        if writing is None:
            return False
        self._tasks[key] = writing

        def ended(task: "asyncio.Task[Snapshot]") -> None:
            if self._tasks.get(key) is task:
                del self._tasks[key]
            if not task.cancelled() and (error := task.exception()) is not None:
                failed(str(error))

        writing.add_done_callback(ended)
        return True

    async def written(self, key: Hashable = None) -> None:
        """Wait until the save of this key is over, or all that have begun."""
        tasks = set(self._tasks.values()) if key is None else {self._tasks[key]} if key in self._tasks else set()
        if tasks:
            await asyncio.wait(tasks)
