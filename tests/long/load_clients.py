"""Clients of a server under load, in a separate process: some that never stop asking, many that only listen."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import aiohttp

TELL, ASK = "remember that the staging port is 4711", "what is the staging port?"
TALK = {"input": "say something about the house", "temperature": 1.5, "max_output_tokens": 48}  # rambles to its limit
TURNS: list[dict[str, Any]] = [{"input": TELL}, TALK, {"input": ASK}, TALK]
TURNS_OF_CONVERSATION = 12
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
WAKE_S = 10.0  # between two requests of an idle client that wakes up


@dataclass
class Client:
    """What one connection has seen."""

    is_active: bool
    num_responses: int = 0
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    first_event_s: list[float] = field(default_factory=list)
    response_s: list[float] = field(default_factory=list)


def clients_process(
    parent: Connection, url: str, token: str, num_clients: int, num_active: int, num_waking: int, seconds: float
) -> None:
    """All clients until the time is over; then `parent` gets them."""
    parent.send(asyncio.run(_clients(parent, url, token, num_clients, num_active, num_waking, seconds)))


async def _clients(
    parent: Connection, url: str, token: str, num_clients: int, num_active: int, num_waking: int, seconds: float
) -> list[Client]:
    clients = [Client(number < num_active) for number in range(num_clients)]
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await session.ws_connect(url, max_msg_size=0) for _ in clients]
        parent.send("connected")
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number, (client, socket) in enumerate(zip(clients, sockets, strict=True)):
                if client.is_active:
                    group.create_task(_converse(socket, client, end, is_stored=number % 2 == 0))
                else:
                    group.create_task(_listen(socket, client, end, number < num_active + num_waking))
        for socket in sockets:
            await socket.close()
    return clients


async def _converse(socket: aiohttp.ClientWebSocketResponse, client: Client, end: float, is_stored: bool) -> None:
    turn, before = 0, None
    while time.monotonic() < end and not socket.closed:
        if turn % TURNS_OF_CONVERSATION == 0:
            before = None
        before = await _ask(socket, client, store=is_stored, previous_response_id=before, **TURNS[turn % len(TURNS)])
        turn += 1


async def _listen(socket: aiohttp.ClientWebSocketResponse, client: Client, end: float, wakes: bool) -> None:
    while (left_s := end - time.monotonic()) > 0:
        wait_s = min(left_s, random.uniform(0.5, 1.5) * WAKE_S) if wakes else left_s
        try:
            async with asyncio.timeout(wait_s):
                client.errors.append(f"an idle client got {(await socket.receive())!r}"[:200])
            return
        except TimeoutError:
            pass
        if wakes and time.monotonic() < end:
            await _ask(socket, client, input=TELL)


async def _ask(socket: aiohttp.ClientWebSocketResponse, client: Client, **body: Any) -> str | None:
    """One response from request to last event; its id, None where nothing can be said after it."""
    started, first_s = time.monotonic(), None
    await socket.send_str(json.dumps({"type": "response.create", "model": "pocket", **body}))
    async for message in socket:
        if first_s is None:
            first_s = time.monotonic() - started
        text = message.data
        if not text.startswith('{"type":"response.output_text.delta"'):
            event = json.loads(text)
            if event["type"] in ENDS:
                break
    else:
        client.errors.append(f"the socket was closed with {socket.close_code}")
        return None
    if event["type"] in ("error", "response.failed"):
        client.errors.append(text[:300])
        return None
    client.num_responses += 1
    client.num_tokens += event["response"]["usage"]["output_tokens"]
    client.first_event_s.append(first_s or 0.0)
    client.response_s.append(time.monotonic() - started)
    makes_call = any(item["type"] == "function_call" for item in event["response"]["output"])
    return None if makes_call else str(event["response"]["id"])  # a call wants a result
