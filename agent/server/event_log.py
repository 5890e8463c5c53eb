"""What happens in one live session, as numbered events that any number of watchers follow, each at its own pace.

Keeps the last turn: a watcher that comes late sees it whole, one that fell behind more than that is told to read the log.
Must not know sessions or sockets.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator

from holdfast.agent.server.json import Json

MAX_KEPT = 20_000  # events; a turn of more loses its oldest
RELOAD = {"type": "reload"}


class Feed:
    """Ids are `FEED.NUMBER`: those of a feed that has ended, with its server, are never taken for this one's."""

    def __init__(self) -> None:
        self._id = secrets.token_hex(4)
        self._events: deque[Json] = deque()
        self._first = 1  # number of the oldest event that is kept
        self._changed = asyncio.Event()
        self._is_closed = False
        self.num_watchers = 0

    @property
    def last_id(self) -> str:
        """Of the newest event."""
        return f"{self._id}.{self._first + len(self._events) - 1}"

    def begin_turn(self) -> None:
        """What came before is in the log: it is kept no longer."""
        self._first += len(self._events)
        self._events.clear()

    def emit(self, event: Json) -> None:
        """Publish; whoever watches wakes up."""
        self._events.append(event)
        if len(self._events) > MAX_KEPT:
            self._events.popleft()
            self._first += 1
        self._wake()

    def close(self) -> None:
        """Nothing comes any more: every watcher ends."""
        self._is_closed = True
        self._wake()

    async def follow(self, after: str | None) -> AsyncGenerator[tuple[str, Json], None]:
        """(id, event) of what came after an id, or of all that is kept, and of what comes. `RELOAD` has no id."""
        at = self._first if after is None else self._number_after(after)
        self.num_watchers += 1
        try:
            while True:
                if at is None or at < self._first:
                    yield "", RELOAD
                    at = self._first
                while self._first <= at < self._first + len(self._events):
                    yield f"{self._id}.{at}", self._events[at - self._first]
                    at += 1
                if at < self._first:
                    continue
                if self._is_closed:
                    return
                await self._changed.wait()
        finally:
            self.num_watchers -= 1

    def _number_after(self, id: str) -> int | None:
        """None for what is no id of an event of this feed."""
        feed, _, number = id.partition(".")
        if feed != self._id or not number.isdecimal() or len(number) > 12:
            return None
        next_number = int(number) + 1
        return next_number if next_number <= self._first + len(self._events) else None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
