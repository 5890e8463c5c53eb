"""`/v1/chat/completions`: the older protocol, translated to responses.

The client sends the whole conversation every time. It goes on from an earlier response, found by content, so its state
is used again. Owns how a response becomes a completion; must not know how a response is made.
"""

import asyncio
from collections.abc import AsyncGenerator

from aiohttp import web

from holdfast.agent.server.http import SERVICE, USER, json_response, read_json, send_frames
from holdfast.agent.server.json import ApiError, Json, dumps
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.translations.chat_request import chat_request
from holdfast.agent.server.translations.choices import all_over, begin, leave, merged, seeded


async def create_chat(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    chat, wanted, names = await asyncio.to_thread(chat_request, await read_json(request))
    asked = [(wanted.model_copy(update=seeded(wanted.seed, number)), None) for number in range(chat.n)]
    responses = await begin(service, request[USER], asked, names)
    if chat.stream:
        frames = chunks(responses, with_usage=chat.stream_options.include_usage)
        return await send_frames(request, frames, lambda: leave(responses))
    await all_over(responses)
    for response in responses:
        if (error := failure_of(response)) is not None:
            raise error
    return json_response(completion(responses))


def completion(responses: list[Response]) -> Json:
    """Responses that have ended, as a chat completion."""
    choices = [_choice(response, index) for index, response in enumerate(responses)]
    return {**_head(responses[0], "chat.completion"), "choices": choices, "usage": usage(responses)}


def _choice(response: Response, index: int) -> Json:
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    for item in response.output:
        if item["type"] == "function_call":
            message.setdefault("tool_calls", []).append(_tool_call(item))
        elif item["type"] in ("message", "reasoning"):
            key = "reasoning_content" if item["type"] == "reasoning" else "content"
            message[key] = (message.get(key) or "") + "".join(part["text"] for part in item["content"])
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason(response)}


def failure_of(response: Response) -> ApiError | None:
    """The error of a response that failed, or was cancelled by a server that stops; None for any other."""
    status = response.status
    if status == "cancelled":
        return ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
    return ApiError(500, response.object["error"]["message"], "server_error") if status == "failed" else None


def finish_reason(response: Response) -> str:
    if response.status != "completed":
        return "length"
    return "tool_calls" if response.calls else "stop"


def usage(responses: list[Response], num_each: int | None = None) -> Json:
    """The usage of all responses. The input of each `num_each` of them, by default of all, is counted once."""
    given = [response.object["usage"] for response in responses]
    asked = given[:: num_each or len(given)]
    num_read, num_written = sum(u["input_tokens"] for u in asked), sum(u["output_tokens"] for u in given)
    return {
        "prompt_tokens": num_read,
        "completion_tokens": num_written,
        "total_tokens": num_read + num_written,
        "prompt_tokens_details": _sums([u["input_tokens_details"] for u in asked]),
        "completion_tokens_details": _sums([u["output_tokens_details"] for u in given]),
    }


def _sums(counts: list[Json]) -> Json:
    return {key: sum(count[key] for count in counts) for key in counts[0]}


def _tool_call(item: Json) -> Json:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _head(response: Response, kind: str) -> Json:
    return {
        "id": response.id.replace("resp_", "chatcmpl-"),
        "object": kind,
        "created": int(response.created_at),
        "model": response.object["model"],
    }


async def chunks(responses: list[Response], *, with_usage: bool) -> AsyncGenerator[str, None]:
    """The chunks of responses that run, as SSE."""
    head = _head(responses[0], "chat.completion.chunk")
    try:
        async for choice in merged(_deltas(response, index) for index, response in enumerate(responses)):
            yield f"data: {dumps({**head, 'choices': [choice]})}\n\n"
    except ApiError as error:
        yield f"data: {dumps({'error': error.body()})}\n\n"
        return
    if with_usage:
        yield f"data: {dumps({**head, 'choices': [], 'usage': usage(responses)})}\n\n"
    yield "data: [DONE]\n\n"


async def _deltas(response: Response, index: int) -> AsyncGenerator[Json, None]:
    """The deltas of one choice, its end last. Raises ApiError if it has failed."""

    def piece(delta: Json, reason: str | None = None) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    yield piece({"role": "assistant", "content": ""})
    num_calls = 0
    async for event in response.follow():
        if event["type"] == "response.output_text.delta":
            yield piece({"content": event["delta"]})
        elif event["type"] == "response.reasoning_text.delta":
            yield piece({"reasoning_content": event["delta"]})
        elif event["type"] == "response.output_item.added" and event["item"]["type"] == "function_call":
            yield piece({"tool_calls": [{"index": num_calls, **_tool_call(event["item"])}]})
            num_calls += 1
        elif event["type"] == "response.function_call_arguments.delta":
            yield piece({"tool_calls": [{"index": num_calls - 1, "function": {"arguments": event["delta"]}}]})
    if (error := failure_of(response)) is not None:
        raise error
    yield piece({}, finish_reason(response))
