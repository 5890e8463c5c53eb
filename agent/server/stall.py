"""How late the event loop is, measured: everything that waits for it waits as long. Must not know what keeps it."""

import asyncio
from collections.abc import Callable

from holdfast.agent.server.metrics import Histogram

EVERY_S = 0.01
IDLE_S = 0.25  # an idle server wakes up seldom


async def watch(lateness: Histogram, is_busy: Callable[[], bool]) -> None:
    """Sleep again and again while something runs, and record how much longer each time took. Ends by being cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        sleep_s = EVERY_S if is_busy() else IDLE_S
        due = loop.time() + sleep_s
        await asyncio.sleep(sleep_s)
        if sleep_s == EVERY_S:
            lateness.add(max(0.0, loop.time() - due))
