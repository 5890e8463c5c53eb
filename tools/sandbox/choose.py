"""Which sandbox there is on this machine, and what it truly holds. Must not know what runs in it."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from holdfast.tools.sandbox.bubblewrap import Bubblewrap
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.landlock import Landlock
from holdfast.tools.sandbox.process import Launch, SandboxError, Started, read_program, start

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
    makers: dict[Kind, Callable[[], Means]] = {
        "bubblewrap": lambda: Bubblewrap(confinement.workspace),
        "landlock": Landlock,
        "none": Unconfined,
    }
    problems: list[str] = []
    for maker in makers.values() if kind == "auto" else [makers[kind]]:
        try:
            sandbox = Sandbox(maker(), "; ".join(problems))
            await _try(sandbox, confinement)
        except SandboxError as e:
            problems.append(str(e))
            continue
        return sandbox
    raise SandboxError("; ".join(problems))


async def _try(sandbox: Sandbox, confinement: Confinement) -> None:
    """Run the smallest command in it: only that shows that the machine lets it. Raises SandboxError."""
    async with await sandbox.start(["true"], confinement.workspace, confinement) as started:
        assert started.process.stdout is not None
        output = (await started.process.stdout.read()).decode(errors="replace").strip()
        ended = await started.wait()
    if ended.code != 0:
        reason = ended.failure or f"`true` ended with {ended.code}"
        raise SandboxError(f"{sandbox.name} does not work here: {reason}" + (f" ({output})" if output else ""))
