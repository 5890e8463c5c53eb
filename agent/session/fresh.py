"""What the terminal needs of a session, and a session that begins with its first prompt.

Must not know whether a session is in this process or in a server.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Protocol

from holdfast.agent.config import UsageError, prompt_problem
from holdfast.agent.events import Answer, Error, Event, Notice
from holdfast.agent.session.restored import Part, Restored
from holdfast.memory import StoreError


class Timeline(Protocol):
    """`Session` in this process, `RemoteSession` in a server, or `Fresh`."""

    @property
    def name(self) -> str: ...
    @property
    def num_turns(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    def turn(self, prompt: str) -> AsyncGenerator[Event, None]: ...
    async def rewind(self, turn: int | None = None, *, branch: int | None = None, part: Part = "both") -> Restored: ...
    async def undo(self) -> Restored: ...
    async def redo(self) -> Restored: ...
    async def turns(self) -> list[tuple[int, str]]: ...
    async def branches(self) -> list[dict[str, Any]]: ...
    async def jobs(self) -> list[str]: ...
    async def answer(self, answer: Answer) -> bool: ...
    async def stop(self) -> bool: ...
    def take_notices(self) -> list[str]: ...
    async def aclose(self) -> None: ...


OpenSession = Callable[[str | None, bool], Awaitable[Timeline]]  # its name, and whether it is to be a fresh one


class Fresh:
    """A session that is created with its first prompt and named after it; without one it leaves nothing behind."""

    def __init__(
        self,
        make: Callable[[str], Awaitable[Timeline]],
        notices: Iterable[str] = (),
        forget: Callable[[str], None] | None = None,
    ):
        """`notices` are shown with the first turn.

        `forget` removes the session of that name: its only turn never began.
        """
        self._make, self._notices, self._forget = make, list(notices), forget
        self._session: Timeline | None = None

    @property
    def name(self) -> str:
        return self._session.name if self._session else ""

    @property
    def _begun(self) -> Timeline:
        if self._session is None:
            raise StoreError("there is no turn yet")
        return self._session

    @property
    def num_turns(self) -> int:
        return self._session.num_turns if self._session else 0

    @property
    def num_tokens(self) -> int:
        return self._session.num_tokens if self._session else 0

    async def turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        """One turn; see `Session.turn`."""
        if problem := prompt_problem(prompt):
            yield Error(message=problem)
            return
        for notice in self.take_notices():
            yield Notice(message=notice)
        if self._session is None:
            try:
                self._session = await self._make(prompt)
            except (StoreError, UsageError) as e:
                yield Error(message=str(e))
                return
        async with aclosing(self._session.turn(prompt)) as events:
            async for event in events:
                yield event

    async def rewind(self, turn: int | None = None, *, branch: int | None = None, part: Part = "both") -> Restored:
        return await self._begun.rewind(turn, branch=branch, part=part)

    async def undo(self) -> Restored:
        return await self._begun.undo()

    async def redo(self) -> Restored:
        return await self._begun.redo()

    async def turns(self) -> list[tuple[int, str]]:
        return await self._session.turns() if self._session else []

    async def branches(self) -> list[dict[str, Any]]:
        return await self._session.branches() if self._session else []

    async def jobs(self) -> list[str]:
        return await self._session.jobs() if self._session else []

    async def answer(self, answer: Answer) -> bool:
        return self._session is not None and await self._session.answer(answer)

    async def stop(self) -> bool:
        return self._session is not None and await self._session.stop()

    def take_notices(self) -> list[str]:
        notices, self._notices = self._notices, []
        return notices + (self._session.take_notices() if self._session else [])

    async def aclose(self) -> None:
        if self._session is None:
            return
        await self._session.aclose()
        if self._forget is not None and not self._session.num_turns:
            self._forget(self._session.name)
