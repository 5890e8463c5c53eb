"""A start that has to compile kernels says so at once, says how far it is, and says nothing when all are there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.kernels.cpu import jit
from tests.agent.terminal.test_render import ROOT, Screen

pytestmark = pytest.mark.skipif(not jit.AVAILABLE or sys.platform != "linux", reason="needs numba, and XDG_CACHE_HOME")
LOST = ("hyper._embed", "project._rope_table")  # kernels whose machine code is not there: small ones
NOTICE = re.compile(r"compiling kernels for this machine, once: (\d+) of (\d+)")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds the machine code of all kernels but two."""
    problem = jit.keep_machine_code()
    if problem or not jit.num_stored():
        pytest.skip(f"there is no machine code to copy {problem}")
    directory = Path(jit.numba.config.CACHE_DIR)
    copied = shutil.copytree(directory, tmp_path / "cache" / "holdfast" / directory.name)
    for path in (tmp_path / "cache", copied.parent, copied):
        path.chmod(0o700)
    for path in copied.glob("*/*"):
        if path.name.startswith(LOST):
            path.unlink()
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def command(tmp_path: Path, name: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command line with a data directory for itself."""
    tmp_path.joinpath(name).mkdir()
    words = [sys.executable, "-m", "holdfast.agent", *arguments, "--workspace", str(tmp_path / name)]
    return words, {"HOLDFAST_HOME": str(tmp_path / name / "home")}


def test_two_processes_say_what_they_compile_and_the_next_has_nothing_to_say(
    tmp_path: Path, env: dict[str, str]
) -> None:
    def start(name: str) -> "subprocess.Popen[str]":
        words, home = command(tmp_path, name, "run", "hello", "--json")
        return subprocess.Popen(words, cwd=ROOT, env=env | home, stdout=subprocess.PIPE, text=True)

    def notices(process: "subprocess.Popen[str]") -> list[tuple[int, int]]:
        out, _ = process.communicate()
        events = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0 and events[-1]["type"] == "turn_done"
        said = [NOTICE.fullmatch(event["message"]) for event in events if event["type"] == "notice"]
        assert said == [] or events[0]["type"] == "notice"
        return [(int(match[1]), int(match[2])) for match in said if match]

    both = [start("one"), start("two")]
    told = [notices(process) for process in both]
    # either may find a kernel that the other has stored: only together do they tell of both that were lost
    assert len(told[0]) + len(told[1]) >= len(LOST), told
    assert all(0 < number <= total for each in told for number, total in each)
    assert notices(start("three")) == []


def test_the_terminal_shows_it_before_the_first_prompt(tmp_path: Path, env: dict[str, str]) -> None:
    words, home = command(tmp_path, "ws", "chat")
    screen = Screen(words, env | home | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200"})
    try:
        screen.expect("compiling kernels for this machine, once: ")
        screen.expect("/help")
        assert screen.process.poll() is None
    finally:
        screen.close()
