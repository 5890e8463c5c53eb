"""How much of the disk each user may fill, checked before work begins. Must not know what is stored there."""

import asyncio
import time
from collections.abc import Callable

from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError

AGE = 20  # times as long as counting takes, a count is believed: at most a twentieth of the time goes into it


class Quotas:
    """`used_bytes(name)` counts what a user needs; it is called on another thread, for users with a quota only."""

    def __init__(self, used_bytes: Callable[[str], int]):
        self._used_bytes = used_bytes
        self._counted: dict[str, tuple[int, float]] = {}  # bytes, and until when they are believed

    async def check(self, user: User) -> None:
        """Raises ApiError 507 for a user who has filled the quota."""
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
        """Something of this user was removed: count again."""
        self._counted.pop(user.name, None)
