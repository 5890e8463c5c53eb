"""A data directory, a workspace and a model for tests, and real processes of the real command line on them."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from holdfast.memory import Database, SessionStore
from tests.agent.scripted_engine import Reply, make_model
from tests.agent.terminal.test_render import READY, ROOT, Screen

REAL_CLI, SCRIPTED_CLI = "holdfast.agent", "tests.agent.scripted_engine"


class Place:
    """A data directory, a workspace and a model, and processes of the command line on them."""

    def __init__(self, directory: Path, stack: ExitStack):
        self.home, self.workspace, self.stack = directory / "home", directory / "ws", stack
        self.model: Path | None = None
        self.env = {**os.environ, "HOLDFAST_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        self.env |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "200"}
        self.workspace.mkdir()
        self.file = self.workspace / "a.py"
        self.file.write_text("fox = 1\n")

    def script(self, *replies: Reply, max_context: int = 4096) -> "Place":
        """The model says this."""
        self.model = make_model(
            self.home.parent / f"model-{len(list(self.home.parent.glob('model-*')))}", replies, max_context
        )
        return self

    def command(self, *arguments: str, own_engine: bool = False, program: str | None = None) -> list[str]:
        """Only a process that has the engine needs to know that the model is a script."""
        module = SCRIPTED_CLI if self.model and own_engine else REAL_CLI
        what = ["-m", module] if program is None else ["-c", program]
        return [sys.executable, *what, *arguments, *(["--model", str(self.model)] if self.model else [])]

    def serve(self, *options: str) -> "subprocess.Popen[str]":
        """A server that answers."""
        command = self.command("serve", "--port", "0", *options, own_engine=True)
        server = subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.stack.callback(_end, server)
        assert server.stdout is not None and server.stderr is not None
        for _ in range(2):
            assert server.stdout.readline(), server.stderr.read()
        return server

    def start(self, *arguments: str, **how: Any) -> "subprocess.Popen[str]":
        """See `command`."""
        command = self.command(*arguments, "--workspace", str(self.workspace), **how)
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=pipe, stderr=pipe, text=True)
        self.stack.callback(_end, process)
        return process

    def run(self, *arguments: str, own_engine: bool = False) -> tuple[int, list[dict[str, Any]], str]:
        """`run --json`: exit code, events, stderr."""
        process = self.start("run", "--json", *arguments, own_engine=own_engine)
        out, err = process.communicate(timeout=120)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    def chat(self, *options: str, own_engine: bool = False) -> Screen:
        screen = self.screen(*options, own_engine=own_engine)
        screen.expect("/help")
        screen.expect(READY)
        return screen

    def screen(self, *options: str, own_engine: bool = False) -> Screen:
        """A chat from its first moment on."""
        command = self.command("chat", "--workspace", str(self.workspace), *options, own_engine=own_engine)
        screen = Screen(command, self.env)
        self.stack.callback(screen.close)
        return screen

    def prompts(self) -> list[str]:
        """What was asked in the only session."""
        store = SessionStore(Database(self.home))
        (session,) = store.all()
        return [event.payload["text"] for event in store.events(session, session.branch) if event.type == "user"]

    def sessions(self) -> list[tuple[str, list[tuple[int, str]]]]:
        """Every session with the state of its turns, which checks its whole log."""
        store = SessionStore(Database(self.home))
        found = []
        for session in store.all():
            log = store.open(session)
            found.append((session.name, log.turns()))
            log.close()
        return found


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.communicate()
