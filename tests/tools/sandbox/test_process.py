"""Promises of a command under its supervisor: its status is its own, and nothing that it started outlives it."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from holdfast.tools.sandbox.confinement import Limits
from tests.tools.sandbox.place import Place, alive, wait_until

# three ways to leave the process group and the parent, each a process with the marker in its command line
DETACHED = """
setsid nohup sleep 1000 {0} >/dev/null 2>&1 &
(setsid sh -c '(exec sh -c "sleep 1000; : {0}") &' &)
python3 -c 'import os, time
for step in range(2):
    if os.fork(): os._exit(0)
    os.setsid()
open("{1}", "w")
time.sleep(1000)' {0}
while ! [ -e "{1}" ]; do sleep 0.01; done
"""
AGENT = """
import asyncio, sys
from pathlib import Path
from tests.tools.sandbox.place import Place
async def main():
    place = Place(sys.argv[1], Path(sys.argv[2]))
    started = await place._start(("sh", "-c", sys.argv[3] + "sleep 1000"))
    await started.wait()
asyncio.run(main())
"""


@pytest.fixture
def marker() -> str:
    return f"holdfast-test-{uuid.uuid4().hex}"


def test_a_status_is_the_commands_own(place: Place) -> None:
    assert [place.sh(script)[0].code for script in ("exit 0", "exit 3", "kill -9 $$")] == [0, 3, 137]
    assert place.sh("echo out; echo err >&2")[1] == "out\nerr\n"


def test_a_program_that_is_not_there_is_the_commands_failure(place: Place) -> None:
    ended, output = place.run("holdfast-no-such-program")
    assert (ended.code, ended.failure) == (127, "") and "holdfast-no-such-program" in output


def test_a_directory_that_is_not_there_is_the_sandboxs_failure(place: Place) -> None:
    place.allow()
    os.rmdir(place.confinement.workspace)
    with pytest.raises(Exception, match="work"):
        place.sh("true")


def test_nothing_outlives_a_command_that_ends(place: Place, marker: str) -> None:
    ended, _ = place.sh(DETACHED.format(marker, place.confinement.workspace / "ready"))
    assert ended.code == 0 and alive(marker) == []


def test_nothing_outlives_a_command_that_is_ended(place: Place, marker: str) -> None:
    ready = place.confinement.workspace / "ready"
    ended = place.sh_until(DETACHED.format(marker, ready) + "sleep 1000", ready.exists)
    assert ended.code is None and ended.stopped == "ended by holdfast" and alive(marker) == []


def test_nothing_outlives_an_agent_that_is_killed(place: Place, marker: str, tmp_path: Path) -> None:
    root = tmp_path / "agent"
    root.mkdir()
    script = DETACHED.format(marker, root / "work/ready")
    agent = subprocess.Popen([sys.executable, "-c", AGENT, place.kind, str(root), script])
    try:
        wait_until((root / "work/ready").exists)
        assert len(alive(marker)) >= 3
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    wait_until(lambda: alive(marker) == [])


def test_secrets_of_the_environment_stay_outside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HOLDFAST_API_KEY",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "DBUS_SESSION_BUS_ADDRESS",
    ):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("MY_SETTING", "wanted")
    place.allow(passed=("MY_SETTING",))
    seen = place.sh("env; cat /proc/self/environ /proc/$PPID/environ /proc/1/environ 2>/dev/null")[1]
    assert "a-secret" not in seen and "MY_SETTING=wanted" in seen and f"HOME={os.environ['HOME']}" in seen


def test_a_file_does_not_grow_past_its_limit(place: Place) -> None:
    place.allow(limits=Limits(file_bytes=1 << 20))
    ended, _ = place.sh("exec head -c 2000000 /dev/zero > big")
    assert ended.code == 128 + signal.SIGXFSZ and (place.confinement.workspace / "big").stat().st_size == 1 << 20


def test_a_tree_of_processes_is_ended_at_its_limit(place: Place, marker: str) -> None:
    place.allow(limits=Limits(processes=20))
    ended, _ = place.sh(f"for i in $(seq 60); do sh -c 'sleep 1000; : {marker}' & done; wait")
    assert ended.stopped.endswith("more than 20") or ended.code not in (0, None)
    assert alive(marker) == []


def test_memory_of_a_tree_is_limited(place: Place) -> None:
    place.allow(limits=Limits(memory_bytes=200 << 20))
    one = "import time; x = bytearray(b'1') * (120 << 20); time.sleep(1000)"
    ended, _ = place.sh(f'python3 -c "{one}" & python3 -c "{one}" & wait')
    assert "GB of memory, more than 0.2" in ended.stopped


def test_time_on_the_processor_is_limited(place: Place) -> None:
    place.allow(limits=Limits(cpu_s=1))
    ended, _ = place.sh("while :; do :; done")
    assert ended.code in (128 + signal.SIGXCPU, 137) or "CPU time" in ended.stopped
