"""Several answers to one request: begun together, merged into one stream, and all cancelled when the client leaves.

Must not know how a response is translated.
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
    """The seed of one of several choices: with the same seed they would be equal."""
    return {} if seed is None else {"seed": seed ^ number}


async def begin(
    service: Service, user: User, asked: Iterable[tuple[Create, list[int] | None]], names: Names
) -> list[Response]:
    """Begin a response for each request, with its prompt of tokens if it has one. If one is refused, all are."""
    responses: list[Response] = []
    try:
        for request, prompt in asked:
            responses.append(await service.create(user, request, prompt=prompt))
    except BaseException as e:
        leave(responses)
        raise (names.said(e) if isinstance(e, ApiError) else e) from None
    return responses


def leave(responses: Iterable[Response]) -> None:
    """Cancel the responses: their client is gone."""
    for response in responses:
        if not response.is_over:
            response.leave()


async def all_over(responses: Sequence[Response]) -> None:
    """Wait until all are over; they are cancelled if the client leaves."""
    try:
        for response in responses:
            await response.over()
    except asyncio.CancelledError:
        leave(responses)
        raise


async def merged(sources: Iterable[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The values of all sources, each as soon as it comes."""
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
