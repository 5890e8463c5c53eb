"""Conversations that the server keeps: metadata, and items that responses and clients add.

A conversation is a row in the table of responses, and each addition another row: a turn never writes the whole
conversation again. One response of a conversation runs at a time. Must not know how a response is made.
"""

import asyncio
import json
import secrets
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from holdfast.agent.server.json import ApiError, Json, dumps
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.memory import StoredResponse, StoreError


@dataclass
class Kept:
    """One conversation. Its items are those of its additions, without the removed ones."""

    id: str
    created_at: float
    metadata: dict[str, str]
    num_additions: int = 0
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KeptConversations:
    """The conversations of all users. Methods raise ApiError 404 for one that does not exist or has another owner."""

    cache: ResponseCache
    _busy: set[tuple[str, str]] = field(default_factory=set)

    def hold(self, owner: str, id: str) -> None:
        """Reserve a conversation for a response that will add to it. Raises ApiError 409 if another has it."""
        if (owner, id) in self._busy:
            text = "another response of this conversation is under way: ask again when it is over"
            raise ApiError(409, text, "conversation_locked", "conversation")
        self._busy.add((owner, id))

    @asynccontextmanager
    async def changing(self, owner: str, id: str) -> AsyncIterator[Kept]:
        """A conversation that is reserved until the block ends."""
        self.hold(owner, id)
        try:
            yield await self.get(owner, id)
        finally:
            self.let_go(owner, id)

    def let_go(self, owner: str, id: str) -> None:
        """End a reservation."""
        self._busy.discard((owner, id))

    async def create(self, owner: str, items: list[Json], metadata: dict[str, str]) -> Kept:
        kept = Kept(f"conv_{secrets.token_hex(16)}", time.time(), metadata)
        await self._put(owner, kept.id, kept.created_at, vars(kept))
        if items:
            await self._add(owner, kept, items)
        return kept

    async def get(self, owner: str, id: str, param: str = "conversation_id") -> Kept:
        body = await self._body(owner, id) if id.startswith("conv_") and "." not in id else None
        if body is None:
            raise ApiError(404, f"Conversation with id '{id[:100]}' not found.", "conversation_not_found", param)
        return Kept(**body)

    async def items(self, owner: str, kept: Kept) -> list[Json]:
        """The items of a conversation, the oldest first."""
        found: list[Json] = []
        for number in range(kept.num_additions):
            body = await self._body(owner, f"{kept.id}.{number}")
            if body is None:
                raise StoreError(f"conversation {kept.id} is damaged, an addition is missing: restore it from a backup")
            found += body["items"]
        removed = set(kept.removed)
        return [item for item in found if item["id"] not in removed]

    async def history(self, owner: str, id: str | None) -> list[Json]:
        """The items of the conversation that a request belongs to; none where it belongs to none."""
        return [] if id is None else await self.items(owner, await self.get(owner, id, "conversation"))

    async def add(self, owner: str, id: str, items: list[Json]) -> None:
        """Append items to a conversation."""
        await self._add(owner, await self.get(owner, id), items)

    async def remove_item(self, owner: str, kept: Kept, item_id: str) -> None:
        kept.removed.append(item_id)
        await self._put(owner, kept.id, kept.created_at, vars(kept))

    async def set_metadata(self, owner: str, kept: Kept, metadata: dict[str, str]) -> None:
        kept.metadata = metadata
        await self._put(owner, kept.id, kept.created_at, vars(kept))

    async def delete(self, owner: str, kept: Kept) -> None:
        store = self.cache.store
        for id in (kept.id, *(f"{kept.id}.{number}" for number in range(kept.num_additions))):
            if (row := await asyncio.to_thread(store.get, id, owner)) is not None:
                await asyncio.to_thread(store.remove, row)

    async def _add(self, owner: str, kept: Kept, items: list[Json]) -> None:
        """Write an addition, then count it: a crash in between leaves the conversation as it was."""
        await self._put(owner, f"{kept.id}.{kept.num_additions}", time.time(), {"items": items})
        kept.num_additions += 1
        await self._put(owner, kept.id, kept.created_at, vars(kept))

    async def _put(self, owner: str, id: str, created_at: float, body: Json) -> None:
        data = await asyncio.to_thread(lambda: zlib.compress(dumps(body).encode(), 1))
        row = StoredResponse(id, owner, await self.cache.session(owner), 0, b"", created_at, data)
        await asyncio.to_thread(self.cache.store.put_body, row)

    async def _body(self, owner: str, id: str) -> Json | None:
        row = await asyncio.to_thread(self.cache.store.get, id, owner)
        if row is None:
            return None
        body: Json = await asyncio.to_thread(lambda: json.loads(zlib.decompress(row.body)))
        return body
