"""Connections of the server: how many may be open, and what HTTP of a client is refused before a request exists.

Owns the limit that keeps room for those who have shown a token, and the answer to bytes that are no request: nothing of
them is logged, since a token may stand among them. Must not know routes or users' rights.
"""

import asyncio
import logging
import resource
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from holdfast.agent.server.json import dumps

log = logging.getLogger("holdfast.server")
MAX_CONNECTIONS = 8192
BACKLOG = 128  # asyncio accepts so many at once, before any of them can be counted
RESERVED_FILES = BACKLOG + 128  # descriptors for the database, the model, sessions and blobs
HALF_CLOSED_S = 1.0  # between questions to a client that sends nothing any more, whether it still reads
STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"  # clients pass over it; from one that is gone comes a reset
PROTOCOL_ERROR = b"\x88\x02\x03\xea"  # a WebSocket close frame with code 1002
NOT_HTTP = {
    "message": "these bytes are no HTTP/1.1 request",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_http",
}


def connection_limit() -> int:
    """Connections that this process may hold, after it has asked the system for as many files as it gets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if 0 <= soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft < 0 else max(16, min(MAX_CONNECTIONS, soft - RESERVED_FILES))


class Connections:
    """All that are open. Where one is too many, the oldest idle one that has shown no token is closed."""

    def __init__(self, limit: int, options: Mapping[str, Any]):
        """`options` are those of aiohttp's protocol."""
        self.limit, self._options = limit, options
        self.num_not_http = 0
        self._strangers: dict[Connection, None] = {}  # the oldest first
        self._known: dict[Connection, str] = {}  # the user who has shown a token on it

    def accept(self, server: web.Server) -> "Connection":
        """The protocol of a connection that begins."""
        return Connection(self, server, loop=asyncio.get_running_loop(), **self._options)

    def __len__(self) -> int:
        return len(self._strangers) + len(self._known)

    def came(self, connection: "Connection") -> None:
        self._strangers[connection] = None
        if len(self) > self.limit:
            surplus = self._surplus(connection)
            self.went(surplus)
            surplus.force_close()

    def went(self, connection: "Connection") -> None:
        self._strangers.pop(connection, None)
        self._known.pop(connection, None)

    def know(self, connection: object, user: str) -> None:
        """This user has shown a token there."""
        if isinstance(connection, Connection) and connection in self:
            self._strangers.pop(connection, None)
            self._known[connection] = user

    def __contains__(self, connection: "Connection") -> bool:
        return connection in self._strangers or connection in self._known

    def _surplus(self, newest: "Connection") -> "Connection":
        """The one to close: of users, one of the user who has most."""
        for stranger in self._strangers:
            if stranger is not newest and stranger.is_idle:
                return stranger
        num_of = Counter(self._known.values())
        idle = [connection for connection in self._known if connection.is_idle]
        return max(idle, key=lambda connection: num_of[self._known[connection]], default=newest)


class Connection(RequestHandler):
    """One client's HTTP, and the frames of its WebSocket."""

    def __init__(self, connections: Connections, server: web.Server, **options: Any):
        super().__init__(server, **options)
        self._connections = connections
        self._frames = Frames()
        self.is_half_closed = False  # the client sends nothing more, but may still read

    @property
    def is_idle(self) -> bool:
        """No request of it is being answered; one may have begun to arrive."""
        return self._waiter is not None and not self._waiter.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.came(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.went(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more: whether the connection stays for its answer."""
        if self._upgraded or self.is_idle:
            return False
        self.is_half_closed = True
        self.close()  # once it is answered
        self._loop.call_later(HALF_CLOSED_S, self._find_out_whether_gone)
        return True

    def _find_out_whether_gone(self) -> None:
        """Closed in one direction looks as closed in both until something is sent. Answers that have begun find out
        themselves; HTTP/1.0 has nothing that could be sent before."""
        request = self._current_request
        if self.transport is None or request is None:
            return
        if request.version < HttpVersion11 or not request.content.is_eof():
            self.force_close()
            return
        if not request.writer.output_size:
            self.transport.write(STILL_THERE)
        self._loop.call_later(HALF_CLOSED_S, self._find_out_whether_gone)

    def data_received(self, data: bytes) -> None:
        if self._payload_parser is not None and not self._frames.are_masked(data):
            self._refuse_frame()
            return
        super().data_received(data)

    def set_parser(self, parser: Any, data_received_cb: Any = None) -> None:
        if not self._frames.are_masked(self._message_tail):  # frames that came with the request
            self._message_tail = b""
            self._loop.call_soon(self._refuse_frame)
        super().set_parser(parser, data_received_cb)

    def _refuse_frame(self) -> None:
        if self.transport is not None:
            self.transport.write(PROTOCOL_ERROR)
            self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to bytes that are not HTTP. Counted, but not logged: the error quotes them."""
        self._connections.num_not_http += 1
        log.warning("a request was refused: its bytes are no HTTP/1.1")
        answer = web.Response(text=dumps({"error": NOT_HTTP}), status=400, content_type="application/json")
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Of aiohttp: its errors quote what was sent."""
        exc = kw.get("exc_info")
        log.warning("a connection ended: %s", type(exc).__name__)


class Frames:
    """Where the frames of a WebSocket client begin: RFC 6455 section 5.1 wants every one of them masked."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left_bytes = 0  # of the frame's mask and payload

    def are_masked(self, data: bytes) -> bool:
        """Whether the frames that begin in the next bytes are."""
        at = 0
        while at < len(data):
            if self._left_bytes:
                skipped = min(self._left_bytes, len(data) - at)
                self._left_bytes -= skipped
                at += skipped
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) < 2:
                continue
            if not self._head[1] & 0x80:
                return False
            size = self._head[1] & 0x7F
            num_more = {126: 2, 127: 8}.get(size, 0)
            if len(self._head) == 2 + num_more:
                self._left_bytes = (int.from_bytes(self._head[2:], "big") if num_more else size) + 4
                self._head.clear()
        return True


class Site(web.BaseSite):
    """A listening socket whose connections are counted."""

    def __init__(self, runner: web.AppRunner, listener: socket.socket, connections: Connections):
        super().__init__(runner, backlog=BACKLOG)
        self._listener, self._connections = listener, connections

    @property
    def name(self) -> str:
        return str(self._listener.getsockname())

    async def start(self) -> None:
        await super().start()
        server, loop = self._runner.server, asyncio.get_running_loop()
        assert server is not None
        accept = lambda: self._connections.accept(server)  # noqa: E731
        self._server = await loop.create_server(accept, sock=self._listener, backlog=BACKLOG)
