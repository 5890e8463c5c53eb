"""The DeepSeek-V4 chat encoding: OpenAI style messages to (text, is_protocol) pieces.

Owns the spellings of the protocol, the order of a prompt, and the line between the program's text and text from
outside: only protocol pieces are tokenised with control tokens, so text of a user, a file or a model stays inert. Must
not know token ids, the engine, sessions or any particular tool.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Piece = tuple[str, bool]  # (text, is_protocol)
Message = Mapping[str, Any]
ThinkingMode = Literal["chat", "thinking"]

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
LATEST_REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
END_THINK = "</think>"
DSML = "｜DSML｜"
TASKS = {task: f"<｜{task}｜>" for task in ("action", "query", "authority", "domain", "title", "read_url")}

# what a tokenizer may know as a control token: a name or schema that spells one is cut out of its protocol piece
CONTROL = re.compile(r'｜|</?think>|</?tool_result>|<\|EOT\|>|" string="|</?dsml:')

MAX_ENCODER_BYTES = 1 << 20
ENCODER_CONSTANTS = (
    "TOOLS_TEMPLATE",
    "response_format_template",
    "REASONING_EFFORT_MAX",
    "REASONING_EFFORT_PROMPTS",
    "DEFAULT_REASONING_EFFORT",
)
OUR_TOOLS_TEMPLATE = """## Tools

To use tools, write one block like this:

<{dsml_token}tool_calls>
<{dsml_token}invoke name="$TOOL_NAME">
<{dsml_token}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml_token}parameter>
...
</{dsml_token}invoke>
<{dsml_token}invoke name="$TOOL_NAME2">
...
</{dsml_token}invoke>
</{dsml_token}tool_calls>

A text value is written as it is, with `string="true"`; any other value is written as JSON, with `string="false"`.

When thinking, finish it between {thinking_start_token} and {thinking_end_token} before the first call or the answer.
Otherwise begin right after {thinking_end_token}.

### Available Tool Schemas

{tool_schemas}

Use only these names, and arguments that fit the schemas.
"""
OUR_RESPONSE_FORMAT = "## Response Format\n\nReply with JSON that fits this schema:\n{schema}"
OUR_MAX_EFFORT = "Effort: maximum. Think the whole problem through, and check every step, before you answer.\n\n"


class EncodingError(ValueError):
    """A checkpoint's encoder file, or a message, that cannot be used; says which and why."""


@dataclass(frozen=True)
class ProtocolTexts:
    """The fixed English of a checkpoint's encoder. The defaults are our own words, for a model that brings none."""

    tools_template: str = OUR_TOOLS_TEMPLATE
    response_format_template: str = OUR_RESPONSE_FORMAT
    effort_prompts: Mapping[str, str] = field(default_factory=lambda: {"high": "", "max": OUR_MAX_EFFORT})
    default_effort: str = "high"

    @classmethod
    def from_dir(cls, model_dir: Path) -> "ProtocolTexts":
        """Read `model_dir/encoding/encoding_dsv4.py`, or the only other .py there that has TOOLS_TEMPLATE.

        The file is parsed, never run. Without one our own texts are used, as for a constant that it leaves out.
        Raises EncodingError for a file that cannot be read or a constant that is not literal.
        """
        path, constants = _encoder_file(model_dir / "encoding")
        if path is None:
            return cls()

        def text(name: str, default: str) -> str:
            value = constants.get(name, default)
            if not isinstance(value, str):
                raise EncodingError(f"{path}: {name} is not a literal string")
            return value

        response_format = text("response_format_template", OUR_RESPONSE_FORMAT)
        if "{schema}" not in response_format:
            raise EncodingError(f"{path}: response_format_template has no place for {{schema}}")
        prompts: Any = {"high": "", "max": text("REASONING_EFFORT_MAX", OUR_MAX_EFFORT)}
        prompts = constants.get("REASONING_EFFORT_PROMPTS", prompts)
        if not isinstance(prompts, dict) or not all(isinstance(s, str) for pair in prompts.items() for s in pair):
            raise EncodingError(f"{path}: REASONING_EFFORT_PROMPTS is not a literal dict of strings")
        default = text("DEFAULT_REASONING_EFFORT", "high")
        if default not in prompts:
            raise EncodingError(f"{path}: default reasoning effort {default!r} is not one of {', '.join(prompts)}")
        return cls(text("TOOLS_TEMPLATE", ""), response_format, prompts, default)

    def effort_prefix(self, effort: str | None) -> str:
        """Text right after BOS; None takes the checkpoint's default, an unknown effort raises EncodingError."""
        effort = self.default_effort if effort is None else effort
        if effort not in self.effort_prompts:
            known = ", ".join(self.effort_prompts)
            raise EncodingError(f"reasoning effort {effort!r} is not known to this model; it knows {known}")
        return self.effort_prompts[effort]


def _encoder_file(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The encoder's path and its constants, or (None, {}) when the folder has no encoder."""
    named = folder / "encoding_dsv4.py"
    if named.is_file():
        constants = _literals(named)
        if "TOOLS_TEMPLATE" not in constants:
            raise EncodingError(f"{named}: TOOLS_TEMPLATE is missing")
        return named, constants
    others = {path: _literals(path) for path in sorted(folder.glob("*.py"))}
    found = [path for path, constants in others.items() if "TOOLS_TEMPLATE" in constants]
    if len(found) > 1:
        raise EncodingError(f"{folder}: {', '.join(p.name for p in found)} all define TOOLS_TEMPLATE: keep one")
    return (found[0], others[found[0]]) if found else (None, {})


def _literals(path: Path) -> dict[str, Any]:
    """Module-level constants by name; one whose value is not a literal maps to None."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_ENCODER_BYTES:
            raise EncodingError(
                f"{path} is not a regular file of at most {MAX_ENCODER_BYTES:,} bytes: download it again"
            )
        body = ast.parse(path.read_text("utf-8")).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise EncodingError(f"{path} cannot be read as Python: {e}") from None
    constants: dict[str, Any] = {}
    for node in body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if not isinstance(target, ast.Name) or target.id not in ENCODER_CONSTANTS:
                continue
            try:
                constants[target.id] = ast.literal_eval(node.value) if node.value else None
            except (ValueError, TypeError, RecursionError):
                constants[target.id] = None
    return constants


class _PieceWriter:
    """Collects pieces. Pieces are tokenised one by one, so neighbours of one kind are joined and empty ones vanish."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def add(self, text: str, is_protocol: bool) -> None:
        if not text:
            return
        if self.pieces and self.pieces[-1][1] == is_protocol:
            text = self.pieces.pop()[0] + text
        self.pieces.append((text, is_protocol))

    def plain(self, text: str) -> None:
        self.add(text, False)

    def protocol(self, text: str) -> None:
        self.add(text, True)

    def embedded(self, text: str) -> None:
        """A name or schema inside protocol text: part of it, unless it spells a control token."""
        self.add(text, CONTROL.search(text) is None)

    def template(self, template: str, slot: str, text: str) -> None:
        for part_idx, part in enumerate(template.split(slot)):
            if part_idx:
                self.embedded(text)
            self.protocol(part)


class _Part(NamedTuple):
    """A piece of a user turn: the user's own text, or the result of a call."""

    text: str
    is_result: bool
    call_id: str


@dataclass
class _Turn:
    """A message, or the user and tool messages in a row that the encoding shows as one user turn."""

    role: str
    message: Message
    parts: list[_Part] = field(default_factory=list)

    @property
    def task(self) -> str | None:
        return self.message.get("task")


def encode_messages(
    messages: Sequence[Message],
    *,
    texts: ProtocolTexts,
    thinking_mode: ThinkingMode,
    drop_thinking: bool = True,
    reasoning_effort: str | None = None,
) -> list[Piece]:
    """The whole prompt, from BOS to where generation starts. The effort counts in thinking mode only.

    `drop_thinking` leaves out the reasoning before the last user message, unless any message carries tools.
    """
    assert thinking_mode in ("chat", "thinking"), thinking_mode
    thinking = thinking_mode == "thinking"
    drop = thinking and drop_thinking and not any(m.get("tools") for m in messages)
    turns = _turns(messages, ())
    if drop:
        last = _last_user(turns)
        turns = [turn for i, turn in enumerate(turns) if turn.role != "developer" or i >= last]
    writer = _PieceWriter()
    writer.protocol(BOS + (texts.effort_prefix(reasoning_effort) if thinking else ""))
    last = _last_user(turns)
    for i, turn in enumerate(turns):
        thinks = thinking and (not drop or i >= last)
        if turn.role == "assistant":
            after_task = i > 0 and turns[i - 1].task is not None  # the output of a task has no reasoning
            _write_assistant(writer, turn.message, thinks and not after_task)
        else:
            _write_input(writer, turn, texts)
        if i + 1 == len(turns) or turns[i + 1].role in ("assistant", "latest_reminder"):
            _write_transition(writer, turn, thinks, thinking)
    return writer.pieces


def encode_continuation(
    messages: Sequence[Message], *, thinking_mode: ThinkingMode, call_order: Iterable[str] = ()
) -> list[Piece]:
    """What new user and tool messages add after an assistant's EOS that the model has already seen.

    `call_order` are the ids of the calls being answered; results are put in that order. Raises EncodingError for
    any other role: system text and tools can only open a conversation.
    """
    assert thinking_mode in ("chat", "thinking"), thinking_mode
    assert messages, "nothing to continue with"
    for message in messages:
        if message["role"] not in ("user", "tool"):
            raise EncodingError(f"a {message['role']} message cannot continue a session: only user and tool can")
    writer = _PieceWriter()
    turns = _turns(messages, call_order)
    for turn in turns:
        _write_user(writer, turn)
    thinking = thinking_mode == "thinking"
    _write_transition(writer, turns[-1], thinking, thinking)
    return writer.pieces


def encode_calls(calls: Iterable[Mapping[str, Any]]) -> list[Piece]:
    """What calls add to a message of the model that has text already, without its end."""
    writer = _PieceWriter()
    _write_calls(writer, calls)
    return writer.pieces


def _turns(messages: Sequence[Message], call_order: Iterable[str]) -> list[_Turn]:
    turns: list[_Turn] = []
    order = {call_id: i for i, call_id in enumerate(call_order)}
    for message in messages:
        role = message["role"]
        if role not in ("user", "tool"):
            turns.append(_Turn(role, message))
            continue
        is_result = role == "tool"
        mergeable = turns and turns[-1].role == "user" and (is_result or turns[-1].task is None)
        if not mergeable:
            turns.append(_Turn("user", message))
        part = _Part(_text(message.get("content")), is_result, message.get("tool_call_id") or "")
        turns[-1].parts.append(part)
    for turn in turns:
        if turn.role == "assistant" and turn.message.get("tool_calls"):
            order = {call.get("id") or "": i for i, call in enumerate(turn.message["tool_calls"])}
        results = iter(sorted((p for p in turn.parts if p.is_result), key=lambda p: order.get(p.call_id, 0)))
        turn.parts = [next(results) if p.is_result else p for p in turn.parts]
    return turns


def _last_user(turns: list[_Turn]) -> int:
    return max((i for i, turn in enumerate(turns) if turn.role in ("user", "developer")), default=-1)


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n\n".join(p.get("text", "") if p["type"] == "text" else f"[Unsupported {p['type']}]" for p in content)


def _write_input(writer: _PieceWriter, turn: _Turn, texts: ProtocolTexts) -> None:
    if turn.role == "user":
        _write_user(writer, turn)
        return
    prefixes = {"system": "", "developer": USER, "latest_reminder": LATEST_REMINDER}
    if turn.role not in prefixes:
        raise EncodingError(f"a message has the unknown role {turn.role!r}")
    writer.protocol(prefixes[turn.role])
    writer.plain(_text(turn.message.get("content")))
    if turn.role == "latest_reminder":
        return
    if tools := turn.message.get("tools"):
        template = texts.tools_template.replace("{dsml_token}", DSML)
        template = template.replace("{thinking_start_token}", THINK).replace("{thinking_end_token}", END_THINK)
        writer.protocol("\n\n")
        writer.template(template, "{tool_schemas}", "\n".join(_json(tool["function"]) for tool in tools))
    if schema := turn.message.get("response_format"):
        writer.protocol("\n\n")
        writer.template(texts.response_format_template, "{schema}", _json(schema))


def _write_user(writer: _PieceWriter, turn: _Turn) -> None:
    writer.protocol(USER)
    after_text = False
    for part_idx, part in enumerate(turn.parts):
        if part_idx:  # between two texts the separator is text: one piece, as one text would be
            writer.add("\n\n", part.is_result or not after_text)
        writer.protocol("<tool_result>" if part.is_result else "")
        writer.plain(part.text)
        writer.protocol("</tool_result>" if part.is_result else "")
        after_text = not part.is_result


def _write_transition(writer: _PieceWriter, turn: _Turn, thinks: bool, thinking: bool) -> None:
    """What stands between a turn and the assistant text that follows it."""
    if turn.task is not None and turn.task not in TASKS:
        raise EncodingError(f"a message has the unknown task {turn.task!r}; tasks are {', '.join(TASKS)}")
    if turn.task == "action":
        writer.protocol(ASSISTANT + (THINK if thinking else END_THINK) + TASKS["action"])
    elif turn.task is not None:
        writer.protocol(TASKS[turn.task])
    elif turn.role in ("user", "developer"):
        writer.protocol(ASSISTANT + (THINK if thinks else END_THINK))


def _write_assistant(writer: _PieceWriter, message: Message, thinks: bool) -> None:
    if thinks:
        writer.plain(message.get("reasoning_content") or "")
        writer.protocol(END_THINK)
    writer.plain(_text(message.get("content")))
    if calls := message.get("tool_calls"):
        _write_calls(writer, calls)
    if not message.get("wo_eos"):
        writer.protocol(EOS)


def _write_calls(writer: _PieceWriter, calls: Iterable[Mapping[str, Any]]) -> None:
    writer.protocol(f"\n\n<{DSML}tool_calls>\n")
    for call in calls:
        _write_call(writer, call["function"])
    writer.protocol(f"</{DSML}tool_calls>")


def _write_call(writer: _PieceWriter, function: Mapping[str, Any]) -> None:
    writer.protocol(f'<{DSML}invoke name="')
    writer.embedded(function["name"])
    writer.protocol('">\n')
    arguments = _arguments(function["arguments"])
    for key, value in arguments.items():
        is_text = isinstance(value, str)
        writer.protocol(f'<{DSML}parameter name="')
        writer.embedded(key)
        writer.protocol(f'" string="{"true" if is_text else "false"}">')
        writer.plain(value if is_text else _json(value))
        writer.protocol(f"</{DSML}parameter>\n")
    if not arguments:
        writer.protocol("\n")
    writer.protocol(f"</{DSML}invoke>\n")


def _arguments(arguments_json: str) -> dict[str, Any]:
    """The stored arguments; anything but a JSON object is shown as one argument, so that it is not lost."""
    try:
        arguments = json.loads(arguments_json)
    except (ValueError, RecursionError):
        return {"arguments": arguments_json}
    return arguments if isinstance(arguments, dict) else {"arguments": arguments_json}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
