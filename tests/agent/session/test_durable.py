"""However a process ends, the next one goes on with the same bits. `python -m tests.long.exact`, `.crashes` and
`.together` do all of what a few cases stand for here."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import aclosing, closing
from itertools import pairwise
from pathlib import Path
from signal import SIGINT, SIGKILL, Signals

import pytest

from holdfast.agent.app import App
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.events import Error, Event, PrefillProgress
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from holdfast.memory import Database, SessionStore
from tests.agent.real_session import (
    ASK,
    KNOWN,
    TELL,
    WHERE,
    answer,
    ask,
    ask_anew,
    done,
    make_workspace,
    notices,
    opened,
    session_of,
)
from tests.long import crashes, exact, together

ROOT = Path(__file__).parents[3]
LONG = TELL + " and that it is a long story. " * 600


def test_saved_killed_and_resumed_gives_the_bits_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    assert exact.check_lengths(tmp_path, [1, 9, 128, 513, 1024]) == 5 + 6  # tails and pages


def test_a_session_rewound_or_forked_at_any_turn_says_what_it_said_then(tmp_path: Path) -> None:
    num_said, num_free = exact.check_turns(tmp_path / "home", make_workspace(tmp_path / "ws"), num_turns=4)
    assert (num_said, num_free) == (8, 8)


@pytest.mark.parametrize("point", [2, 19, 22])
def test_killed_in_the_middle_of_a_save_a_session_goes_on_and_nothing_is_left_behind(
    tmp_path: Path, point: int
) -> None:
    """While a page is written, and while the tail and their directories get their names."""
    assert crashes.check(tmp_path, make_workspace(tmp_path / "ws"), point) == KNOWN


def test_sessions_of_two_processes_with_little_memory_give_what_each_gives_alone(tmp_path: Path) -> None:
    assert together.check(tmp_path, per_process=2, rounds=3, num_pages=4, num_slots=1) >= 4


@pytest.mark.parametrize("signal_", [SIGINT, SIGKILL])
@pytest.mark.parametrize(("prompt", "after"), [(LONG, "prefill_progress"), ("outline net/fetcher.py", "tool_call")])
def test_a_run_that_is_ended_in_the_middle_of_a_turn_is_gone_on_with(
    tmp_path: Path, signal_: Signals, prompt: str, after: str
) -> None:
    home, workspace = tmp_path / "home", make_workspace(tmp_path / "ws")
    ask_anew(home, workspace, TELL)
    said = killed_run(home, workspace, prompt, after, signal_)
    was_interrupted = said[-1]["type"] != "turn_done"  # the model may be faster than the signal
    assert was_interrupted or after == "tool_call"
    with closing(Database(home)) as database:
        store = SessionStore(database)
        session = store.all()[0]
        log = {(event.type, event.payload.get("id")) for event in store.events(session, turn=2)}
    assert ("user", None) in log
    assert {(event["type"], event["id"]) for event in said if event["type"] in ("tool_call", "tool_result")} <= log
    shutil.copytree(home, tmp_path / "reread")
    shutil.rmtree(tmp_path / "reread" / "blobs")
    events, reread = (ask_anew(directory, workspace, ASK) for directory in (home, tmp_path / "reread"))
    assert done(events).usage.from_disk > 0 and done(reread).usage.from_disk == 0
    assert answer(events) == answer(reread) and token_log(home) == token_log(tmp_path / "reread")
    if prompt == LONG and was_interrupted:
        assert done(events).usage.input_tokens < 1000  # nothing of the interrupted prompt
    assert bool([line for line in notices(events) if "interrupted" in line]) == (was_interrupted and signal_ == SIGKILL)
    with closing(Database(home)) as database:
        states = [turn.state for turn in SessionStore(database).turn_list(session)]
    assert states == ["done", "interrupted" if was_interrupted else "done", "done"]


def test_reading_is_told_between_the_points_where_it_is_saved(tmp_path: Path) -> None:
    events = ask_anew(tmp_path / "home", make_workspace(tmp_path / "ws"), LONG)
    told = [(event.done, event.total) for event in events if isinstance(event, PrefillProgress)]
    total = told[-1][1]
    assert told[-1][0] == total > 8192 and told == sorted(told)
    before = [0, *(done for done, _ in told)]
    assert max(done - last for last, done in pairwise(before)) <= 512  # a step on a CPU


def token_log(home: Path) -> list[int]:
    with closing(Database(home)) as database:
        log = SessionStore(database).open(SessionStore(database).all()[0])
        log.close()
        return log.ids.tolist()


def killed_run(home: Path, workspace: Path, prompt: str, after: str, signal_: Signals) -> list[dict[str, object]]:
    """`holdfast run`, which gets a signal when it has told an event of this type; what it told."""
    command = [sys.executable, "-m", "holdfast.agent", "run", prompt, "--json", "--session", "work"]
    env = {**os.environ, "HOLDFAST_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=workspace, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1]["type"] == after:
            process.send_signal(signal_)
            break
    said += [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.wait(60) in (0, 130 if signal_ == SIGINT else -signal_)
    process.stdout.close()
    return said


def test_a_turn_whose_rank_is_killed_says_so_and_the_session_is_gone_on_with(tmp_path: Path) -> None:
    """On two ranks; then on one, as if it had read everything again."""
    home, workspace = tmp_path / "home", make_workspace(tmp_path / "ws")

    async def turns() -> list[Event]:
        settings = Settings(home, POCKET_DIR, max_output_tokens=200, ranks=2)
        async with App.open(settings) as app, aclosing(await session_of(app, workspace)) as session:
            answer(await ask(session, TELL))
            seen: list[Event] = []
            async with aclosing(session.turn(WHERE)) as events:
                async for event in events:
                    if not seen:
                        os.kill(app.engine._worker.runner.others._ranks[0].process.pid, SIGKILL)  # type: ignore[union-attr]
                    seen.append(event)
            return seen

    *_, error = asyncio.run(turns())
    assert isinstance(error, Error) and error.message.startswith("rank 1 of 2 ended (signal 9, SIGKILL)")
    shutil.copytree(home, tmp_path / "reread")
    shutil.rmtree(tmp_path / "reread" / "blobs")
    events, reread = (ask_anew(directory, workspace, ASK) for directory in (home, tmp_path / "reread"))
    assert done(events).usage.from_disk > 0 and done(reread).usage.from_disk == 0
    assert answer(events) == answer(reread) and token_log(home) == token_log(tmp_path / "reread")


def test_what_one_user_said_costs_another_as_if_nobody_had_said_it(tmp_path: Path) -> None:
    """Neither on disk nor in memory: else a guess of another's text is answered by the time it takes."""
    workspace, text = make_workspace(tmp_path / "ws"), LONG[:6000]

    async def turns() -> list[tuple[int, int]]:
        async with opened(tmp_path / "home") as app:
            seen = []
            for owner, name in (("ann", "one"), ("bob", "two"), ("ann", "three"), ("", "four")):
                session = await app.session(workspace, Approvals(Policy("read")), name, owner=owner)
                before = app.engine.pages_in_use[0]
                usage = done(await ask(session, text)).usage
                seen.append((usage.from_disk, app.engine.pages_in_use[0] - before))
            return seen

    (disk, pages), bob, again, alone = asyncio.run(turns())
    assert (disk, pages) == bob == alone == (0, pages) and pages > 3
    assert again[1] < pages
