"""The routes of the Responses API over HTTP, JSON and SSE.

Owns paths, status codes and how a stream is framed. A client that does not read is cut off. Must not know how a
response is made.
"""

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from holdfast.agent.encoding.encode import EncodingError
from holdfast.agent.server.access import OWNER, Access, User
from holdfast.agent.server.connections import HALF_CLOSED_S, Connections
from holdfast.agent.server.json import MAX_BODY_BYTES, ApiError, Json, bad, dumps, parse
from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from holdfast.agent.server.responses.request import create_request
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.service import Service, failure
from holdfast.agent.server.responses.websocket import serve_socket
from holdfast.agent.server.static import FILE, PAGE, page
from holdfast.engine import EngineError
from holdfast.memory import StoreError

log = logging.getLogger("holdfast.server")
KEEPALIVE_S = 10.0
BODY_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 30.0  # a client that reads nothing for so long is gone
MAX_USER_REQUESTS = 512  # of one user under way: streams and sockets count for as long as they last
USER_SHARE = 4  # the part of all connections that one user's requests may take, as a divisor
MAX_USER_SOCKETS = 64
SERVICE = web.AppKey("service", Service)
ACCESS = web.AppKey("access", Access)
CONNECTIONS = web.AppKey("connections", Connections)
UNDER_WAY: "web.AppKey[Counter[str]]" = web.AppKey("under_way", Counter)  # requests, by user
USER_SOCKETS: "web.AppKey[Counter[str]]" = web.AppKey("user_sockets", Counter)
USER = web.RequestKey("user", User)
ErrorShape = Callable[[ApiError], Json]
ERROR_SHAPES: "web.AppKey[dict[str, ErrorShape]]" = web.AppKey("error_shapes", dict)  # of APIs with another, by route
REQUEST_ID = web.RequestKey("request_id", str)
OPEN = ("/healthz", PAGE, FILE)  # routes that need no token
RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check user and origin, answer every error with the protocol's error object, and count requests by route."""
    service = request.app[SERVICE]
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unknown"
    request[REQUEST_ID] = f"req_{secrets.token_hex(12)}"
    try:
        answer = await admitted(request, handler, route)
    except ConnectionError:
        raise
    except web.HTTPException as e:
        answer = error_response(error_of(e, request, route), request.app[ERROR_SHAPES].get(route))
        if "Allow" in e.headers:
            answer.headers["Allow"] = e.headers["Allow"]
    except Exception as e:
        answer = error_response(error_of(e, request, route), request.app[ERROR_SHAPES].get(route))
    service.metrics.requests[route, answer.status] += 1
    return answer


def error_of(e: Exception, request: web.Request, route: str) -> ApiError:
    """The error that the client gets for an exception. A bug in one request must not end the others."""
    if isinstance(e, ApiError):
        return e
    if isinstance(e, StoreError | EngineError | EncodingError):
        log.warning("%s: %s", route, e)
        return failure(e)
    if isinstance(e, RequestPayloadError):
        return bad("the body is not framed as HTTP/1.1 wants", code="invalid_http")
    if isinstance(e, web.HTTPException):
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(e.status)
        return ApiError(e.status, e.reason, code)
    log.error("%s failed (%s)", route, request[REQUEST_ID], exc_info=e)
    return ApiError(500, f"the server made a mistake: its log says which, at {request[REQUEST_ID]}", "server_error")


async def admitted(request: web.Request, handler: Handler, route: str) -> web.StreamResponse:
    """The handler's answer, if the request is allowed. The cheapest checks come first."""
    access = request.app[ACCESS]
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):  # a small body would become a large one
        raise ApiError(415, "send the body as it is, without Content-Encoding", "unsupported_media_type")
    access.check_sender(request.headers)
    if access.is_preflight(request.method, request.headers):
        return web.Response(status=204)
    if route in OPEN:
        return await handler(request)
    user = request[USER] = access.user(request.headers)
    request.app[CONNECTIONS].know(request.protocol, user.name)
    most = max(1, min(MAX_USER_REQUESTS, request.app[CONNECTIONS].limit // USER_SHARE))
    async with counted(request.app[UNDER_WAY], user.name, most, "requests of yours are under way"):
        return await handler(request)


@asynccontextmanager
async def counted(counts: "Counter[str]", user: str, most: int, what: str) -> AsyncIterator[None]:
    """Count one more for this user until the block ends. Raises ApiError 429 above `most`."""
    if counts[user] >= most:
        raise ApiError(429, f"{most} {what}: end some, or try again later", "rate_limit_exceeded")
    counts[user] += 1
    try:
        yield
    finally:
        counts[user] -= 1
        if not counts[user]:
            del counts[user]


async def sign(request: web.Request, answer: web.StreamResponse) -> None:
    """Add the headers of every answer, just before it is sent."""
    answer.headers["x-request-id"] = answer.headers["request-id"] = request.get(REQUEST_ID, "")
    answer.headers.update(request.app[ACCESS].cors(request.headers))


def error_response(error: ApiError, shape: ErrorShape | None = None) -> web.Response:
    answer = json_response(shape(error) if shape else {"error": error.body()}, error.status)
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (429, 503):
        answer.headers["Retry-After"] = "1"
    if error.status == 507:
        answer.headers["x-should-retry"] = "false"  # clients of OpenAI try every 5xx again, unless they are told
    return answer


def json_response(value: Json, status: int = 200) -> web.Response:
    return web.Response(text=dumps(value), status=status, content_type="application/json")


async def read_json(request: web.Request) -> Json:
    """The body. Raises ApiError 415 for another content type: pages can send some of them without a preflight."""
    if request.content_type != "application/json":
        raise ApiError(415, "send the body with Content-Type: application/json", "unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.read()
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", "request_timeout") from None
    return await asyncio.to_thread(parse, body)


async def create(request: web.Request) -> web.StreamResponse:
    service, user = request.app[SERVICE], request[USER]
    body = create_request(await read_json(request))
    response = await service.create(user, body)
    if body.stream:
        return await stream(request, response, on_gone=response.leave)
    if not body.background:
        await until_over(response)
    return json_response(response.object)


async def until_over(response: Response) -> None:
    """Wait until a response is over; it is cancelled if the client leaves."""
    try:
        await response.over()
    except asyncio.CancelledError:
        response.leave()
        raise


async def stream(
    request: web.Request, response: Response, after: int = -1, on_gone: Callable[[], None] = lambda: None
) -> web.StreamResponse:
    """The events of a response as SSE, from the one after number `after`."""

    async def frames() -> AsyncGenerator[str, None]:
        async for event in response.follow(after):
            yield f"event: {event['type']}\ndata: {dumps(event)}\n\n"

    return await send_frames(request, frames(), on_gone)


async def send_frames(
    request: web.Request, frames: AsyncGenerator[str, None], on_gone: Callable[[], None] = lambda: None
) -> web.StreamResponse:
    """Send SSE frames, with a comment as keepalive while there is none. `on_gone` is called if the client leaves."""
    answer = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    answer.content_type = "text/event-stream"
    await answer.prepare(request)
    frame = asyncio.ensure_future(anext(frames, None))
    try:
        while True:
            pause = HALF_CLOSED_S if getattr(request.protocol, "is_half_closed", False) else KEEPALIVE_S
            done, _ = await asyncio.wait({frame}, timeout=pause)
            text = frame.result() if done else ": keepalive\n\n"
            if text is None:
                break
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await answer.write(text.encode())
            if done:
                frame = asyncio.ensure_future(anext(frames, None))
        await answer.write_eof()
    except (ConnectionError, TimeoutError, asyncio.CancelledError) as e:
        on_gone()
        if isinstance(e, TimeoutError) and request.transport is not None:
            request.transport.abort()
        if isinstance(e, asyncio.CancelledError):
            raise
    finally:
        frame.cancel()
        await asyncio.wait({frame})
        await frames.aclose()
    return answer


async def found(request: web.Request) -> Response:
    """The response that the path names. Raises ApiError 404, also for another user's."""
    id = request.match_info["id"]
    response = await request.app[SERVICE].cache.get(request[USER], id) if RESPONSE_ID.fullmatch(id) else None
    if response is None:
        raise ApiError(404, f"Response with id '{id[:100]}' not found.", "response_not_found", "response_id")
    return response


async def retrieve(request: web.Request) -> web.StreamResponse:
    response = await found(request)
    if request.query.get("stream") != "true":
        return json_response(response.object)
    after = request.query.get("starting_after", "-1")
    if not re.fullmatch(r"-1|\d{1,9}", after):
        raise bad("starting_after must be a whole number", "starting_after")
    return await stream(request, response, int(after))


async def delete(request: web.Request) -> web.StreamResponse:
    response = await found(request)
    await request.app[SERVICE].delete(request[USER], response.id)
    return json_response({"id": response.id, "object": "response", "deleted": True})


async def cancel(request: web.Request) -> web.StreamResponse:
    """Cancel a response that runs, in the background or not."""
    response = await found(request)
    if not response.is_over:
        response.cancel()
        await response.over()
    elif response.status != "cancelled":
        raise bad(f"a response that is {response.status} cannot be cancelled", "response_id")
    return json_response(response.object)


async def input_items(request: web.Request) -> web.StreamResponse:
    return json_response(page_of(request, (await found(request)).input))


def page_of(request: web.Request, items: list[Json]) -> Json:
    """One page of items, given oldest first, by the query: `order`, `limit`, `after` an id."""
    items = items if request.query.get("order") == "asc" else items[::-1]
    limit, after = request.query.get("limit", "20"), request.query.get("after")
    if not re.fullmatch(r"\d{1,3}", limit) or not 1 <= int(limit) <= 100:
        raise bad("limit must be a whole number from 1 to 100", "limit")
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise bad("after names no item of this list", "after")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(items) > len(page), **ends}


async def input_tokens(request: web.Request) -> web.StreamResponse:
    body = {"model": request.app[SERVICE].model, **await read_json(request)}
    num_tokens = await request.app[SERVICE].count_input(request[USER], create_request(body))
    return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})


async def compact(request: web.Request) -> web.StreamResponse:
    return json_response(await request.app[SERVICE].compact(request[USER], create_request(await read_json(request))))


async def models(request: web.Request) -> web.StreamResponse:
    """The models, or the one that the path names, with the fields of both APIs that list models."""
    service = request.app[SERVICE]
    wanted = request.match_info.get("id")
    limit = service.app.engine.max_context
    model = {
        "object": "model",
        "created": 0,
        "owned_by": "holdfast",
        "context_window": limit,
        "type": "model",
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": limit,
    }
    if wanted is not None:
        service.check_model(wanted)
        return json_response({"id": wanted, "display_name": wanted, **model})
    data = [{"id": id, "display_name": id, **model} for id in (service.model, AGENT_MODEL)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": False}
    return json_response({"object": "list", "data": data, **ends})


async def health(request: web.Request) -> web.StreamResponse:
    is_stopping = request.app[SERVICE].is_stopping
    return json_response({"status": "stopping" if is_stopping else "ok"}, 503 if is_stopping else 200)


async def metrics(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    if request[USER].name != OWNER:  # sizes of what all users store let one guess what another has said
        raise ApiError(403, "metrics are for the owner of the server", "owner_only")
    usage = await asyncio.to_thread(service.app.snapshots.store.usage)
    used, pages = service.app.engine.pages_in_use
    gauges = {
        "responses_in_flight": len(service.cache.in_flight()),
        "responses_in_memory": len(service.cache.in_memory),
        "pool_pages_used": used,
        "pool_pages": pages,
        "disk_bytes": usage.bytes,
        "disk_budget_bytes": usage.budget,
    }
    return web.Response(text=service.metrics.text(gauges), content_type="text/plain")


async def connect(request: web.Request) -> web.StreamResponse:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise ApiError(405, "use POST, or a WebSocket", "method_not_allowed")
    async with counted(
        request.app[USER_SOCKETS], request[USER].name, MAX_USER_SOCKETS, "WebSocket connections of yours are open"
    ):
        return await serve_socket(request, request.app[SERVICE], request[USER])


async def embeddings(request: web.Request) -> web.StreamResponse:
    raise ApiError(404, "this server makes no embeddings: its model only generates text", "not_found")


def application(service: Service, access: Access) -> web.Application:
    """The application with the routes of the Responses API, and those without an API."""
    app = web.Application(middlewares=[guard], client_max_size=MAX_BODY_BYTES)
    app[SERVICE], app[ACCESS] = service, access
    app[UNDER_WAY], app[USER_SOCKETS], app[ERROR_SHAPES] = Counter(), Counter(), {}
    app.on_response_prepare.append(sign)
    base = "/v1/responses"
    app.add_routes(
        [
            web.get(PAGE, page),
            web.get(FILE, page),
            web.get("/healthz", health),
            web.get("/metrics", metrics),
            web.get("/v1/models", models),
            web.get("/v1/models/{id}", models),
            web.route("*", "/v1/embeddings", embeddings),
            web.post(base, create),
            web.get(base, connect, allow_head=False),
            web.post(f"{base}/input_tokens", input_tokens),
            web.post(f"{base}/compact", compact),
            web.get(f"{base}/{{id}}", retrieve),
            web.delete(f"{base}/{{id}}", delete),
            web.post(f"{base}/{{id}}/cancel", cancel),
            web.get(f"{base}/{{id}}/input_items", input_items),
        ]
    )
    return app
