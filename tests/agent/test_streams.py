"""Promises about what a caller does to the command: streams closed, full, gone or of another encoding, a directory or a
home that is not there. Every command then says one line at most, and ends with an exit code: never a traceback.

Real processes of the real command line; those that need a model have a scripted one.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.memory import Database, SessionStore
from tests.agent.place import Place
from tests.agent.scripted_engine import HANG, says
from tests.agent.terminal.test_render import ROOT

COMMANDS = {
    "version": ["--version"],
    "help": ["--help"],
    "list": ["sessions", "list", "--json"],
    "show": ["sessions", "show", "grüße"],
    "fork": ["sessions", "fork", "one", "--as", "two"],
    "move": ["sessions", "move", "nosuch", "."],
    "rewind": ["sessions", "rewind", "nosuch", "--turn", "1"],
    "rm": ["sessions", "rm", "nosuch"],
    "verify": ["sessions", "verify"],
    "gc": ["sessions", "gc"],
    "inspect": ["model", "inspect", str(ROOT / "tests/fixtures/configs/flash")],
    "bench": ["bench", "--model", "/nosuch"],
    "serve": ["serve", "--model", "/nosuch"],
    "bad option": ["--frobnicate"],
    "run": ["run", "hello"],
    "run as JSON": ["run", "hello", "--json"],
    "chat": ["chat"],
}
STATES = {  # what the shell does with the streams
    "closed stdin": "<&-",
    "closed stdout": ">&-",
    "closed stderr": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "full stdout": ">/dev/full",
    "full stderr": "2>/dev/full",
    "reader gone": "| true",
}
OFTEN = ("list", "bad option")  # these meet every state, the others the worst


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def is_tidy(self) -> bool:
        return "Traceback" not in self.err and "Exception ignored" not in self.err and self.err.count("holdfast: ") <= 1


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        place = Place(tmp_path, stack).script(says("“Hello.”"))
        SessionStore(Database(place.home)).create(str(place.workspace), "m", "one")
        yield place


def shell(place: Place, arguments: list[str], redirection: str = "", before: str = "", **environment: str) -> Done:
    """A command below a shell, in the workspace."""
    command = place.command(*arguments, own_engine=True)
    if arguments[0] not in ("run", "chat"):
        command = [sys.executable, "-m", "holdfast.agent", *arguments]
    line = f'set -o pipefail; {before} "$@" {redirection}'
    done = subprocess.run(
        ["bash", "-c", line, "bash", *command],
        env={**place.env, "PYTHONPATH": str(ROOT), **environment},
        cwd=place.workspace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_state_of_the_streams_is_a_traceback(place: Place, name: str) -> None:
    expected = shell(place, COMMANDS[name])
    for state in STATES if name in OFTEN else ("all closed", "full stdout"):
        done = shell(place, COMMANDS[name], STATES[state])
        assert done.is_tidy and done.code in (expected.code, 1), (state, done)
        if "stdout" in state and expected.out:
            assert done.code == 1 and "holdfast: " in done.err, (state, done)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_encoding_no_home_and_no_directory_is_a_traceback(place: Place, name: str) -> None:
    damaged = place.home.parent / "damaged"
    (damaged / "holdfast.db").mkdir(parents=True)
    environments = [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"HOLDFAST_HOME": str(place.file / "below")},
        {"HOLDFAST_HOME": str(damaged)},
    ]
    for environment in environments if name in OFTEN else environments[1:3]:
        done = shell(place, COMMANDS[name], **environment)
        assert done.is_tidy and done.code in (0, 1, 2), (environment, done)
        assert "--json" not in COMMANDS[name] or [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("name", ["list", "run", "serve"])
def test_a_working_directory_that_is_gone_is_one_line(place: Place, name: str) -> None:
    command = ["bash", "-c", 'mkdir gone; cd gone; rmdir ../gone; "$@"', "bash", sys.executable, "-m", "holdfast.agent"]
    env = {**place.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *COMMANDS[name]], env=env, cwd=place.workspace, capture_output=True, text=True)
    message = "the working directory is gone: change to another"
    assert done.returncode == 2 and message in (done.stdout if name == "list" else done.stderr)
    assert (done.stdout + done.stderr).count("\n") == 1


def test_sigterm_ends_a_run_as_ctrl_c_does_with_143(place: Place) -> None:
    place.script([("Now I", False), HANG], says("Going on."))
    process = place.start("run", "go", "--json", own_engine=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "text":
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == ""
    assert json.loads(out.splitlines()[-1]) == {
        "type": "notice",
        "message": "interrupted; the session keeps what was done",
    }
    assert place.sessions()[0][1] == [(1, "interrupted")]


def test_a_fault_of_ours_is_one_line_that_says_how_to_see_all_of_it(place: Place) -> None:
    program = (
        "import sys, holdfast.agent.cli.main, holdfast.agent.cli.sessions\n"
        "holdfast.agent.cli.sessions.run = lambda args: 1 // 0\n"
        "sys.exit(holdfast.agent.cli.main.main())"
    )
    command = [sys.executable, "-c", program, "sessions", "list"]
    done = subprocess.run(command, env=place.env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "ZeroDivisionError: integer division or modulo by zero" in done.stderr and "PYTHONDEVMODE=1" in done.stderr
    env = {**place.env, "PYTHONDEVMODE": "1"}
    assert "Traceback" in subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True).stderr
