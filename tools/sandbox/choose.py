"""Which sandbox there is on this machine, and what it truly holds. Must not know what runs in it."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import Ended, Launch, SandboxError, Started, read_program, start

Kind = Literal["auto", "bubblewrap", "landlock", "none"]


class Means(Protocol):
    """How a command is confined."""

    name: str
    level: str  # `full`, `partial: ...` or `none`: what it holds, for people

    def launch(self, argv: Sequence[str], directory: Path, confinement: Confinement) -> Launch:
        """What to start so that `argv` runs confined. Raises SandboxError."""
        ...


class Unconfined:
    """No confinement: the user's own rights, less what raises them. Limits and the end of all processes still hold."""

    name = "none"
    level = "none"

    def launch(self, argv: Sequence[str], directory: Path, confinement: Confinement) -> Launch:
        environment = confinement.environment(os.environ, confinement.tmp)
        return Launch(tuple(argv), directory, environment, confinement.limits)


class Sandbox:
    """A means that works here. `reason` says why no better one does."""

    def __init__(self, means: Means, reason: str = "") -> None:
        self._means = means
        self._program = read_program()
        self.name = means.name
        self.level = means.level
        self.reason = reason

    async def start(
        self, argv: Sequence[str], directory: Path, confinement: Confinement, *,
        stdin: int = asyncio.subprocess.DEVNULL, stdout: int = asyncio.subprocess.PIPE,
        stderr: int = asyncio.subprocess.STDOUT,
    ) -> Started:  # fmt: skip
        """Start a command. Raises SandboxError where it cannot be confined; once it runs, `Started.wait` says all."""
        return await start(self._means.launch(argv, directory, confinement), self._program, stdin, stdout, stderr)


async def choose(kind: Kind, confinement: Confinement) -> Sandbox:
    """The best sandbox that works with this confinement, or the one that is asked for.

    Raises SandboxError where that does not work.
    """
    sandbox = Sandbox(Unconfined(), "" if kind == "none" else "none is made yet")
    ended = await _probe(sandbox, confinement)
    if ended.code != 0:
        raise SandboxError(f"no command can be started: {ended.failure or ended.code}")
    return sandbox


async def _probe(sandbox: Sandbox, confinement: Confinement) -> Ended:
    """Runs the smallest command in it: only that shows that the kernel lets it."""
    null = asyncio.subprocess.DEVNULL
    async with await sandbox.start(["true"], confinement.workspace, confinement, stdout=null, stderr=null) as started:
        return await started.wait()
