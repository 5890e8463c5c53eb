"""The body of `/v1/chat/completions`, checked, and the same request in terms of the Responses API.

Owns the fields of that API and their names in the Responses API. Must not know how a response is run.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints

from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from holdfast.agent.server.responses.request import (
    MAX_ITEMS,
    MAX_TOOLS,
    NAME,
    NO_PENALTIES,
    NO_PROBABILITIES,
    Create,
    Metadata,
    Stop,
    create_request,
)
from holdfast.agent.server.translations.choices import MAX_CHOICES
from holdfast.agent.server.validation import Body, Names, Objects, Short, Unsupported, checked

UNSUPPORTED: Unsupported = {
    "logprobs": ((False,), NO_PROBABILITIES),
    "top_logprobs": ((0,), NO_PROBABILITIES),
    "presence_penalty": ((0,), NO_PENALTIES),
    "frequency_penalty": ((0,), NO_PENALTIES),
    "logit_bias": (({},), "leave it out"),
    "audio": ((), "this model writes text alone"),
    "modalities": ((["text"], []), "this model writes text alone"),
    "functions": (([],), "send tools"),
    "function_call": ((), "send tool_choice"),
    "moderation": ((), "leave it out"),
    "web_search_options": ((), "this server does not search the web, leave it out"),
    # of the Responses API: they would change the answer there
    "input": ((), "send messages"),
    "instructions": ((), "send a message of role system"),
    "previous_response_id": ((), "send the whole conversation as messages"),
    "conversation": ((), "send the whole conversation as messages"),
    "max_output_tokens": ((), "send max_completion_tokens"),
    "reasoning": ((), "send reasoning_effort"),
    "text": ((), "send response_format"),
}
SAME = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "parallel_tool_calls",
    "metadata",
    "user",
    "seed",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "store",
    "stream",
    "stop",
)
FIELDS = {
    "input": "messages",
    "text.format": "response_format",
    "reasoning.effort": "reasoning_effort",
    "tool_choice.mode": "tool_choice.allowed_tools.mode",
    "tool_choice.tools": "tool_choice.allowed_tools.tools",
    ".call_id": ".tool_call_id",
}


def _is_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("must be 1-128 letters, digits, '_', '.' or '-'")
    return text


FunctionName = Annotated[str, AfterValidator(_is_name)]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopTexts = Annotated[list[Stop], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]


class Function(Body):
    model_config = ConfigDict(extra="allow")
    name: FunctionName
    description: str | None = None
    parameters: Json | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class Called(Body):
    name: FunctionName
    arguments: str


class Call(Body):
    id: CallId
    type: Literal["function"] = "function"
    function: Called


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Objects | None = None
    reasoning_content: str = ""
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] = Field(default_factory=list)
    tool_call_id: CallId | None = None


class JsonSchema(Body):
    name: FunctionName
    schema_: Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    include_usage: bool = False


class Chat(Body):
    """A request for chat completions."""

    model: Short
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_ITEMS)
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: str | Json = "auto"
    parallel_tool_calls: bool = True
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    response_format: Format | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31)
    min_p: float = Field(0.0, ge=0, lt=1)
    stop: StopTexts = Field(default_factory=list, max_length=16)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    store: bool = False
    metadata: Metadata = Field(default_factory=dict)
    service_tier: Short = "default"
    user: Short | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None


def chat_request(body: Json) -> tuple[Chat, Create, Names]:
    """The checked body, its translation to the Responses API, and the client's names of fields. Raises ApiError."""
    chat = checked(Chat, body, UNSUPPORTED)
    if chat.n > 1 and chat.model == AGENT_MODEL:
        raise unsupported(f"n must be 1: {AGENT_MODEL} goes on in one session", "n")
    tools = {f"tools[{number}].name": f"tools[{number}].function.name" for number in range(len(chat.tools))}
    names = Names({**FIELDS, **tools})
    fields: Json = {key: getattr(chat, key) for key in SAME}
    fields["input"] = _input(chat.messages, names)
    fields["max_output_tokens"] = chat.max_completion_tokens or chat.max_tokens
    fields["reasoning"] = {"effort": chat.reasoning_effort}
    fields["tools"] = [{**tool.function.model_dump(exclude_none=True), "type": "function"} for tool in chat.tools]
    fields["tool_choice"] = _choice(chat.tool_choice)
    if (format_ := chat.response_format) is not None:
        rest = format_.json_schema.model_dump(by_alias=True) if format_.json_schema else {}
        if format_.type == "json_schema" and not rest:
            raise bad("response_format.json_schema is required", "response_format", "missing_required_parameter")
        fields["text"] = {"format": {**rest, "type": format_.type}}
    try:
        return chat, create_request(fields), names
    except ApiError as e:
        raise names.said(e) from None


def _input(messages: list[Message], names: Names) -> list[Json]:
    """The items of messages; `names` gets the client's name of each."""
    items: list[Json] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        for item, name in _items(message, where):
            items.append(item)
            names.items.append(name)
    return items


def _items(message: Message, where: str) -> list[tuple[Json, str]]:
    if message.role == "tool":
        if message.tool_call_id is None:
            raise bad(f"{where}.tool_call_id is required", f"{where}.tool_call_id", "missing_required_parameter")
        output = {"call_id": message.tool_call_id, "output": message.content}
        return [({"type": "function_call_output", **output}, where)]
    items: list[tuple[Json, str]] = []
    if message.role == "assistant" and message.reasoning_content:
        part = {"type": "reasoning_text", "text": message.reasoning_content}
        items.append(({"type": "reasoning", "content": [part]}, where))
    if message.content or message.role != "assistant":
        items.append(({"type": "message", "role": message.role, "content": message.content}, where))
    for number, call in enumerate(message.tool_calls):
        item = {"type": "function_call", "call_id": call.id, **call.function.model_dump()}
        items.append((item, f"{where}.tool_calls[{number}]"))
    return items


def _choice(choice: str | Json) -> Any:
    """{"type": KIND, KIND: {...}} becomes {"type": KIND, ...}; in `allowed_tools` each tool too."""
    if isinstance(choice, str):
        return choice
    kind = choice.get("type")
    inner = choice.get(kind) if isinstance(kind, str) else None
    if not isinstance(inner, dict):
        raise bad("tool_choice must be none, auto, required, or name functions", "tool_choice")
    if kind == "allowed_tools" and isinstance(tools := inner.get("tools"), list):
        inner = {**inner, "tools": [_choice(tool) if isinstance(tool, dict) else tool for tool in tools]}
    return {**inner, "type": kind}
