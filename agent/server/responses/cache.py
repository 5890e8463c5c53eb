"""The responses that requests can go on from: the latest in memory, the stored ones in the database.

Owns which are in memory, which user may see one, and how one is found by its id or by the content of its conversation.
Must not know how a response is made.
"""

import asyncio
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError
from holdfast.agent.server.responses.response import End, Response, response_of
from holdfast.memory import ResponseStore, StoredResponse

MAX_RESPONSES = 512  # in memory
MAX_TOKENS = 2**23


@dataclass(eq=False)
class ResponseCache:
    """The responses of the model with this identity. One per server."""

    store: ResponseStore
    identity: str
    in_memory: "OrderedDict[str, Response]" = field(default_factory=OrderedDict)
    _by_digest: "OrderedDict[tuple[int, bytes], Response]" = field(default_factory=OrderedDict)
    _sessions: dict[str, int] = field(default_factory=dict)

    def in_flight(self) -> list[Response]:
        """The responses that are not over."""
        return [response for response in self.in_memory.values() if not response.is_over]

    async def get(self, user: User, id: str, local: dict[str, Response] | None = None) -> Response | None:
        """The response with this id, if this user may see it."""
        if local and id in local:
            return local[id]
        if (held := self.in_memory.get(id)) is not None:
            return held if held.owner == user.name and held.is_stored else None
        if not id.startswith("resp_"):  # conversations are rows of the same table
            return None
        row = await asyncio.to_thread(self.store.get, id, user.name)
        if row is None:
            return None
        ids = await asyncio.to_thread(self.store.ids, row.branch_id) if row.branch_id else array("i")
        response = await asyncio.to_thread(response_of, row, ids)
        if id not in self.in_memory:  # no other request was faster
            self.remember(response)
        return self.in_memory[id]

    async def previous(self, user: User, id: str | None, local: dict[str, Response]) -> Response | None:
        """The response to go on from, once it is over; None without an id. Raises ApiError when there is none."""
        if id is None:
            return None
        response = await self.get(user, id, local)
        if response is not None and not response.is_over:
            await response.over()
        if response is None or response.status == "failed":
            text = f"Previous response with id '{id[:100]}' not found."
            raise ApiError(400, text, "previous_response_not_found", "previous_response_id")
        return response

    async def find(self, user: User, session: int, digest: bytes) -> Response | None:
        """The last response of a session whose conversation, its output included, has this digest."""
        found = self._by_digest.get((session, digest))
        if found is None:
            row = await asyncio.to_thread(self.store.latest, session, digest)
            found = await self.get(user, row.id) if row else None
        return found

    async def session(self, owner: str) -> int:
        """The session that holds this user's responses by this model."""
        if owner not in self._sessions:
            session = await asyncio.to_thread(self.store.session, owner, self.identity)
            self._sessions[owner] = session.id
        return self._sessions[owner]

    async def store_begun(self, response: Response) -> None:
        """Store a response that has just begun: it is found after a crash, and has failed then."""
        await asyncio.to_thread(lambda: self.store.put_body(response.row()))

    async def store_ended(self, response: Response, end: End) -> StoredResponse:
        """Store a response with its end, before that is published; gives its row. Raises StoreError."""
        return await asyncio.to_thread(self._store, response, end)

    def _store(self, response: Response, end: End) -> StoredResponse:
        row = response.row(end)
        if response.agent_turn is not None:  # its log is that of a session
            self.store.put_body(row)
            return row
        ids, parent = response.ids if end.ids is None else end.ids, response.before.branch if response.before else 0
        return self.store.put(row, ids, parent, response.num_known_tokens)

    def remember(self, response: Response) -> None:
        """Keep a response in memory and drop the oldest that are over; stored ones are read again when asked for."""
        self.in_memory[response.id] = response
        num_tokens = sum(len(r.ids) for r in self.in_memory.values())
        for old in list(self.in_memory.values()):
            if len(self.in_memory) <= MAX_RESPONSES and num_tokens <= MAX_TOKENS:
                break
            if old.is_over and old is not response:
                num_tokens -= len(old.ids)
                self.forget(old)

    def ended(self, response: Response) -> None:
        """Let a response be found by the content of its conversation."""
        self._by_digest[response.session_id, response.digest] = response
        while len(self._by_digest) > MAX_RESPONSES:
            self._by_digest.popitem(last=False)

    def forget(self, response: Response) -> None:
        """Remove a response from memory. Unless it is stored, no request can go on from it any more."""
        self.in_memory.pop(response.id, None)
        if self._by_digest.get((response.session_id, response.digest)) is response:
            del self._by_digest[response.session_id, response.digest]
