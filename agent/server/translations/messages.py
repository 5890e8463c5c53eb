"""`/v1/messages`: the Anthropic Messages API, translated to responses.

Owns how a response, its events and its errors look there. Must not know how a response is made.
"""

import asyncio
import json
from collections.abc import AsyncGenerator

from aiohttp import web

from holdfast.agent.server.http import ERROR_SHAPES, SERVICE, USER, json_response, read_json, send_frames
from holdfast.agent.server.json import ApiError, Json, dumps
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.translations.chat_completions import failure_of
from holdfast.agent.server.translations.choices import all_over, begin, leave
from holdfast.agent.server.translations.messages_request import asked_of, counted_of

PATH = "/v1/messages"
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
DELTAS = {
    "response.output_text.delta": ("text_delta", "text"),
    "response.reasoning_text.delta": ("thinking_delta", "thinking"),
    "response.function_call_arguments.delta": ("input_json_delta", "partial_json"),
}


async def create_message(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    wanted, names = await asyncio.to_thread(asked_of, await read_json(request))
    responses = await begin(service, request[USER], [(wanted, None)], names)
    response = responses[0]
    if wanted.stream:
        return await send_frames(request, _frames(response), lambda: leave(responses))
    await all_over(responses)
    if (error := failure_of(response)) is not None:
        raise error
    content = [block for item in response.output if (block := _block(item)) is not None]
    return json_response({**_message(response), "content": content, **_end(response), "usage": _usage(response)})


async def count_tokens(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    wanted, names = await asyncio.to_thread(counted_of, await read_json(request))
    service.check_model(wanted.model)
    try:
        return json_response({"input_tokens": await service.count_input(request[USER], wanted)})
    except ApiError as e:
        raise names.said(e) from None


def _message(response: Response) -> Json:
    """A message that has just begun."""
    return {
        "id": response.id.replace("resp_", "msg_"),
        "type": "message",
        "role": "assistant",
        "model": response.object["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": response.num_input_tokens, "output_tokens": 0},
    }


def _end(response: Response) -> Json:
    """Why a message has ended."""
    reason = "end_turn"
    if response.status != "completed":
        reason = "max_tokens"
    elif response.calls:
        reason = "tool_use"
    elif response.stopped_by is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": response.stopped_by}


def _usage(response: Response) -> Json:
    given = response.object["usage"]
    num_cached = given["input_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": given["input_tokens"] - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": given["output_tokens"],
    }


def _block(item: Json) -> Json | None:
    """An item as a content block; None for a call of a tool of the server."""
    if item["type"] == "function_call":
        return {**_called(item), "input": json.loads(item["arguments"] or "{}")}
    text = "".join(part["text"] for part in item.get("content", ()))
    if item["type"] == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text} if item["type"] == "message" else None


def _called(item: Json) -> Json:
    return {"type": "tool_use", "id": item["call_id"], "name": item["name"], "input": {}}


async def _frames(response: Response) -> AsyncGenerator[str, None]:
    """The events of a response that runs, as SSE."""
    yield _frame("message_start", {"message": _message(response)})
    index = -1
    async for event in response.follow():
        kind = event["type"]
        if kind == "response.output_item.added" and (block := _block(event["item"])) is not None:
            index += 1
            yield _frame("content_block_start", {"index": index, "content_block": block})
        elif kind in DELTAS:
            name, key = DELTAS[kind]
            yield _frame("content_block_delta", {"index": index, "delta": {"type": name, key: event["delta"]}})
        elif kind == "response.output_item.done" and _block(event["item"]) is not None:
            if event["item"]["type"] == "reasoning":
                delta = {"type": "signature_delta", "signature": ""}
                yield _frame("content_block_delta", {"index": index, "delta": delta})
            yield _frame("content_block_stop", {"index": index})
    if (error := failure_of(response)) is not None:
        yield _frame("error", _error(error))
        return
    yield _frame("message_delta", {"delta": _end(response), "usage": _usage(response)})
    yield _frame("message_stop", {})


def _frame(kind: str, fields: Json) -> str:
    return f"event: {kind}\ndata: {dumps({'type': kind, **fields})}\n\n"


def _error(error: ApiError) -> Json:
    """An error in the shape of this API. It has no field for the parameter, so the message names it."""
    text = str(error)
    if error.param and not text.startswith(error.param):
        text = f"{error.param}: {text}"
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": text}}


def add_messages(app: web.Application) -> None:
    """Add the routes of this API."""
    for path, handler in ((PATH, create_message), (f"{PATH}/count_tokens", count_tokens)):
        app.router.add_post(path, handler)
        app[ERROR_SHAPES][path] = _error
