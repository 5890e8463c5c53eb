"""Numbered events that any number of watchers follow, each at its own pace: of a response, or of an open session.

Owns the numbers, and how many events are kept. A watcher that comes late gets all events that are kept; one that has
missed dropped events is told to read the session's log. Must not know responses, sessions or sockets.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator

from holdfast.agent.server.json import Json

RELOAD = {"type": "reload"}


class EventLog:
    """Event number n, from 0 on, has the id `LOG.N` with N = n + 1. LOG is random: an id of another log, perhaps of a
    server that has ended, is never taken for one of this log. With `max_kept` the oldest events are dropped."""

    def __init__(self, max_kept: int | None = None) -> None:
        self._id = secrets.token_hex(4)
        self._max_kept = max_kept
        self._events: deque[Json] = deque()
        self._first = 0  # number of the oldest event that is kept
        self._changed = asyncio.Event()
        self._is_closed = False
        self.num_watchers = 0

    @property
    def num_events(self) -> int:
        """All that were appended, so the number of the next one."""
        return self._first + len(self._events)

    @property
    def last_id(self) -> str:
        """The id of the newest event."""
        return f"{self._id}.{self.num_events}"

    def kept(self) -> list[Json]:
        """The events that are kept, the oldest first."""
        return list(self._events)

    def append(self, event: Json) -> None:
        """Publish an event: every watcher wakes up."""
        self._events.append(event)
        if self._max_kept is not None and len(self._events) > self._max_kept:
            self._events.popleft()
            self._first += 1
        self._wake()

    def drop(self) -> None:
        """Keep none of the events so far; the numbers go on."""
        self._first += len(self._events)
        self._events.clear()

    def close(self) -> None:
        """No more events come: every watcher ends after the last one."""
        self._is_closed = True
        self._wake()

    def number_after(self, id: str | None) -> int | None:
        """The number of the event after the one with this id, without an id of the oldest that is kept; None for an id
        that no event of this log has."""
        if id is None:
            return self._first
        log, _, number = id.partition(".")
        if log != self._id or not number.isdecimal() or len(number) > 12 or int(number) > self.num_events:
            return None
        return int(number)

    async def follow(self, number: int | None) -> AsyncGenerator[tuple[str, Json], None]:
        """(id, event) from this number on, future events included, until the log is closed. If `number` is None or its
        event was dropped, `RELOAD` comes first, with an empty id."""
        self.num_watchers += 1
        try:
            while True:
                if number is None or number < self._first:
                    yield "", RELOAD
                    number = self._first
                while self._first <= number < self.num_events:
                    yield f"{self._id}.{number + 1}", self._events[number - self._first]
                    number += 1
                if number < self._first:
                    continue
                if self._is_closed:
                    return
                await self._changed.wait()
        finally:
            self.num_watchers -= 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
