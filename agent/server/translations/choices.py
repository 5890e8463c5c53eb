"""Several answers to one request: begun together, told in one stream, and all left when the client leaves.

Must not know what an answer is shown as.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import TypeVar

from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError
from holdfast.agent.server.responses.request import Create
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.service import Service
from holdfast.agent.server.validation import Names

MAX_CHOICES = 128
T = TypeVar("T")


def seeded(seed: int | None, number: int) -> dict[str, int]:
    """What the request of one of several choices has for its seed: with the same one they would be the same."""
    return {} if seed is None else {"seed": seed ^ number}


async def begin(
    service: Service, user: User, asked: Iterable[tuple[Create, list[int] | None]], names: Names
) -> list[Response]:
    """A response for each request, with the tokens to go on from if it has no conversation; none where one is refused."""
    responses: list[Response] = []
    try:
        for request, prompt in asked:
            responses.append(await service.create(user, request, prompt=prompt))
    except BaseException as e:
        leave(responses)
        raise (names.said(e) if isinstance(e, ApiError) else e) from None
    return responses


def leave(responses: Iterable[Response]) -> None:
    """The client that asked is gone."""
    for response in responses:
        if not response.is_over:
            response.leave()


async def all_over(responses: Sequence[Response]) -> None:
    """Wait for the end of all; a client that leaves ends them."""
    try:
        for response in responses:
            await response.over()
    except asyncio.CancelledError:
        leave(responses)
        raise


async def merged(sources: Iterable[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """What comes from any of them, as it comes."""
    coming = {asyncio.ensure_future(anext(source)): source for source in sources}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                source = coming.pop(task)
                try:
                    value = task.result()
                except StopAsyncIteration:
                    continue
                coming[asyncio.ensure_future(anext(source))] = source
                yield value
    finally:
        for task in coming:
            task.cancel()
        if coming:
            await asyncio.wait(coming)
        for source in coming.values():
            await source.aclose()
