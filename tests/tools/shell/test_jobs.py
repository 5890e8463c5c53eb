"""Promises of jobs: they go on beside the model, tell what is new, and end with the session or on demand."""

import asyncio
import time

import pytest

from holdfast.tools import Cancellation
from holdfast.tools.shell.jobs import MAX_RUNNING
from tests.tools.shell.hands import Hands, processes_with, until

pytestmark = pytest.mark.anyio


async def test_a_job_goes_on_and_tells_what_is_new(hands: Hands) -> None:
    started = await hands.run("echo one; while ! test -e go; do sleep 0.05; done; echo two; exit 7", background=True)
    assert started.ok and started.output.startswith("job 1 runs for ") and started.output.endswith("\none")
    assert started.command is not None and started.command.exit_status is None
    assert (await hands.call("jobs", action="read", id=1)).output.endswith("\n(no output)")
    assert await hands.output("echo beside it") == "beside it"
    (hands.root / "go").touch()
    ended = await hands.call("jobs", action="wait", id=1)
    assert "job 1 ended: exit status 7 after " in ended.output and ended.output.endswith("\ntwo")
    assert hands.shell.jobs.ended() == []  # the model knows


async def test_a_job_that_fails_at_once_is_told_at_once(hands: Hands) -> None:
    result = await hands.run("echo no such thing; exit 127", background=True)
    if hands.shell.jobs.running:  # a slow machine
        result = await hands.call("jobs", action="wait")
    assert "job 1 ended: exit status 127 after " in result.output


async def test_waiting_is_bounded_and_can_be_interrupted(hands: Hands) -> None:
    await hands.run("sleep 987", background=True)
    assert (await hands.call("jobs", action="wait", timeout_s=1)).output.startswith("job 1 runs for ")
    cancelled = Cancellation()
    waiting = asyncio.ensure_future(hands.call("jobs", cancelled, action="wait", timeout_s=600))
    await asyncio.sleep(0.1)
    cancelled.set()
    assert (await waiting).output == "error: cancelled"
    assert len(hands.shell.jobs.running) == 1


async def test_a_job_is_killed_with_all_that_it_started(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_MARK", mark := f"job-{time.monotonic_ns()}")
    await hands.run("setsid nohup sleep 987 & trap '' TERM; sleep 987", background=True)
    await until(lambda: len(processes_with(mark)) >= 3)
    assert "job 1 ended: interrupted" in (await hands.call("jobs", action="kill", id=1)).output
    assert processes_with(mark) == []
    assert "job 1 ended" in (await hands.call("jobs", action="kill", id=1)).output


async def test_jobs_end_with_the_session(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_MARK", mark := f"close-{time.monotonic_ns()}")
    for _ in range(2):
        await hands.run("sleep 987", background=True)
    await hands.shell.aclose()
    assert processes_with(mark) == [] and not hands.shell.confinement.tmp.exists()


async def test_there_are_only_so_many_and_wrong_numbers_name_the_right_ones(hands: Hands) -> None:
    assert (await hands.call("jobs")).output == "there is no job"
    results = await asyncio.gather(*(hands.run("sleep 987", background=True) for _ in range(MAX_RUNNING + 1)))
    assert [result.ok for result in results].count(False) == 1
    assert f"error: {MAX_RUNNING} jobs run already" in "".join(result.output for result in results)
    assert "name a job with id; there are: 1, 2, 3" in (await hands.call("jobs", action="read")).output
    assert "no job 99; there are: 1, 2, 3" in (await hands.call("jobs", action="read", id=99)).output
    assert (await hands.call("jobs")).output.count("sleep 987") == MAX_RUNNING
