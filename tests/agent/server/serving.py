"""A real server for tests: pocket, the real store, on a thread of its own, and clients of the unmodified openai package."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai

from holdfast.agent.config import POCKET_DIR, Settings
from holdfast.agent.server.serve import Running, access_of, running
from holdfast.agent.session.turn import SYSTEM_TEXT as SYSTEM_TEXT
from holdfast.tools import ToolChoice, Workspace, toolset

MODEL = "pocket"
TIMEOUT_S = 240  # the first request may wait for kernels to be compiled, by two processes at once
ENDLESS = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 4000,
}  # a schema that an answer takes long to meet
TELL, ASK, KNOWN = "remember that the staging port is 4711", "what is the staging port?", "The staging port is 4711."
WHERE = "where is load_page defined?"


@dataclass
class Server:
    url: str
    token: str
    running: Running
    loop: asyncio.AbstractEventLoop

    def client(self, token: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token or self.token, max_retries=0, timeout=TIMEOUT_S)

    def async_client(self, token: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=token or self.token, max_retries=0, timeout=TIMEOUT_S
        )

    def http(self, **headers: str) -> httpx2.Client:
        """A plain client, with the token unless other headers are given."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx2.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.token}", **given}, timeout=TIMEOUT_S
        )

    def connect(self) -> socket.socket:
        """Bare bytes to the server."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)

    def head(self, method: str, path: str, **headers: str) -> bytes:
        """The head of a request, with the token."""
        given = {"Host": "localhost", "Authorization": f"Bearer {self.token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        with self.http(**headers) as http:
            return http.post(path, json=body)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        with self.http(**headers) as http:
            return http.get(path)


def create(client: openai.OpenAI, input: Any, **fields: Any) -> Any:
    return client.responses.create(model=MODEL, input=input, **fields)


def settings_of(home: Path, max_output_tokens: int = 96, max_context: int | None = None) -> Settings:
    return Settings(home, POCKET_DIR, max_output_tokens=max_output_tokens, max_context=max_context)


@contextmanager
def served(
    home: Path,
    users: Path | None = None,
    max_context: int | None = None,
    workspace: Path | None = None,
    port: int = 0,
    names: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> Iterator[Server]:
    """A server on `home` until the block ends, stopped gracefully. Its agent works in `workspace`, else in an empty directory."""
    settings = settings_of(home, max_context=max_context)
    access, token = access_of(settings, "127.0.0.1", users, names, origins)
    started, failed = threading.Event(), []
    loop, stop, found = asyncio.new_event_loop(), asyncio.Event(), []

    async def main() -> None:
        place = workspace or home.with_name(f"{home.name}-workspace")
        place.mkdir(exist_ok=True)
        async with running(settings, access, "127.0.0.1", port, place) as server:
            found.append(server)
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as e:
            failed.append(e)
            started.set()
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        if not failed:
            yield Server(found[0].url, token or "", found[0], loop)
    finally:
        if not failed:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    if failed:
        raise failed[0]


def agent_tools(workspace: Path) -> list[dict[str, Any]]:
    """The tools that pocket knows, as function tools of a client."""
    tools = toolset(Workspace(workspace), lambda query, limit: (), ToolChoice.read(POCKET_DIR))
    return [{"type": "function", **tool.schema()} for tool in tools.values()]


def chat_tools(workspace: Path) -> list[dict[str, Any]]:
    tools = agent_tools(workspace)
    return [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in tools]


def origins(response: Any) -> dict[str, Any]:
    """Where the input of a response came from."""
    return dict(response.usage.input_tokens_details.model_extra)
