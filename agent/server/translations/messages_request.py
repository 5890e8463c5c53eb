"""The body of `/v1/messages`, checked, and the same request in terms of the Responses API.

Owns the fields and blocks of the Anthropic Messages API and their names in the Responses API. Must not know how a
response is run.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.responses.request import MAX_ITEMS, MAX_TOOLS, Create, Stop, create_request
from holdfast.agent.server.translations.chat_request import CallId, FunctionName, Tokens
from holdfast.agent.server.validation import Body, Names, Short, Unsupported, checked

UNSUPPORTED: Unsupported = {
    "container": ((), "this server runs no code for the model, leave it out"),
    "mcp_servers": (([],), "send their tools as tools"),
}
SERVER_TOOLS = (
    "web_search",
    "web_fetch",
    "code_execution",
    "tool_search",
)  # of the provider: the model goes on without
FIELDS = {
    "input": "messages",
    "instructions": "system",
    "max_output_tokens": "max_tokens",
    "stop": "stop_sequences",
    "text.format": "output_config.format",
    "reasoning.effort": "output_config.effort",
    ".call_id": ".tool_use_id",
}


class Block(Body):
    """A content block; its type says which other fields it has."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: CallId | None = None
    name: FunctionName | None = None
    input: Json | None = None
    tool_use_id: CallId | None = None
    content: "str | Blocks | None" = None
    source: Json | None = None


Blocks = Annotated[list[Block], Field(fail_fast=True)]
Block.model_rebuild()


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class Tool(Body):
    type: str = "custom"
    name: FunctionName
    description: str = ""
    input_schema: Json | None = None


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Body):
    type: Literal["enabled", "adaptive", "disabled"] = "disabled"


class Format(Body):
    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] = "high"
    format: Format | None = None


class Counted(Body):
    """The fields of a message request that also count_tokens takes."""

    model: Short
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_ITEMS)
    system: str | Blocks = ""
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Choice = Choice()
    thinking: Thinking = Thinking()
    output_config: OutputConfig = OutputConfig()


class Asked(Counted):
    """A request for a message."""

    max_tokens: Tokens
    stop_sequences: list[Stop] = Field(default_factory=list, max_length=16)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31)


def asked_of(body: Json) -> tuple[Create, Names]:
    """The request translated to the Responses API, and the client's names of fields. Raises ApiError."""
    asked = checked(Asked, body, UNSUPPORTED)
    same = {key: getattr(asked, key) for key in ("temperature", "top_p", "top_k", "stream")}
    return _translated(asked, {**same, "max_output_tokens": asked.max_tokens, "stop": asked.stop_sequences})


def counted_of(body: Json) -> tuple[Create, Names]:
    """As `asked_of`, for a body of count_tokens."""
    return _translated(checked(Counted, body, UNSUPPORTED), {})


def _translated(asked: Counted, fields: Json) -> tuple[Create, Names]:
    names = Names(FIELDS)
    fields |= {"model": asked.model, "store": False, "input": _input(asked.messages, names)}
    fields["instructions"] = "\n\n".join(_texts(asked.system, "system")) or None
    is_thinking = asked.thinking.type != "disabled"
    fields["reasoning"] = {"effort": asked.output_config.effort if is_thinking else "none"}
    if (format_ := asked.output_config.format) is not None:
        fields["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": format_.schema_}}
    fields["tools"] = [function for number, tool in enumerate(asked.tools) for function in _functions(tool, number)]
    fields["tool_choice"] = _choice(asked.tool_choice)
    fields["parallel_tool_calls"] = not asked.tool_choice.disable_parallel_tool_use
    try:
        return create_request(fields), names
    except ApiError as e:
        raise names.said(e) from None


def _functions(tool: Tool, number: int) -> list[Json]:
    if tool.type == "custom" and tool.input_schema is not None:
        named = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
        return [{"type": "function", **named}]
    if tool.type.startswith(SERVER_TOOLS):
        return []
    where = f"tools[{number}].input_schema"
    raise unsupported(f"{where} is required: this model knows no tools by their type alone", where)


def _choice(choice: Choice) -> Any:
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.name is None:
        raise bad("tool_choice.name is required", "tool_choice.name", "missing_required_parameter")
    return {"type": "function", "name": choice.name}


def _input(messages: list[Message], names: Names) -> list[Json]:
    """The items of messages; `names` gets the client's name of each."""
    items: list[Json] = []
    if messages[-1].role == "assistant":
        text = "the last message must be a user's: this model goes on from no beginning of an answer"
        raise unsupported(f"messages: {text}", "messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}].content"
        blocks = [Block(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for place, block in enumerate(blocks):
            name = f"{where}[{place}]" if isinstance(message.content, list) else where
            if (item := _item(message.role, block, name)) is not None:
                items.append(item)
                names.items.append(name)
    return items


def _item(role: str, block: Block, where: str) -> Json | None:
    """The item of a block; None for a block that has no meaning here."""
    if role == "assistant":
        if block.type == "thinking" and block.thinking:
            return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": block.thinking}]}
        if block.type in ("thinking", "redacted_thinking"):
            return None
        if block.type == "tool_use":
            if block.id is None or block.name is None or block.input is None:
                raise bad(f"{where} needs id, name and input", where)
            arguments = json.dumps(block.input, ensure_ascii=False)
            return {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments}
    elif block.type == "tool_result":
        if block.tool_use_id is None:
            raise bad(f"{where}.tool_use_id is required", f"{where}.tool_use_id", "missing_required_parameter")
        output = _texts(block.content or "", where, may_name_media=True)
        return {"type": "function_call_output", "call_id": block.tool_use_id, "output": "\n\n".join(output)}
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": _text(block, where)}]}


def _texts(content: str | list[Block], where: str, *, may_name_media: bool = False) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [_text(block, f"{where}[{number}]", may_name_media=may_name_media) for number, block in enumerate(content)]


def _text(block: Block, where: str, *, may_name_media: bool = False) -> str:
    """The text of a block or of a text document. If `may_name_media`, other media become their name in brackets."""
    source = block.source or {}
    text = block.text if block.type == "text" else source.get("data") if source.get("type") == "text" else None
    if isinstance(text, str):
        return text
    if block.type == "text":
        raise bad(f"{where}.text is required", f"{where}.text", "missing_required_parameter")
    if may_name_media:
        return f"[Unsupported {block.type[:60]}]"
    raise unsupported(f"{where}: this model reads text alone, no {block.type[:60]}", where)
