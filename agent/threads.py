"""Work that waits for the disk or a lock, kept off the event loop: everything else there would wait as long."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def to_end(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of a function that runs on a thread.

    Cancelled, this still waits for it: what has begun must have a known outcome.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:  # told again to end: the answer is the same
                continue
        raise
