"""Items of the protocol to messages of the chat encoding, and messages to tokens that continue a token log.

Owns what a conversation is: its opening, its messages, which calls wait for a result, and the digest to find it by.
Must not know sequences, the store or sockets.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.agent.encoding.encode import (
    ASSISTANT,
    BOS,
    END_THINK,
    THINK,
    ProtocolTexts,
    ThinkingMode,
    encode_continuation,
    encode_messages,
)
from holdfast.agent.server.json import ApiError, Json, bad, dumps, unsupported
from holdfast.agent.server.responses.request import NAME, Create, forced_call, full_name, function_tools
from holdfast.engine import Tokenizer

Message = dict[str, Any]
EFFORTS = {"minimal": "high", "low": "high", "medium": "high", "high": "high", "xhigh": "max", "max": "max"}
MEDIA_PARTS = ("input_image", "input_file", "input_audio", "image_url", "file", "image", "audio")
TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal")
LONG_CHARS = 2**16  # of a text that is hashed alone
AHEAD_MARGIN = 16  # tokens at the end of a text that may become others when more text follows


@dataclass(frozen=True)
class Opening:
    """What a conversation begins with. Another opening gives other tokens from the first on."""

    text: str
    tools: tuple[str, ...]  # schemas as JSON
    effort: str | None  # None: no thinking
    schema: str | None = None

    @property
    def thinking_mode(self) -> ThinkingMode:
        return "chat" if self.effort is None else "thinking"

    def digest(self) -> bytes:
        """Equal for equal openings. An effort that adds no text counts too."""
        return _digest(b"", [self.text, list(self.tools), self.effort, self.schema])

    def message(self) -> Message:
        """The opening as a system message."""
        found: Message = {"role": "system", "content": self.text}
        if self.tools:
            found["tools"] = [{"type": "function", "function": json.loads(tool)} for tool in self.tools]
        if self.schema is not None:
            found["response_format"] = json.loads(self.schema)
        return found


def opening_of(request: Create, system: Sequence[str]) -> Opening:
    """The opening from instructions, tools, reasoning effort and the system messages at the beginning."""
    functions = function_tools(request.tools)
    forced_call(
        request, functions
    )  # refuses what is wrong; what may not be called is still read: the beginning is shared
    effort = request.reasoning.effort if request.reasoning else None
    text = "\n\n".join(part for part in [request.instructions or "", *system] if part)
    tools = tuple(dumps(function) for function in functions)
    format_ = request.text.get("format") or {}
    schema = dumps(format_["schema"]) if format_.get("type") == "json_schema" else None
    is_plain = format_.get("type", "text") == "text"  # an answer in a format is held to it from its first token
    return Opening(text, tools, EFFORTS.get(effort or "") if is_plain else None, schema)


def as_items(given: object) -> list[Json]:
    """The input as a list: a text is a user's message."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return given if isinstance(given, list) else []


def normal_items(given: str | list[Json], prefix: str) -> list[Json]:
    """The input as items, each with an id. Raises ApiError that names the item."""
    items = []
    for number, item in enumerate(as_items(given)):
        where = f"input[{number}]"
        kind = item.get("type") or ("message" if "role" in item else None)
        check = CHECKS.get(kind) if isinstance(kind, str) else None
        if check is None:
            raise unsupported(f"{where}: items of type {str(kind)[:60]!a} are not supported", where)
        items.append({"id": f"{prefix}{number:x}", **check(item, where)})
    return items


def _message(item: Json, where: str) -> Json:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise bad(f"{where}.role must be user, assistant, system or developer", f"{where}.role")
    kind = "output_text" if role == "assistant" else "input_text"
    content: list[Json] = [{"type": kind, "text": text} for text in _texts(item.get("content"), f"{where}.content")]
    if role == "assistant":
        content = [{**part, "annotations": [], "logprobs": []} for part in content]
    phase = {"phase": item["phase"]} if isinstance(item.get("phase"), str) else {}
    return {"type": "message", "role": role, "status": "completed", "content": content, **phase}


def _texts(content: Any, where: str, *, may_name_media: bool = False) -> list[str]:
    """The texts of content. If `may_name_media`, a part that is not text becomes its name in brackets, as in the
    model's own encoding: for results of tools, so that the conversation can go on."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise bad(f"{where} must be text or a list of parts", where)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in MEDIA_PARTS:
            if not may_name_media:
                raise unsupported(f"{where}[{number}]: this model reads text alone, no {kind}", f"{where}[{number}]")
            texts.append(f"[Unsupported {kind}]")
            continue
        text = part.get("refusal" if kind == "refusal" else "text") if kind in TEXT_PARTS else None
        if not isinstance(text, str):
            raise bad(f"{where}: a part must be input_text with a text", where)
        texts.append(text)
    return texts


def _call(item: Json, where: str) -> Json:
    call_id, name, arguments = item.get("call_id"), item.get("name"), item.get("arguments")
    if not isinstance(call_id, str) or not isinstance(arguments, str) or not isinstance(name, str):
        raise bad(f"{where} needs call_id, name and arguments that are text", where)
    namespace = item.get("namespace")
    if namespace is not None and (not isinstance(namespace, str) or not NAME.fullmatch(namespace)):
        raise bad(f"{where}.namespace cannot be used", f"{where}.namespace")
    if not NAME.fullmatch(name) or not 0 < len(call_id) <= 256:
        raise bad(f"{where} has a name or a call_id that cannot be used", where)
    named = {"name": name} if namespace is None else {"namespace": namespace, "name": name}
    return {"type": "function_call", "call_id": call_id, **named, "arguments": arguments, "status": "completed"}


def _result(item: Json, where: str) -> Json:
    call_id = item.get("call_id")
    if not isinstance(call_id, str):
        raise bad(f"{where} needs a call_id", where)
    output = "\n\n".join(_texts(item.get("output"), f"{where}.output", may_name_media=True))
    return {"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}


def _reasoning(item: Json, where: str) -> Json:
    texts = _texts(item.get("content") or [], f"{where}.content")
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "summary": [], "content": content, "status": "completed"}


def _compaction(item: Json, where: str) -> Json:
    text = item.get("encrypted_content")
    if not isinstance(text, str):
        raise bad(f"{where} needs encrypted_content", where)
    return {"type": "compaction", "encrypted_content": text}


def _agents_call(item: Json, where: str) -> Json:
    """A call of a tool of the server, from a response of the agent."""
    return {key: item.get(key) for key in ("type", "server_label", "name", "arguments", "output", "error")}


CHECKS = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "reasoning": _reasoning,
    "compaction": _compaction,
    "mcp_call": _agents_call,
}


@dataclass
class Messages:
    """A conversation as messages: the system texts at its beginning, then the rest."""

    system: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)


def messages_of(
    items: Iterable[Json], calls: dict[str, str] | None = None, *, is_first: bool = True, answers_calls: bool = True
) -> Messages:
    """Messages of items that come after a message with these open calls. Raises ApiError for a result without a call,
    for a second one, and for a call without a result before the next message that is not the model's.

    If `answers_calls`, every call must have a result. If `is_first`, system messages at the beginning become `system`;
    later ones become user messages, since V4 has no system role in the middle of a conversation.
    """
    found, open_calls = Messages(), dict(calls or {})
    for number, item in enumerate(items):
        kind, where = item["type"], f"input[{number}]"
        if kind == "mcp_call":
            raise unsupported(f"{where}: items of type mcp_call are those of an agent", where)
        if kind == "function_call_output":
            if open_calls.pop(item["call_id"], None) is None:
                text = f"No tool call found for function call output with call_id {item['call_id'][:80]}."
                raise ApiError(400, text, "invalid_value", f"{where}.call_id")
            found.messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
            continue
        is_model = kind in ("function_call", "reasoning") or item.get("role") == "assistant"
        if open_calls and not (is_model and _is_open(found)):
            raise bad(f"No tool output found for function call {next(iter(open_calls))[:80]}.", "input")
        if kind == "compaction":
            found.messages.append({"role": "user", "content": item["encrypted_content"]})
        elif is_model:
            _add_assistant(found, item)
            if kind == "function_call":
                open_calls[item["call_id"]] = full_name(item)
        else:
            text = "\n\n".join(part["text"] for part in item["content"])
            if item["role"] != "user" and is_first and not found.messages:
                found.system.append(text)
            else:
                found.messages.append({"role": "user", "content": text})
    if open_calls and answers_calls:
        raise bad(f"No tool output found for function call {next(iter(open_calls))[:80]}.", "input")
    return found


def _is_open(found: Messages) -> bool:
    return bool(found.messages) and found.messages[-1]["role"] == "assistant"


def _add_assistant(found: Messages, item: Json) -> None:
    """Add an item of the model: reasoning, text and calls in a row are one message."""
    last = found.messages[-1] if _is_open(found) else None
    starts = last is None or (item["type"] != "function_call" and (last["content"] or last["tool_calls"]))
    if starts:
        last = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
        found.messages.append(last)
    assert last is not None
    if item["type"] == "function_call":
        function = {"name": full_name(item), "arguments": item["arguments"]}
        last["tool_calls"].append({"id": item["call_id"], "type": "function", "function": function})
    else:
        key = "reasoning_content" if item["type"] == "reasoning" else "content"
        last[key] += "".join(part["text"] for part in item["content"])


def fingerprints(digest: bytes, messages: Iterable[Message]) -> list[bytes]:
    """For each message the digest of all messages up to it. Reasoning does not count: clients drop it."""
    found = []
    for m in messages:
        functions = [(c["id"], c["function"]) for c in m.get("tool_calls", ())]
        calls = [[id, function["name"], _as_written(function["arguments"])] for id, function in functions]
        content = m.get("content") or ""
        if len(content) > LONG_CHARS:  # JSON of a long text holds the interpreter, its hash does not
            content = hashlib.blake2b(content.encode()).hexdigest()
        digest = _digest(digest, [m["role"], content, m.get("tool_call_id", ""), calls])
        found.append(digest)
    return found


def _as_written(arguments: str) -> str:
    """JSON in a normal form: some clients keep the value of a call's arguments, not its text."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _digest(before: bytes, value: Any) -> bytes:
    return hashlib.blake2b(before + json.dumps(value).encode(), digest_size=16).digest()


def encode(
    tokenizer: Tokenizer,
    texts: ProtocolTexts,
    opening: Opening,
    messages: list[Message],
    *,
    before: Sequence[int],
    call_order: Iterable[str],
    most: int,
) -> tuple[list[int], int]:
    """The tokens of messages after the token log `before`, up to where the model's message begins, and how many of them
    do not depend on what follows. Raises TooManyTokens above `most`."""
    mode = opening.thinking_mode
    if before:
        if any(m["role"] == "assistant" for m in messages):
            pieces = encode_messages(messages, texts=texts, thinking_mode=mode, reasoning_effort=opening.effort)
            prefix = BOS + (texts.effort_prefix(opening.effort) if mode == "thinking" else "")
            pieces[0] = (pieces[0][0].removeprefix(prefix), True)
        else:
            pieces = encode_continuation(messages, thinking_mode=mode, call_order=call_order)
        end = [] if before[-1] == tokenizer.eos_id else [tokenizer.eos_id]  # a message that was cut short
    else:
        opened = [opening.message(), *messages] if opening.text or opening.tools or opening.schema else messages
        pieces, end = encode_messages(opened, texts=texts, thinking_mode=mode, reasoning_effort=opening.effort), []
    if messages and messages[-1]["role"] == "assistant":
        transition = [(ASSISTANT + (THINK if mode == "thinking" else END_THINK), True)]
    else:
        transition = [pieces.pop()] if messages and pieces[-1][1] else []
    ids = end + tokenizer.encode_pieces(pieces, most)
    return ids + tokenizer.encode_pieces(transition), max(0, len(ids) - AHEAD_MARGIN)
