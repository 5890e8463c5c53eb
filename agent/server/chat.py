"""`/v1/chat/completions`: the older protocol, said in terms of responses.

The client sends the whole conversation every time. It goes on from the response that has said its beginning, found by
content, so nothing of it is read again. Owns the translation both ways; must not know how responses come to be.
"""

from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from agent.server.http import SERVICE, USER, json_response, read_json, send_frames, until_over
from agent.server.record import Record
from agent.server.requests import Create, create_request
from agent.server.wire import ApiError, Json, bad, dumps, unsupported

SAME = (
    "model", "temperature", "top_p", "parallel_tool_calls", "metadata", "user", "seed", "service_tier", "safety_identifier",
    "prompt_cache_key", "presence_penalty", "frequency_penalty", "stream",
)  # fmt: skip


async def create_chat(request: web.Request) -> web.StreamResponse:
    service, body = request.app[SERVICE], await read_json(request)
    record = await service.create(request[USER], as_create(body))
    if not body.get("stream"):
        await until_over(service, record)
        if (error := failure_of(record)) is not None:
            raise error
        return json_response(completion(record))
    options = body.get("stream_options")
    frames = chunks(record, isinstance(options, dict) and bool(options.get("include_usage")))
    return await send_frames(request, frames, lambda: service.leave(record))


def as_create(body: Json) -> Create:
    """The same request in terms of the Responses API. Raises ApiError."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages must be a list of at least one message", "messages", "missing_required_parameter")
    if body.get("n") not in (None, 1):
        raise unsupported("n must be 1", "n")
    if body.get("logprobs"):
        raise unsupported("logprobs are not supported", "logprobs")
    fields: Json = {key: body[key] for key in SAME if key in body}
    fields["store"] = bool(body.get("store", False))
    fields["input"] = [item for number, message in enumerate(messages) for item in _items(message, number)]
    fields["max_output_tokens"] = body.get("max_completion_tokens", body.get("max_tokens"))
    stop = body.get("stop")
    fields["stop"] = [stop] if isinstance(stop, str) else stop
    if body.get("reasoning_effort") is not None:
        fields["reasoning"] = {"effort": body["reasoning_effort"]}
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise bad("tools must be a list", "tools")
    fields["tools"] = [_flat(tool, f"tools[{number}]") for number, tool in enumerate(tools or [])]
    choice = body.get("tool_choice")
    fields["tool_choice"] = _flat(choice, "tool_choice") if isinstance(choice, dict) else choice
    if isinstance(format_ := body.get("response_format"), dict):
        schema = format_.get("json_schema")
        rest = schema if format_.get("type") == "json_schema" and isinstance(schema, dict) else {}
        fields["text"] = {"format": {**rest, "type": format_.get("type")}}
    return create_request(fields)


def _flat(tool: Any, where: str) -> Json:
    """{"type": "function", "function": {...}} without its inner object."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise unsupported(f"{where}: only functions are supported", where)
    return {**function, "type": "function"}


def _items(message: Any, number: int) -> list[Json]:
    where = f"messages[{number}]"
    role = message.get("role") if isinstance(message, dict) else None
    if role == "tool":
        output = message.get("content")
        return [{"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}]
    if role not in ("user", "assistant", "system", "developer"):
        raise bad(f"{where}.role must be system, developer, user, assistant or tool", where)
    items: list[Json] = []
    if role == "assistant" and isinstance(thought := message.get("reasoning_content"), str) and thought:
        items.append({"type": "reasoning", "content": [{"type": "reasoning_text", "text": thought}]})
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    if content or role != "assistant":
        items.append({"type": "message", "role": role, "content": content})
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise bad(f"{where}.tool_calls must be a list", where)
    for call in calls:
        if not isinstance(call, dict):
            raise bad(f"{where}.tool_calls must be a list of calls", where)
        function = _flat(call, where)
        items.append({**function, "type": "function_call", "call_id": call.get("id")})
    return items


def _part(part: Any) -> Any:
    """`image_url` and the like under the names of the Responses API."""
    kinds = {"image_url": "input_image", "file": "input_file"}
    if isinstance(part, dict) and isinstance(kind := part.get("type"), str) and kind in kinds:
        return {"type": kinds[kind]}
    return part


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
