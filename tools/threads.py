"""Work of a tool that blocks, kept off the event loop: the only threads that tools have.

Owns that no thread outlives its call. The work itself checks `context.cancelled` every tenth of a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from holdfast.tools.tool import Context

A = TypeVar("A")
T = TypeVar("T")


async def on_thread(work: Callable[[A, Context], T], args: A, context: Context) -> T:
    """What `work` gives. Cancelled, this tells the work and waits for it: what has begun must have a known outcome."""
    loop = asyncio.get_running_loop()

    def emit(output: str) -> None:
        loop.call_soon_threadsafe(context.emit, output)

    def run() -> T:
        try:
            return work(args, replace(context, emit=emit))
        except StopIteration as e:  # which no future can hold
            raise RuntimeError("StopIteration") from e

    with ThreadPoolExecutor(1, "holdfast-tool") as pool:  # its end waits for the thread, however often we are cancelled
        running = loop.run_in_executor(pool, run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            context.cancelled.set()
            await asyncio.wait({running})
            raise


def threaded(work: Callable[[A, Context], str]) -> Callable[[A, Context], Awaitable[str]]:
    """`work` as a Tool takes it."""
    return lambda args, context: on_thread(work, args, context)


async def off_loop(work: Callable[[], T]) -> T:
    """What short work that waits for the disk gives; nothing of it is taken back when its caller is cancelled."""
    return await asyncio.to_thread(work)
