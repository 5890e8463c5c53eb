"""`/v1/chat/completions`: the older protocol, said in terms of responses.

The client sends the whole conversation every time. It goes on from the response that has said its beginning, found by
content, so nothing of it is read again. Owns how a response is shown as a completion; must not know how responses come to be.
"""

from collections.abc import AsyncGenerator

from aiohttp import web

from agent.server.chat_requests import chat_request
from agent.server.http import SERVICE, USER, json_response, read_json, send_frames, until_over
from agent.server.record import Record
from agent.server.wire import ApiError, Json, dumps


async def create_chat(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    chat, wanted, names = chat_request(await read_json(request))
    try:
        record = await service.create(request[USER], wanted)
    except ApiError as e:
        raise names.said(e) from None
    if not chat.stream:
        await until_over(service, record)
        if (error := failure_of(record)) is not None:
            raise error
        return json_response(completion(record))
    frames = chunks(record, chat.stream_options.include_usage)
    return await send_frames(request, frames, lambda: service.leave(record))


def completion(record: Record) -> Json:
    """A response that has ended, as a chat completion."""
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    for item in record.response["output"]:
        if item["type"] == "function_call":
            message.setdefault("tool_calls", []).append(_tool_call(item))
        elif item["type"] in ("message", "reasoning"):
            key = "reasoning_content" if item["type"] == "reasoning" else "content"
            message[key] = (message.get(key) or "") + "".join(part["text"] for part in item["content"])
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(record)}
    return {**_head(record, "chat.completion"), "choices": [choice], "usage": usage(record)}


def failure_of(record: Record) -> ApiError | None:
    """Why there is no answer, or only a part that its client did not ask for: then the client is to try again."""
    status = record.response["status"]
    if status == "cancelled":
        return ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
    return ApiError(500, record.response["error"]["message"], "server_error") if status == "failed" else None


def finish_reason(record: Record) -> str:
    if record.response["status"] != "completed":
        return "length"
    return "tool_calls" if record.calls else "stop"


def usage(record: Record) -> Json:
    given = record.response["usage"]
    return {
        "prompt_tokens": given["input_tokens"], "completion_tokens": given["output_tokens"],
        "total_tokens": given["total_tokens"], "prompt_tokens_details": given["input_tokens_details"],
        "completion_tokens_details": given["output_tokens_details"],
    }  # fmt: skip


def _tool_call(item: Json) -> Json:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _head(record: Record, kind: str) -> Json:
    return {
        "id": record.id.replace("resp_", "chatcmpl-"), "object": kind, "created": int(record.created_at),
        "model": record.response["model"],
    }  # fmt: skip


async def chunks(record: Record, with_usage: bool) -> AsyncGenerator[str, None]:
    """SSE frames of a response that runs."""
    head = _head(record, "chat.completion.chunk")

    def chunk(delta: Json, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return f"data: {dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": ""})
    num_calls = 0
    async for event in record.follow():
        if event["type"] == "response.output_text.delta":
            yield chunk({"content": event["delta"]})
        elif event["type"] == "response.reasoning_text.delta":
            yield chunk({"reasoning_content": event["delta"]})
        elif event["type"] == "response.output_item.added" and event["item"]["type"] == "function_call":
            yield chunk({"tool_calls": [{"index": num_calls, **_tool_call(event["item"])}]})
            num_calls += 1
        elif event["type"] == "response.function_call_arguments.delta":
            yield chunk({"tool_calls": [{"index": num_calls - 1, "function": {"arguments": event["delta"]}}]})
    if (error := failure_of(record)) is not None:
        yield f"data: {dumps({'error': error.body()})}\n\n"
        return
    yield chunk({}, finish_reason(record))
    if with_usage:
        yield f"data: {dumps({**head, 'choices': [], 'usage': usage(record)})}\n\n"
    yield "data: [DONE]\n\n"
