"""Whose turn it is when more is wanted than can run at a time. Must not know what runs.

A slot that gets free goes to the user who holds the fewest; of those with equally few, to the one served longest ago. What
one user wants waits in order, so whoever asks for hundreds of things waits for them alone.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """So many slots. All calls are made on the event loop."""

    def __init__(self, num_slots: int):
        self._num_free = num_slots
        self._held: Counter[str] = Counter()  # by user
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the user served longest ago first

    @property
    def num_held(self) -> int:
        return self._held.total()

    @property
    def are_taken(self) -> bool:
        """Whether the next one has to wait."""
        return not self._num_free

    @asynccontextmanager
    async def one(self, user: str) -> AsyncIterator[None]:
        """A slot, from when there is one until the block ends."""
        await self._take(user)
        try:
            yield
        finally:
            self._give_back(user)

    async def _take(self, user: str) -> None:
        if self._num_free:  # then nobody waits
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
