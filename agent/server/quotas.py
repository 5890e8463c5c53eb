"""Disk quotas of users, checked before work begins. Must not know what is stored."""

import asyncio
import time
from collections.abc import Callable

from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError

AGE = 20  # a count is valid for so many times the time it took: counting takes at most 5 % of the time


class Quotas:
    """`used_bytes(name)` counts the bytes of a user; called on another thread, and only for users with a quota."""

    def __init__(self, used_bytes: Callable[[str], int]):
        self._used_bytes = used_bytes
        self._counted: dict[str, tuple[int, float]] = {}  # bytes, and until when the count is valid

    async def check(self, user: User) -> None:
        """Raises ApiError 507 if the user has reached the quota."""
        if user.disk_bytes is None:
            return
        used, until = self._counted.get(user.name, (0, 0.0))
        if time.monotonic() > until:
            started = time.monotonic()
            used = await asyncio.to_thread(self._used_bytes, user.name)
            now = time.monotonic()
            self._counted[user.name] = used, now + AGE * (now - started)
        if used >= user.disk_bytes:
            text = (
                f"what is stored for {user.name} takes {used / 1e9:.3f} GB of {user.disk_bytes / 1e9:g} GB:"
                " delete responses that are not needed, or send store: false"
            )
            raise ApiError(507, text, "insufficient_storage")

    def forget(self, user: User) -> None:
        """Count again at the next check: something of this user was removed."""
        self._counted.pop(user.name, None)
