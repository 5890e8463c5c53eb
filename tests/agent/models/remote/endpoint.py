"""An endpoint that answers as a test wrote, in good manners or bad ones; everything else of a test is real."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]
KEY = "sk-a-key-that-must-not-leave"
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
CUT, HANG = "cut", "hang"  # the connection is closed; nothing more comes


@dataclass
class Answer:
    """An HTTP answer: `body` as it is, or a stream of `frames`, each a chunk of JSON, raw bytes, CUT or HANG."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    frames: list[Any] = field(default_factory=list)
    is_done: bool = True  # [DONE] is sent


def delta(**fields: Any) -> Json:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": fields, "finish_reason": None}],
    }


def says(*pieces: str, usage: Json | None = None, **first: Any) -> Answer:
    """Text in pieces."""
    frames = [delta(role="assistant", **first), *(delta(content=piece) for piece in pieces), END]
    return Answer(frames=[*frames, *([{"choices": [], "usage": usage}] if usage else [])])


def call(name: str, arguments: Json, id_: str = "call_a") -> Answer:
    """One call, its arguments in three pieces."""
    text = json.dumps(arguments)
    pieces = [text[:3], text[3:9], text[9:]]
    first = {"index": 0, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    return Answer(frames=[delta(content=None, tool_calls=[first]), *(delta(tool_calls=[one]) for one in more), end])


class Endpoint:
    """Runs in the loop of the test. `requests` are the bodies; `num_left` counts clients that went before the end."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.num_left = 0
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def serving(cls, *answers: Answer) -> AsyncIterator["Endpoint"]:
        endpoint = cls()
        endpoint.answers = list(answers)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{path:.*}", endpoint._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        endpoint.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield endpoint
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({"path": request.path, **json.loads(await request.read())})
        self.headers.append(dict(request.headers))
        answer = self.answers.pop(0) if self.answers else Answer(418, body="nothing is scripted")
        if answer.body is not None:
            is_text = isinstance(answer.body, str)
            body = answer.body if is_text else json.dumps(answer.body)
            kind = "text/html" if is_text else "application/json"
            return web.Response(status=answer.status, headers=answer.headers, text=body, content_type=kind)
        response = web.StreamResponse(
            status=answer.status, headers={"Content-Type": "text/event-stream", **answer.headers}
        )
        await response.prepare(request)
        try:
            for frame in answer.frames:
                if frame == CUT:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if frame == HANG:
                    await asyncio.sleep(3600)
                await response.write(frame if isinstance(frame, bytes) else f"data: {json.dumps(frame)}\n\n".encode())
            if answer.is_done:
                await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.num_left += 1
            raise
        return response


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another task does."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


Waits = Callable[[float], Awaitable[None]]
