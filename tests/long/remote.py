"""pocket behind HTTP against pocket in this process: the same tasks give the same calls, results and answers.

`python -m tests.long.remote --tasks 300`: `holdfast serve` has pocket, and the agent asks it over chat completions.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from holdfast.agent.app import App
from holdfast.agent.attach.discovery import find_server
from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.pocket.evaluate import KINDS
from holdfast.agent.pocket.oracle import make_episode
from holdfast.agent.pocket.repos import Repo
from holdfast.agent.session.approvals import Approvals

Told = list[tuple[str, ...]]
TOLD_KINDS = {"recall"}  # needs two sessions


def serving(home: Path) -> "subprocess.Popen[bytes]":
    """A server with pocket on a free port."""
    command = [sys.executable, "-m", "holdfast.agent", "serve", "--port", "0"]
    server = subprocess.Popen(command, env={**os.environ, "HOLDFAST_HOME": str(home)}, stdout=subprocess.DEVNULL)
    while find_server(home) is None:
        assert server.poll() is None, "the server has ended"
        time.sleep(0.2)
    return server


@asynccontextmanager
async def both(directory: Path, home: Path) -> AsyncIterator[tuple[App, App]]:
    """The agent on pocket here, and on pocket there."""
    server = find_server(home)
    assert server is not None
    os.environ["HOLDFAST_API_KEY"] = (home / "token").read_text().strip()
    endpoint = Endpoint(url=f"{server.url}/v1", model="pocket", thinking=False, tools="simple")
    async with (
        App.open(Settings(directory / "here", POCKET_DIR)) as here,
        App.open(Settings(directory / "there", POCKET_DIR, endpoint=endpoint)) as there,
    ):
        yield here, there


def task(kind: str, seed: int) -> tuple[Repo, str]:
    """A repository and what is asked about it."""
    rng = random.Random(seed)
    repo = Repo("test", rng)
    while (episode := make_episode(kind, repo, "test", rng)) is None:
        pass
    return repo, episode.user


async def told(app: App, kind: str, seed: int) -> Told:
    """What a task's turn tells: calls, results, the answer, and the files that it changed."""
    repo, prompt = await asyncio.to_thread(task, kind, seed)
    with repo:
        async with (
            aclosing(await app.session(repo.root, Approvals(Policy.EDIT), is_new=True)) as session,
            aclosing(session.turn(prompt)) as events,
        ):
            seen = [event async for event in events]
        found: Told = []
        for event in seen:
            if event.type == "tool_call":
                found.append((event.name, event.arguments))
            elif event.type == "tool_result":
                found.append((str(event.ok), event.output))
            elif event.type == "turn_done":
                found.append((event.text,))
            elif event.type == "error":
                found.append(("error", event.message))
        return [*found, *((path, Path(repo.root, path).read_text()) for path in repo.paths)]


async def compare(num_tasks: int, seed: int) -> int:
    """How many tasks told something else."""
    kinds = [kind for kind in KINDS if kind not in TOLD_KINDS]
    tasks = random.Random(seed).choices(kinds, [KINDS[kind] for kind in kinds], k=num_tasks)
    different = 0
    with tempfile.TemporaryDirectory(prefix="holdfast-remote-") as name:
        server = serving(Path(name, "server"))
        try:
            async with both(Path(name), Path(name, "server")) as (here, there):
                for number, kind in enumerate(tasks):
                    one, other = await told(here, kind, seed + number), await told(there, kind, seed + number)
                    if one != other:
                        different += 1
                        print(kind, seed + number, one[:3], other[:3], sep="\n  ", flush=True)
        finally:
            server.terminate()
            server.wait()
    print(f"{num_tasks} tasks, {different} of them told something else behind HTTP")
    return different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(bool(asyncio.run(compare(options.tasks, options.seed))))
