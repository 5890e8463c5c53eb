"""A session's shell in a small workspace, and what a test asks of the machine: which processes, descriptors and threads there are."""

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.tools import (
    Cancellation,
    Context,
    Permission,
    Result,
    Shell,
    Workspace,
    check_call,
    command_tools,
    run_tool,
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Hands:
    """Calls `shell`, `jobs` and `git`, and keeps what people were told of their output."""

    shell: Shell
    root: Path
    told: list[str] = field(default_factory=list)

    async def call(self, name: str, cancelled: Cancellation | None = None, **arguments: object) -> Result:
        context = Context(self.shell.workspace, cancelled or Cancellation(), self.told.append)
        return await run_tool(command_tools(self.shell), name, json.dumps(arguments), context)

    async def run(self, command: str, **arguments: object) -> Result:
        return await self.call("shell", command=command, **arguments)

    async def output(self, command: str, **arguments: object) -> str:
        """What a command that ends well puts out."""
        result = await self.run(command, **arguments)
        assert result.ok, result.output
        return result.output.partition("\n")[2]

    async def permission(self, command: str, **arguments: object) -> Permission:
        text = json.dumps({"command": command, **arguments})
        return (await check_call(command_tools(self.shell), "shell", text, Context(self.shell.workspace))).permission


@pytest.fixture
async def hands(tmp_path: Path) -> AsyncIterator[Hands]:
    root = tmp_path.resolve() / "ws"
    (root / "sub").mkdir(parents=True)
    workspace = Workspace(root)
    shell = Shell(workspace, tmp_path / "outputs")
    await shell.open(kind="none")
    try:
        yield Hands(shell, root)
    finally:
        await shell.aclose()
        workspace.close()


def processes_with(mark: str) -> list[int]:
    """Processes of this machine in whose environment the mark stands, zombies not counted."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark.encode() in Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


async def until(is_so: object, seconds: float = 30) -> None:
    """Wait until `is_so()`; a test that waits so long has failed."""
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.02)
