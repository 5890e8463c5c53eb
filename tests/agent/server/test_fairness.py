"""Promises of slots: nobody waits behind the many things that somebody else wants, and none is lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from holdfast.agent.server.fairness import Slots


def order_of(wanted: list[str], num_slots: int = 2) -> list[str]:
    """In which order users get slots; each is given back when no task can go on."""

    async def main() -> list[str]:
        slots, order, group, all_wait = Slots(num_slots), [], [], asyncio.Event()

        async def work(user: str) -> None:
            async with slots.one(user):
                order.append(user)
                await all_wait.wait()
                await asyncio.sleep(0.001)

        for user in wanted:
            group.append(asyncio.create_task(work(user)))
            await asyncio.sleep(0)
        all_wait.set()
        await asyncio.gather(*group)
        assert slots.num_held == 0 and not slots.are_taken
        return order

    return asyncio.run(main())


def test_one_user_waits_in_order() -> None:
    assert order_of(["ann"] * 5) == ["ann"] * 5


def test_a_user_with_hundreds_of_wishes_starves_nobody() -> None:
    order = order_of(["ann"] * 256 + ["bob", "bob", "bob", "cid"])
    assert {"bob", "cid"} <= set(order[2:5])
    assert [at for at, user in enumerate(order) if user == "bob"][-1] < 12


def test_users_with_equally_many_take_turns() -> None:
    wanted = [*["ann"] * 4, *["bob"] * 3, *["cid"] * 3]
    assert order_of(wanted, 1) == ["ann", *["ann", "bob", "cid"] * 3]


@pytest.mark.parametrize("moment", ["waiting", "given"])
def test_whoever_leaves_while_waiting_takes_no_slot_along(moment: str) -> None:
    async def main() -> None:
        slots = Slots(1)
        release = asyncio.Event()
        got: list[str] = []

        async def work(user: str, wait: Callable[[], Awaitable[object]]) -> None:
            async with slots.one(user):
                got.append(user)
                await wait()

        async def nothing() -> None:
            pass

        first = asyncio.create_task(work("ann", release.wait))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(work("bob", nothing))
        last = asyncio.create_task(work("cid", nothing))
        await asyncio.sleep(0)
        if moment == "waiting":
            leaving.cancel()
            await asyncio.sleep(0)
        release.set()
        await first
        leaving.cancel()  # in the other case it has just been given its slot
        await asyncio.wait_for(last, 5)
        assert got[0] == "ann" and "cid" in got and slots.num_held == 0

    asyncio.run(main())
