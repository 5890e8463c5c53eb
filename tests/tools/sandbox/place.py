"""A workspace, a private temporary directory and a data directory, and commands run there in a sandbox of each kind."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from holdfast.tools.sandbox.choose import Kind, Sandbox, choose
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import Ended, SandboxError, Started


@dataclass
class Place:
    kind: Kind
    root: Path
    confinement: Confinement = field(init=False)

    def __post_init__(self) -> None:
        for name in ("work", "tmp", "data"):
            (self.root / name).mkdir()
        self.confinement = Confinement(self.root / "work", self.root / "tmp", hidden=(self.root / "data",))

    def allow(self, **changes: object) -> None:
        self.confinement = replace(self.confinement, **changes)  # type: ignore[arg-type]

    async def _start(self, argv: tuple[str, ...]) -> Started:
        sandbox: Sandbox = await choose(self.kind, self.confinement)
        return await sandbox.start(argv, self.confinement.workspace, self.confinement)

    async def _run(self, argv: tuple[str, ...]) -> tuple[Ended, str]:
        async with await self._start(argv) as started:
            assert started.process.stdout is not None
            output = await started.process.stdout.read()
            return await started.wait(), output.decode()

    def run(self, *argv: str) -> tuple[Ended, str]:
        """A command to its end, and what it wrote."""
        return asyncio.run(self._run(argv))

    def sh(self, script: str) -> tuple[Ended, str]:
        return self.run("sh", "-c", script)

    def sh_until(self, script: str, ready: Callable[[], bool]) -> Ended:
        """A script that is ended from outside as soon as `ready`."""

        async def run() -> Ended:
            async with await self._start(("sh", "-c", script)) as started:
                while not ready():
                    await asyncio.sleep(0.01)
                return await started.kill()

        return asyncio.run(run())


def sandboxed(kind: Kind, root: Path) -> Place:
    """Skips where this machine has no such sandbox."""
    place = Place(kind, root)
    try:
        asyncio.run(choose(kind, place.confinement))
    except SandboxError as e:
        pytest.skip(str(e))
    return place


def alive(marker: str) -> list[int]:
    """Processes on this machine that have the marker in their command line."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = Path("/proc", name, "cmdline").read_bytes() if name.isdigit() else b""
        except OSError:
            continue
        if marker.encode() in words and int(name) != os.getpid():
            found.append(int(name))
    return found


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)
