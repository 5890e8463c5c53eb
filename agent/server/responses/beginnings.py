"""A cache of state in memory that other conversations of the same user can start from: after instructions and tools,
after a whole prompt, after an answer.

An entry has the tail of its position. Its pages are in the page pool, shared with sequences that have the same
beginning; once no sequence has them the entry cannot be loaded. Must not know requests.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.agent.models.opened import AnyModel
from holdfast.agent.server.access import stored_owner
from holdfast.engine import Sequence, Snapshot, Stored
from holdfast.memory import StoreError

MAX_BYTES = 2**28


@dataclass(frozen=True)
class Beginning:
    """`pages`, by number, are bytes of the pages that a load always reads, and of the last one, which is not shared
    yet."""

    position: int
    page_ids: list[bytes]
    tail: bytes
    pages: dict[int, bytes]

    @property
    def num_bytes(self) -> int:
        return len(self.tail) + sum(map(len, self.pages.values()))

    def read_pages(self, numbers: list[int]) -> Iterator[bytes]:
        for number in numbers:
            if number not in self.pages:
                raise StoreError(f"page {number} of a shared beginning is in memory no more")
            yield self.pages[number]


class Beginnings:
    """The cache of all users; a user finds only entries of the same user. All calls are made on the event loop."""

    def __init__(self, engine: AnyModel):
        self._engine = engine
        self._kept: OrderedDict[tuple[str, bytes], Beginning] = (
            OrderedDict()
        )  # by owner and tail id; used last at the end

    async def keep(self, owner: str, seq: Sequence, *, is_followed: bool) -> None:
        """Add the state that an idle sequence has now, see `Engine.snapshot`."""
        snapshot = await self._engine.snapshot(seq, is_followed)
        if snapshot is None:
            return
        with snapshot:
            if snapshot.position < self._engine.config.page_tokens or (owner, snapshot.tail_id) in self._kept:
                return
            self._kept[owner, snapshot.tail_id] = await asyncio.to_thread(self._taken, snapshot)
        while sum(kept.num_bytes for kept in self._kept.values()) > MAX_BYTES:
            self._kept.popitem(last=False)

    async def find(self, owner: str, ids: list[int]) -> Stored | None:
        """The state of the longest prefix of these tokens that is in the cache."""
        positions = sorted({kept.position for (of, _), kept in self._kept.items() if of == owner}, reverse=True)
        chain = self._engine.chain(owner=stored_owner(owner))
        tail_ids = await asyncio.to_thread(lambda: [chain.tail_id(ids, at) for at in positions if at <= len(ids)])
        key = next(((owner, tail_id) for tail_id in tail_ids if (owner, tail_id) in self._kept), None)
        if key is None:
            return None
        self._kept.move_to_end(key)
        kept = self._kept[key]
        return Stored(
            self._engine.chain(owner=stored_owner(owner)),
            ids[: kept.position],
            kept.page_ids,
            lambda: kept.tail,
            kept.read_pages,
        )

    def drop(self, owner: str, stored: Stored) -> None:
        """Remove an entry whose pages are gone."""
        self._kept.pop((owner, stored.chain.tail_id(stored.ids, len(stored.ids))), None)

    def forget(self, owner: str) -> None:
        """Remove all entries of a user."""
        for key in [key for key in self._kept if key[0] == owner]:
            del self._kept[key]

    def _taken(self, snapshot: Snapshot) -> Beginning:
        keys = snapshot.pages
        numbers = {*range(min(self._engine.config.pinned_pages, len(keys))), *range(len(keys))[-1:]}
        pages = {number: snapshot.page_data(keys[number]) for number in sorted(numbers)}
        return Beginning(snapshot.position, [key.id for key in keys], snapshot.tail_data(), pages)
