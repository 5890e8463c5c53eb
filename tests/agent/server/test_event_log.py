"""Numbered events: any number of watchers, each at its own pace, none of them with a gap that it is not told of."""

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.agent.server.event_log import RELOAD, EventLog
from holdfast.agent.server.json import Json


def filled(num_events: int, max_kept: int | None = None) -> EventLog:
    log = EventLog(max_kept)
    for number in range(num_events):
        log.append({"type": "text", "n": number})
    return log


async def read(log: EventLog, number: int | None) -> list[Json]:
    return [event async for _, event in log.follow(number)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_watchers_that_come_early_and_late_get_the_same_events() -> None:
    async def test() -> None:
        log = filled(2)
        early = asyncio.create_task(read(log, 0))
        await asyncio.sleep(0)
        log.append({"type": "text", "n": 2})
        log.close()
        assert await early == await read(log, 0) == [{"type": "text", "n": n} for n in range(3)]
        assert await read(log, 2) == [{"type": "text", "n": 2}] and await read(log, 7) == []
        assert log.num_watchers == 0

    run(test)


def test_a_watcher_goes_on_after_the_id_that_it_had_last() -> None:
    async def test() -> None:
        log = filled(4)
        log.close()
        ids = [id async for id, _ in log.follow(0)]
        assert ids[-1] == log.last_id
        assert await read(log, log.number_after(ids[1])) == [{"type": "text", "n": 2}, {"type": "text", "n": 3}]

    run(test)


def test_a_watcher_that_missed_dropped_events_is_told_to_reload() -> None:
    async def test() -> None:
        log = filled(5, max_kept=2)
        log.close()
        kept = [{"type": "text", "n": 3}, {"type": "text", "n": 4}]
        assert log.kept() == kept
        assert await read(log, 0) == [RELOAD, *kept]
        assert await read(log, log.number_after(None)) == kept
        log.drop()
        assert await read(log, 4) == [RELOAD] and log.num_events == 5

    run(test)


def test_ids_of_another_log_or_of_no_event_are_not_believed() -> None:
    log = filled(3)
    name = log.last_id.partition(".")[0]
    for id in (f"{name}.4", f"{name}.-1", f"{name}.", name, f"{name}.{'9' * 13}", EventLog().last_id, "", "x.1"):
        assert log.number_after(id) is None
    assert log.number_after(f"{name}.0") == 0
