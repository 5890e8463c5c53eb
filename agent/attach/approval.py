"""A call of this client's turn that waits for approval: the user is asked here, and another client may answer first.

Owns the question while it is open. Must not know how the user is asked, nor what else happens in the turn.
"""

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.agent.attach.http import Json, Refused, Unreachable
from holdfast.agent.events import ApprovalNeeded, Ask, Event

RETRY_S = 0.5
Frame = tuple[str | None, Json]  # of a session's stream: id and event; frames that this client makes have no id


class Question:
    """One question at a time. Puts `given_up` and `notice` into `frames`, which the server does not send."""

    def __init__(
        self, call: Callable[[str, str, Json], Awaitable[Json]], ask: Ask | None, frames: "asyncio.Queue[Frame]"
    ):
        self._call, self._ask, self._frames = call, ask, frames
        self._asking: asyncio.Future[None] | None = None
        self._is_open = False  # the user has not answered

    def put(self, needed: Event) -> None:
        """Begin to ask the user."""
        if self._ask is not None and isinstance(needed, ApprovalNeeded):
            self._is_open = True
            self._asking = asyncio.ensure_future(self._answer(needed, self._ask))

    async def withdraw(self) -> bool:
        """End the question: the server has an answer. Whether it was still open here."""
        was_open, self._is_open = self._is_open, False
        if was_open:
            await self.close()
        return was_open

    async def close(self) -> None:
        """End the question without an answer."""
        self._is_open = False
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _answer(self, needed: ApprovalNeeded, ask: Ask) -> None:
        try:
            answer = await ask(needed)
        except asyncio.CancelledError:
            if self._is_open:  # the user ended it, not `close`
                self._frames.put_nowait((None, {"type": "given_up"}))
            raise
        self._is_open = False
        while True:
            try:
                await self._call("POST", f"/approvals/{needed.id}", answer.model_dump())
                return
            except Refused:
                self._frames.put_nowait((None, {"type": "notice", "message": "another client answered first"}))
                return
            except Unreachable:  # `RemoteSession` reports the lost connection
                await asyncio.sleep(RETRY_S)
