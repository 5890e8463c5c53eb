"""The Responses API over a WebSocket: lanes by stream_id, each a queue of requests, all on one connection.

Owns the order of a lane, the local responses of a connection, and steering. A response that is not stored lives as long
as its connection; one that is stored goes on without it. Must not know how a response is made.
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from holdfast.agent.server.access import User
from holdfast.agent.server.json import MAX_BODY_BYTES, ApiError, Json, bad, dumps, parse
from holdfast.agent.server.responses.items import as_items, normal_items
from holdfast.agent.server.responses.request import create_request, stream_id_of
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.service import Service

MAX_LANES = 32  # with a name
MAX_IN_FLIGHT = 16
MAX_QUEUED = 256
MAX_STEERS = 16
MAX_LOCAL = 64  # responses that are not stored; the oldest are forgotten
MAX_LOCAL_TOKENS = 2**21  # of their logs, but for the last one
HEARTBEAT_S = 20.0
CONNECTION_S = 3600.0
WRITE_TIMEOUT_S = 30.0  # a client that reads nothing for so long is gone
LARGE_FRAME_CHARS = 16_384
SOCKETS: "web.AppKey[set[Any]]" = web.AppKey("sockets", set)
Lane = str | None


async def serve_socket(request: web.Request, service: Service, user: User) -> web.WebSocketResponse:
    """Serve one connection until it ends."""
    # no compression: a small frame cannot become a large one
    socket = web.WebSocketResponse(max_msg_size=MAX_BODY_BYTES, compress=False, heartbeat=HEARTBEAT_S)
    await socket.prepare(request)
    sockets = request.app[SOCKETS]
    sockets.add(socket)
    try:
        await Connection(socket, service, user, request).run()
    finally:
        sockets.discard(socket)
    return socket


@dataclass(eq=False)
class Connection:
    """One client. Reading never waits for a response; writing has a time limit."""

    socket: web.WebSocketResponse
    service: Service
    user: User
    request: web.Request
    local: dict[str, Response] = field(default_factory=dict)  # not stored
    running: dict[str, Response] = field(default_factory=dict)
    _lane_of: dict[str, Lane] = field(default_factory=dict)  # of local responses
    _queues: "dict[Lane, asyncio.Queue[Json]]" = field(default_factory=dict)
    _held_back: dict[str, list[Json]] = field(default_factory=dict)  # steering that waits for the results of calls
    _in_flight: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_IN_FLIGHT))
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Serve until the client or the server closes the connection."""
        workers: set[asyncio.Task[None]] = set()
        limit = asyncio.timeout(CONNECTION_S)
        try:
            async with limit:
                await self._read(workers)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            for worker in workers:
                worker.cancel()
            # this handler is cancelled when its connection is lost, even here: so another task does the rest
            self.service.group.create_task(self._forget_all(workers))
        if limit.expired():
            await self._end()

    async def _read(self, workers: "set[asyncio.Task[None]]") -> None:
        async for message in self.socket:
            if message.type == WSMsgType.TEXT:
                await self._take(message.data, workers)
            elif message.type == WSMsgType.BINARY:
                await self._refuse(None, bad("send text frames, one JSON object each", code="invalid_json"))
            else:  # an error: the connection is closed with its code
                return

    async def _forget_all(self, workers: "set[asyncio.Task[None]]") -> None:
        if workers:
            await asyncio.wait(workers)
        for response in [*self.local.values()]:
            await self.service.forget_local(response)

    async def _end(self) -> None:
        """The connection has reached its time limit: tell the client to make another one."""
        text = (
            f"Responses websocket connection limit reached ({CONNECTION_S / 60:g} minutes)."
            " Create a new websocket connection to continue."
        )
        with suppress(ConnectionError, TimeoutError):
            await self._refuse(None, ApiError(400, text, "websocket_connection_limit_reached"))
            await self.socket.close(code=WSCloseCode.GOING_AWAY, message=b"connection limit")

    async def _take(self, text: str, workers: "set[asyncio.Task[None]]") -> None:
        lane: Lane = None
        try:
            body = await asyncio.to_thread(parse, text) if len(text) > LARGE_FRAME_CHARS else parse(text)
            lane = stream_id_of(body)
            kind = body.pop("type", None)
            if kind == "response.steer":
                await self._steer(body)
            elif kind == "response.create":
                self._enqueue(lane, body, workers)
            else:
                raise bad(f"unknown event type {str(kind)[:60]!a}", "type", "unknown_event_type")
        except ApiError as e:
            await self._refuse(lane if e.code != "invalid_stream_id" else None, e)

    def _enqueue(self, lane: Lane, body: Json, workers: "set[asyncio.Task[None]]") -> None:
        for key in ("stream_id", "stream", "stream_options", "background"):
            body.pop(key, None)
        if sum(queue.qsize() for queue in self._queues.values()) >= MAX_QUEUED:
            raise ApiError(429, f"more than {MAX_QUEUED} requests wait on this connection", "websocket_queue_full")
        if lane not in self._queues:
            if lane is not None and len(self._queues.keys() - {None}) >= MAX_LANES:
                text = f"This connection has reached the maximum number of distinct stream IDs ({MAX_LANES})."
                raise ApiError(400, text, "websocket_stream_limit_reached", "stream_id")
            self._queues[lane] = asyncio.Queue()
            worker = asyncio.create_task(self._serve_lane(lane, self._queues[lane]))
            workers.add(worker)
        self._queues[lane].put_nowait(body)

    async def _serve_lane(self, lane: Lane, queue: "asyncio.Queue[Json]") -> None:
        while True:
            body: Json | None = await queue.get()
            try:
                async with self._in_flight:
                    while body is not None:
                        body = await self._respond(lane, body)
            except (ConnectionError, TimeoutError):  # the client does not read any more
                if self.request.transport is not None:
                    self.request.transport.abort()
                return

    async def _respond(self, lane: Lane, body: Json) -> Json | None:
        """Send one response from first to last event; gives the request of the next one if it was steered."""
        parent = body.get("previous_response_id")
        try:
            if isinstance(parent, str) and (held_back := self._held_back.pop(parent, None)):
                body = {**body, "input": [*held_back, *as_items(body.get("input"))]}
            response = await self.service.create(self.user, create_request(body), self.local)
        except ApiError as e:
            self._evict(lane, parent)
            await self._refuse(lane, e)
            return None
        self.running[response.id] = response
        if not response.is_stored:
            self._keep(lane, response)
        try:
            async for event in response.follow():
                await self._send(lane, event)
        finally:
            del self.running[response.id]
            if not response.is_stored:
                response.forget_events()  # no other client may follow it
        if response.status == "failed":
            self._evict(lane, parent)
            return None
        if not response.steering:
            return None
        if response.calls:
            self._held_back[response.id] = response.steering
            stubs = [{"type": "function_call_output", "call_id": call_id} for call_id in response.calls]
            await self._send(
                lane, {"type": "response.steer.pending", "previous_response_id": response.id, "required_input": stubs}
            )
            return None
        goes_on = {} if body.get("conversation") else {"previous_response_id": response.id}
        return {**body, **goes_on, "input": response.steering}

    async def _steer(self, body: Json) -> None:
        """Steer a response that runs: it ends at the next token, and another goes on with the messages."""
        id, given = body.get("previous_response_id"), body.get("input")
        steer = {"id": f"steer_{secrets.token_hex(12)}", "previous_response_id": id}
        response = self.running.get(id) if isinstance(id, str) else None
        try:
            if response is None or response.is_over:
                known = isinstance(id, str) and id in self.service.cache.in_memory and await self._is_ours(id)
                code = "response_already_completed" if known else "response_not_found"
                raise ApiError(400, "only a response that runs on this connection can be steered", code)
            if len(response.steering) >= MAX_STEERS:
                raise ApiError(429, "too many messages wait for this response", "too_many_pending_steers")
            items = normal_items(given if isinstance(given, str | list) else [], f"in_{secrets.token_hex(8)}_")
            if not items or any(item.get("role") != "user" for item in items):
                raise ApiError(400, "steer with a text or with user messages", "invalid_input")
        except ApiError as e:
            error = {**e.body(), "code": "invalid_input"} if e.code == "unsupported" else e.body()
            await self._send(
                None, {"type": "response.steer.failed", "error": error, "steer": {**steer, "input": given}}
            )
            return
        response.steer(items)
        await self._send(
            self._lane_of.get(response.id), {"type": "response.steer.accepted", "sequence_number": 0, "steer": steer}
        )

    async def _is_ours(self, id: str) -> bool:
        return await self.service.cache.get(self.user, id, self.local) is not None

    def _keep(self, lane: Lane, response: Response) -> None:
        num_tokens = sum(len(other.ids) for other in self.local.values())
        for old in [other for other in self.local.values() if other.is_over]:
            if len(self.local) < MAX_LOCAL and num_tokens <= MAX_LOCAL_TOKENS:
                break
            num_tokens -= len(old.ids)
            self._forget(old.id)
        self.local[response.id], self._lane_of[response.id] = response, lane

    def _evict(self, lane: Lane, parent: object) -> None:
        """Forget the response that a failed request went on from, as the protocol wants, if it is of the same lane."""
        if isinstance(parent, str) and parent in self.local and self._lane_of[parent] == lane:
            self._forget(parent)

    def _forget(self, id: str) -> None:
        del self._lane_of[id]
        response = self.local.pop(id)
        self.service.group.create_task(self.service.forget_local(response))

    async def _refuse(self, lane: Lane, error: ApiError) -> None:
        await self._send(lane, {"type": "error", "status": error.status, "error": error.body()})

    async def _send(self, lane: Lane, event: Json) -> None:
        text = dumps(event if lane is None else {**event, "stream_id": lane})
        async with self._writing:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self.socket.send_str(text)


async def close_all(app: web.Application) -> None:
    """Close all sockets with the code for a restart: clients reconnect."""
    sockets = app[SOCKETS]
    closing = [socket.close(code=WSCloseCode.SERVICE_RESTART, message=b"restart") for socket in list(sockets)]
    with suppress(ConnectionError):
        await asyncio.gather(*closing, return_exceptions=True)
