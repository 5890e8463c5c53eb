"""A fair queue for slots: which user runs next when more is asked for than can run at a time. Must not know what runs.

A free slot goes to the waiting user who holds the fewest slots; among equals, to the one served longest ago. The
requests of one user are served in order, so a user with hundreds of them delays only their own.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """A fixed number of slots. All calls are made on the event loop."""

    def __init__(self, num_slots: int):
        self._num_free = num_slots
        self._held: Counter[str] = Counter()  # by user
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the user served longest ago first

    @property
    def num_held(self) -> int:
        return self._held.total()

    @property
    def are_taken(self) -> bool:
        """Whether the next request has to wait."""
        return not self._num_free

    @asynccontextmanager
    async def one(self, user: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it until the block ends."""
        await self._take(user)
        try:
            yield
        finally:
            self._give_back(user)

    async def _take(self, user: str) -> None:
        if self._num_free:  # then no request waits
            self._num_free -= 1
            self._held[user] += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given in the same moment
                self._give_back(user)
            elif user in self._waiting:
                self._leave(user, turn)
            raise

    def _leave(self, user: str, turn: "asyncio.Future[None]") -> None:
        self._waiting[user].remove(turn)
        if not self._waiting[user]:
            del self._waiting[user]

    def _give_back(self, user: str) -> None:
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        if not self._waiting:
            self._num_free += 1
            return
        next_user = min(self._waiting, key=lambda name: self._held[name])
        turns = self._waiting.pop(next_user)
        turn = turns.popleft()
        if turns:
            self._waiting[next_user] = turns
        self._held[next_user] += 1
        turn.set_result(None)
