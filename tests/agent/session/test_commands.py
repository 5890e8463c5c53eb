"""Promises of a session whose model runs commands: from a program that fails to its commit, interrupts, jobs.

The model is scripted (see scripted_engine); shell, processes, git and log are real.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

import holdfast.agent.models.opened
from holdfast.agent.app import App
from holdfast.agent.config import Settings
from holdfast.agent.events import Event, Notice, ToolOutput, ToolResultGiven, TurnDone
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.outcome import Outcome
from holdfast.agent.session.session import Session
from holdfast.agent.terminal.render import changes_line
from holdfast.tools import command_tools
from tests.agent.scripted_engine import HANG, Reply, ScriptedEngine, calls, make_model, says
from tests.tools.shell.hands import processes_with, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Desk:
    """A workspace, a data directory, and sessions whose model has the tools of commands."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(holdfast.agent.models.opened, "Engine", ScriptedEngine)
        self.path, self.workspace = tmp_path, tmp_path.resolve() / "ws"
        self.workspace.mkdir()
        self.mark = f"desk-{time.monotonic_ns()}"
        monkeypatch.setenv("LC_MARK", self.mark)

    @asynccontextmanager
    async def session(self, *replies: Reply) -> AsyncIterator[Session]:
        model = make_model(self.path / f"model-{time.monotonic_ns()}", replies, 65536)
        async with (
            App.open(Settings(self.path / "home", model)) as app,
            aclosing(await app.session(self.workspace, Approvals(Policy.ALL))) as session,
        ):
            await with_commands(session)
            yield session


async def with_commands(session: Session) -> None:
    """Give the session's model the tools that run programs."""
    shell = session.toolbox.shell
    await shell.open(hidden=(session.settings.home,), kind="none")
    session.toolbox.tools = {**session.toolbox.tools, **command_tools(shell)}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


async def turn(session: Session, prompt: str = "go on") -> list[Event]:
    async with aclosing(session.turn(prompt)) as events:
        return [event async for event in events]


def results(events: list[Event]) -> list[ToolResultGiven]:
    return [event for event in events if isinstance(event, ToolResultGiven)]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
async def test_a_program_is_written_run_seen_to_fail_edited_run_again_and_committed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = desk.path / "user"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\nname = A\nemail = a@example.org\n")
    monkeypatch.setenv("HOME", str(home))
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=desk.workspace, check=True)
    run = f"{sys.executable} add.py"
    script = [
        calls("shell", command="printf 'print(1 + \"2\")\\n' > add.py"),
        calls("shell", command=run),
        calls("edit", path="add.py", old='"2"', new="2"),
        calls("shell", command=run),
        calls("git", action="commit", paths=["add.py"], message="Add one and two"),
        says("It prints 3."),
    ]
    async with desk.session(*script) as session:
        events = await turn(session)
    written, failed, edited, worked, committed = results(events)
    assert written.ok and edited.ok and committed.ok and isinstance(events[-1], TurnDone), events
    assert not failed.ok and "TypeError" in failed.output
    assert failed.command is not None and (failed.command.command, failed.command.exit_status) == (run, 1)
    assert worked.output.endswith("\n3") and any(isinstance(event, ToolOutput) for event in events)
    log = subprocess.run(["git", "log", "--format=%s"], cwd=desk.workspace, capture_output=True, text=True, check=True)
    assert log.stdout == "Add one and two\n"
    outcome = Outcome()
    for event in events:
        outcome.add(event)
    changes = outcome.changes()
    assert changes is not None and changes_line(changes) == "changed: add.py +1 -1 · /undo; 3 commands ran"
    assert not outcome.last_command_failed


async def test_a_failing_command_is_told_at_the_end_of_the_turn(desk: Desk) -> None:
    async with desk.session(calls("shell", command="exit 7"), says("All is well.")) as session:
        outcome = Outcome()
        for event in await turn(session):
            outcome.add(event)
    changes = outcome.changes()
    assert changes is not None and changes_line(changes) == "1 command ran; exit 7: exit status 7"
    assert outcome.last_command_failed


async def test_an_interrupted_command_is_dead_and_its_output_is_kept(desk: Desk) -> None:
    command = "echo ready; setsid sleep 987 & sleep 987"
    async with desk.session(calls("shell", command=command), says("I see.")) as session:
        async with aclosing(session.turn("hello")) as events:
            async for event in events:
                if isinstance(event, ToolOutput):
                    break
        assert processes_with(desk.mark) == []
        [result] = [event.payload for event in session.log.events() if event.type == "tool_result"]
        assert result["output"].startswith("interrupted after ") and result["output"].endswith("\nready")
        assert result["command"]["command"] == command and result["command"]["exit_status"] is None
        assert isinstance((await turn(session))[-1], TurnDone)


async def test_a_job_outlives_its_turn_and_an_interrupt_and_ends_with_the_session(desk: Desk) -> None:
    job = calls("shell", command="while ! test -e go; do sleep 0.05; done; echo built", background=True)
    left = calls("shell", command="sleep 987", background=True)
    async with desk.session(job, left, says("Both run."), [HANG], says("Thank you.")) as session:
        await turn(session)
        engine = session.window.model
        assert isinstance(engine, ScriptedEngine)
        running = asyncio.ensure_future(turn(session))
        await until(lambda: len(engine.replies) == 1)  # it hangs
        running.cancel()
        await asyncio.wait({running})
        assert len(session.toolbox.shell.jobs.running) == 2
        (desk.workspace / "go").touch()
        await until(lambda: bool(session.toolbox.shell.jobs.ended()))
        events = await turn(session, "what now?")
        [notice] = [event.message for event in events if isinstance(event, Notice) and "job 1" in event.message]
        assert notice.startswith("job 1 ended: exit status 0 after ")
        fed = engine.tokenizer.decode(engine.fed[-1])
        assert "[job 1 ended: exit status 0 after " in fed and "what now?" in fed
        assert [line.split()[2] for line in await session.jobs()] == ["ended:", "runs"]
    assert processes_with(desk.mark) == []


async def test_a_long_output_is_read_whole_later(desk: Desk) -> None:
    script = (
        calls("shell", command="seq 1 20000"),
        calls("read", path="output:1", start=7777, end=7778),
        says("Read."),
    )
    async with desk.session(*script) as session:
        long, read = results(await turn(session))
    assert "read shows them: path=output:1" in long.output and read.output == "7777|7777\n7778|7778"


def test_killed_the_agent_leaves_no_process(desk: Desk) -> None:
    """SIGKILL while a command and a job run."""
    program = f"""
import asyncio, sys
from pathlib import Path
import holdfast.agent.models.opened
from holdfast.agent.app import App
from holdfast.agent.config import Settings
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.session.approvals import Approvals
from tests.agent.scripted_engine import ScriptedEngine
from tests.agent.session.test_commands import turn, with_commands
holdfast.agent.models.opened.Engine = ScriptedEngine
async def main():
    async with App.open(Settings(Path({str(desk.path / "home")!r}), Path({str(desk.path / "model")!r}))) as app:
        session = await app.session(Path({str(desk.workspace)!r}), Approvals(Policy.ALL))
        await with_commands(session)
        await turn(session)
asyncio.run(main())
"""
    job = calls("shell", command="setsid nohup sleep 987", background=True)
    make_model(desk.path / "model", [job, calls("shell", command="touch ready; sleep 987")], 65536)
    agent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    try:
        asyncio.run(until((desk.workspace / "ready").exists, 120))
        assert len(processes_with(desk.mark)) > 3
    finally:
        os.kill(agent.pid, signal.SIGKILL)
        agent.wait()
    asyncio.run(until(lambda: processes_with(desk.mark) == []))
