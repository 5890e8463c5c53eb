"""A command that runs under a supervisor, seen from the agent: started, waited for, ended with all that it started.

Owns the two pipes to the supervisor: a lifeline, whose end ends the command, and a report, which alone says how the
command ended. Must not know what confines it.
"""

import asyncio
import base64
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast.tools.sandbox.confinement import Limits

# The supervisor's source is read once, before any command runs: a file in the workspace could be changed by one.
PROGRAM = ("confine", "kept_files", "supervise")
STATUS_FD, SECCOMP_FD = "{status_fd}", "{seccomp_fd}"  # in arguments: the supervisor has their numbers
BOOT = """
import json, sys, types
with open(int(sys.argv[1])) as file:
    spec = json.load(file)
for name, source in spec["program"]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
module.main(spec, int(sys.argv[2]), int(sys.argv[3]))
"""


class SandboxError(Exception):
    """A sandbox cannot be made here: one line on why."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is its exit status as a shell gives it (128 + n: killed by signal n).

    It is None when the command did not end by itself: `failure` says why the sandbox could not start it, `stopped`
    which limit it broke or that we ended it. `restored` are files that were put back, `left` counts processes that
    could not be killed.
    """

    code: int | None
    failure: str = ""
    stopped: str = ""
    restored: tuple[str, ...] = ()
    left: int = 0


@dataclass(frozen=True)
class Launch:
    """What the supervisor is to start. The process takes on `confine` before it becomes `argv`.

    `is_bubblewrap` says that `argv` sets up its sandbox itself: it is given `seccomp` at SECCOMP_FD, and says at
    STATUS_FD how the command ended. `kept` are files that are put back afterwards if they changed.
    """

    argv: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str]
    limits: Limits
    confine: Mapping[str, Any] = field(default_factory=dict)
    seccomp: bytes = b""
    is_bubblewrap: bool = False
    kept: tuple[str, ...] = ()

    def spec(self, program: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """As JSON for the supervisor."""
        seccomp = base64.b64encode(self.seccomp).decode()
        return {**asdict(self), "directory": str(self.directory), "seccomp": seccomp, "program": program}


def read_program() -> list[tuple[str, str]]:
    """The modules of the supervisor, by name, in the order in which they are loaded."""
    here = Path(__file__).parent
    return [(f"holdfast.tools.sandbox.{name}", (here / f"{name}.py").read_text()) for name in PROGRAM]


class _Report(asyncio.Protocol):
    """What the supervisor says, complete once it has closed the pipe."""

    def __init__(self) -> None:
        self._said = b""
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._said += data

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            said = json.loads(self._said)
        except ValueError:
            self.ended.set_result(Ended(None, failure="its supervisor ended without a report"))
            return
        self.ended.set_result(Ended(**{**said, "restored": tuple(said.get("restored", ()))}))


class Started:
    """A command that was started. Leaving it as a context ends it."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int, report: _Report) -> None:
        self.process = process  # the supervisor's: its streams are the command's, its exit status says nothing
        self._lifeline: int | None = lifeline
        self._report = report

    async def wait(self) -> Ended:
        """How it ended. Whatever it had started is dead by then."""
        ended = await asyncio.shield(self._report.ended)
        self._let_go()
        while self.process.returncode is None:  # `process.wait` would also wait for output that is not read
            await asyncio.sleep(0.001)
        return ended

    async def kill(self) -> Ended:
        """End it now, and all that it started; nothing happens to one that has ended."""
        self._let_go()
        return await self.wait()

    def _let_go(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def __aenter__(self) -> "Started":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.kill()


async def start(launch: Launch, program: Sequence[tuple[str, str]], stdin: int, stdout: int, stderr: int) -> Started:
    """Start a command. It dies with us, by whatever we die."""
    lifeline_out, lifeline_in = os.pipe()
    report_out, report_in = os.pipe()
    try:
        with tempfile.TemporaryFile("w+") as spec:
            json.dump(launch.spec(program), spec)
            spec.seek(0)
            fds = (spec.fileno(), lifeline_out, report_in)
            # the interpreter itself: what stands in a virtual environment may be a file of the workspace
            python = (os.path.realpath(sys.executable), "-I", "-S", "-c", BOOT)
            process = await asyncio.create_subprocess_exec(
                *python, *map(str, fds), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=fds,
                start_new_session=True, cwd="/", env={"PATH": os.defpath}
            )  # fmt: skip
    except BaseException:
        os.close(lifeline_in)
        os.close(report_out)
        raise
    finally:
        os.close(lifeline_out)
        os.close(report_in)
    pipe = os.fdopen(report_out, "rb", 0)
    _, report = await asyncio.get_running_loop().connect_read_pipe(_Report, pipe)
    return Started(process, lifeline_in, report)
