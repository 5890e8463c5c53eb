"""Model output back to reasoning, text and tool calls: one strict reference parser and one tolerant streaming parser.

Owns what counts as a delimiter and what is done with a damaged call. Must not know tools or the loop. It sees
text only, so a value that spells a stop token ends there, and one that spells a closing parameter tag ends there too.
"""

import re
from dataclasses import dataclass
from typing import Any

from holdfast.agent.encoding.call_ahead import PARAMETER_END, WRAPPERS, CallAhead, Delimiters
from holdfast.agent.encoding.deltas import (
    Delta,
    TextDelta,
    ThinkingDelta,
    ToolCallParsed,
    is_json,
    json_object,
    json_text,
)
from holdfast.agent.encoding.encode import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    LATEST_REMINDER,
    TASKS,
    THINK,
    USER,
    ThinkingMode,
)
from holdfast.engine import Tokenizer

BLOCK = f"\n\n<{DSML}tool_calls"
INVOKE_END = f"</{DSML}invoke>"
INVOKE = re.compile(rf'<{DSML}invoke name="([^"]*)">\n')
PARAMETER = re.compile(rf'<{DSML}parameter name="([^"]*)" string="(true|false)">(.*?){PARAMETER_END}\n', re.DOTALL)

STOPS = (EOS, USER)
OPENERS = [
    f"{new_lines}{bracket}{DSML}{tag}"
    for tag in ("tool_calls", "toolcalls", "invoke", "parameter")
    for new_lines in ("\n\n", "\n", "")
    for bracket in ("<", "")
]
STRAY = (
    THINK,
    END_THINK,
    BOS,
    ASSISTANT,
    LATEST_REMINDER,
    *TASKS.values(),
    "<｜▁pad▁｜>",
    "<｜begin▁sys｜>",
    "<｜end▁sys｜>",
    f"</{DSML}",
    f"<{DSML}",
    DSML,
)
INVOKE_START = re.compile(rf"<?{DSML}invoke")
TAG = re.compile(rf"</{DSML}(?P<closing>\w+)>?|<?{DSML}(?P<opening>\w+)")
HEADER = re.compile(r'((?:[^">\n｜]|"[^"\n｜]*")*)>')
ATTRIBUTE = re.compile(r'([\w-]+)\s*=\s*"([^"]*)"')
LOST_END = re.compile(rf'\n<{DSML}(?:invoke|parameter) name="')
MAX_SHOWN_CHARS = 60

Parameter = tuple[str, str, bool]  # name, value as written, whether the value is text


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens of STOPS: the end of sentence, and the user's turn in case the model begins to write it."""
    user_id = tokenizer.token_id(USER)
    return frozenset({tokenizer.eos_id} if user_id is None else {tokenizer.eos_id, user_id})


class ParseError(ValueError):
    """Text that is not exactly one finished assistant message."""


@dataclass(frozen=True)
class Completion:
    """The whole output. `tail` are the deltas that were held back until the end, so that no `feed` returned them."""

    reasoning: str
    text: str
    calls: tuple[ToolCallParsed, ...]
    tail: tuple[Delta, ...]


def parse_completion(text: str, thinking_mode: ThinkingMode) -> dict[str, Any]:
    """The assistant message of a finished, well-formed output; anything else raises ParseError."""
    reasoning = ""
    if thinking_mode == "thinking":
        reasoning, found, text = text.partition(END_THINK)
        if not found or BLOCK in reasoning:
            raise ParseError(f"no {END_THINK} before the answer")
    end = re.search(f"{EOS}|{BLOCK}", text)
    if end is None:
        raise ParseError(f"no {EOS} after the answer")
    content, calls = text[: end.start()], []
    for special in (*STOPS, *STRAY):
        if special in content or special in reasoning:
            raise ParseError(f"{special} inside the reasoning or the answer")
    if end[0] == BLOCK:
        calls = _strict_calls(text, end.end())
    elif end.end() != len(text):
        raise ParseError(f"text after {EOS}: {_shown(text[end.end() :])}")
    tool_calls = [{"type": "function", "function": {"name": name, "arguments": json_}} for name, json_ in calls]
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": tool_calls}


def _strict_calls(text: str, at: int) -> list[tuple[str, str]]:
    """(name, arguments JSON) of a block whose opening tag ends at `at`, by the grammar to the letter."""
    calls: list[tuple[str, str]] = []
    if not text.startswith(">\n", at):
        raise ParseError(f"broken tag tool_calls: {_shown(text[at:])}")
    at += 2
    while invoke := INVOKE.match(text, at):
        at = invoke.end()
        parameters: dict[str, str] = {}
        while parameter := PARAMETER.match(text, at):
            key, is_text, value = parameter.groups()
            if key in parameters:
                raise ParseError(f"parameter {key!r} is given twice")
            if is_text == "false" and not is_json(value):
                raise ParseError(f"parameter {key!r} is not JSON: {_shown(value)}")
            parameters[key] = json_text(value) if is_text == "true" else value
            at = parameter.end()
        if not parameters and text.startswith("\n", at):
            at += 1
        if not text.startswith(f"{INVOKE_END}\n", at):
            raise ParseError(f"expected {INVOKE_END}, got {_shown(text[at:])}")
        at += len(INVOKE_END) + 1
        calls.append((invoke[1], json_object(parameters.items())))
    if not calls or text[at:] != f"</{DSML}tool_calls>{EOS}":
        raise ParseError(f"expected a call or the end of the block, got {_shown(text[at:])}")
    return calls


_STOP = Delimiters(STOPS)
_PROSE = Delimiters([*OPENERS, *STRAY])
_INVOKE = Delimiters([f"<{DSML}invoke", f"{DSML}invoke"])


class StreamParser:
    """Reads output piece by piece; where the text is cut makes no difference. Nothing the model writes raises.

    A tool block may begin anywhere, also inside the reasoning, without its new lines or without its outer tag. Text
    in and after a block, outside of calls, is ignored: calls end a turn. A call that cannot be trusted comes back as
    malformed with the reason. Control tokens never reach a delta: EOS and `<｜User｜>` end the stream, others vanish.

    `in_pieces`: what is certain of a call comes before its end, as ToolCallBegun and ArgumentsDelta. `unwraps`: all
    arguments may stand in one parameter, which no tool has.
    """

    def __init__(self, thinking: bool, in_pieces: bool = False, unwraps: bool = True):
        self.ended = False  # the model wrote a stop token, or `finish` was called
        self._state = "thinking" if thinking else "text"  # then "block"
        self._tail = ""  # may become a stop token
        self._buffer = ""  # not yet read
        self._searched = 0  # no end of a call before this place in the buffer
        self._ignored = ""  # text of the block since the last call
        self._deltas: list[Delta] = []
        self._in_pieces, self._unwraps = in_pieces, unwraps
        self._ahead = CallAhead(unwraps)  # of the call that is being written

    def feed(self, text: str) -> list[Delta]:
        """What this text completes; nothing after the end."""
        if self.ended:
            return []
        text = self._tail + text
        if stop := _STOP.pattern.search(text):
            self.ended = True
            return self._read(text[: stop.start()], final=True)
        cut = _STOP.decided(text)
        self._tail = text[cut:]
        return self._read(text[:cut], final=False)

    def finish(self) -> Completion:
        """The output so far is all there is."""
        tail = [] if self.ended else self._read(self._tail, final=True)
        self.ended = True
        reasoning = "".join(d.text for d in self._deltas if isinstance(d, ThinkingDelta))
        text = "".join(d.text for d in self._deltas if isinstance(d, TextDelta))
        calls = tuple(d for d in self._deltas if isinstance(d, ToolCallParsed))
        return Completion(reasoning, text, calls, tuple(tail))

    def _read(self, text: str, final: bool) -> list[Delta]:
        self._buffer += text
        num_before = len(self._deltas)
        if self._state != "block":
            self._read_prose(final)
        if self._state == "block":
            self._read_block(final)
        return self._deltas[num_before:]

    def _read_prose(self, final: bool) -> None:
        """Reasoning and answer, up to the first tag of a block."""
        at, text = 0, self._buffer
        while found := _PROSE.pattern.search(text, at):
            if not final and found.start() >= _PROSE.decided(text, at):
                break
            self._say(text[at : found.start()])
            at = found.end()
            if found[0] == END_THINK:
                self._state = "text"
            elif found[0] in OPENERS:
                self._state = "block"
                is_outer_tag = found[0].endswith("calls")
                self._buffer = text[at:] if is_outer_tag else found[0].lstrip("\n") + text[at:]
                return
        decided = len(text) if final else _PROSE.decided(text, at)
        self._say(text[at:decided])
        self._buffer = text[decided:]

    def _say(self, text: str) -> None:
        if text:
            self._deltas.append(ThinkingDelta(text) if self._state == "thinking" else TextDelta(text))

    def _read_block(self, final: bool) -> None:
        """Calls, one when its end has come; at the end of the output also what was begun."""
        while start := INVOKE_START.search(self._buffer):
            found = self._next_call(start.start(), final)
            if self._in_pieces:
                self._deltas += self._ahead.read(self._buffer, start.start())
            if found is None:
                return
            call, end = found
            self._add_call(call)
            self._buffer, self._searched, self._ignored = self._buffer[end:], 0, ""
        cut = len(self._buffer) if final else _INVOKE.decided(self._buffer)
        self._ignored += self._buffer[:cut]
        self._buffer = self._buffer[cut:]
        if not final:
            return
        has_calls = any(isinstance(d, ToolCallParsed) for d in self._deltas)
        if not has_calls or re.search(f"(?<!/){DSML}", self._ignored):
            reason = f"the tool block has no complete call: {_shown(self._ignored)}"
            self._add_call(ToolCallParsed("", json_object([("text", json_text(self._ignored))]), reason))

    def _add_call(self, call: ToolCallParsed) -> None:
        if self._in_pieces:
            self._deltas += self._ahead.rest(call)
            self._ahead = CallAhead(self._unwraps)
        self._deltas.append(call)

    def _next_call(self, start: int, final: bool) -> tuple[ToolCallParsed, int] | None:
        """The call that begins at `start` and where it ends, or None when its end has not come."""
        buffer, searched = self._buffer, max(start, self._searched)
        while (close := buffer.find(INVOKE_END, searched)) != -1:
            searched = close + len(INVOKE_END)
            if found := _read_call(buffer[start:searched], False, self._unwraps):
                return found[0], start + found[1]
        self._searched = max(searched, len(buffer) - len(INVOKE_END) + 1)
        if not final:
            return None
        found = _read_call(buffer[start:], True, self._unwraps)
        assert found is not None, "a final call always has a result"
        return found[0], start + found[1]


def _read_call(text: str, final: bool, unwraps: bool) -> tuple[ToolCallParsed, int] | None:
    """The call at the beginning of `text` and where it ends. `text` goes to an invoke's closing tag, or is `final`.

    None means that the closing tag lies inside an argument's value, and that more text may end the value.
    """
    start = INVOKE_START.match(text)
    assert start is not None, text[:MAX_SHOWN_CHARS]
    problems: list[str] = []
    attributes, at = _attributes(text, start.end(), problems)
    parameters: list[Parameter] = []
    while True:
        tag = TAG.search(text, at)
        between = text[at : tag.start() if tag else len(text)]
        if between.strip():
            problems.append(f"text outside a parameter: {_shown(between)}")
        if tag is None:
            at = len(text)
            problems.append("the output ended inside the call")
            break
        at = tag.end()
        if tag["closing"] == "invoke":
            break
        if tag["closing"] == "parameter":
            problems.append(f"{PARAMETER_END} without a parameter")
        elif tag["opening"] == "parameter":
            read = _read_parameter(text, at, final, problems)
            if read is None:
                return None
            parameters.append(read[0])
            at = read[1]
        else:
            at = tag.start()
            problems.append(f"no {INVOKE_END}")
            break
    return _call(attributes.get("name", ""), parameters, problems, unwraps), at


def _read_parameter(text: str, at: int, final: bool, problems: list[str]) -> tuple[Parameter, int] | None:
    """The parameter whose tag's name ends at `at` and where it ends; None when its value may go on."""
    attributes, at = _attributes(text, at, problems)
    key, is_text = attributes.get("name", ""), attributes.get("string", "true").lower() != "false"
    end = text.find(PARAMETER_END, at)
    if end != -1:
        return (key, text[at:end], is_text), end + len(PARAMETER_END)
    if not final:
        return None
    problems.append(f"parameter {key!r} has no {PARAMETER_END}")
    return (key, text[at:], is_text), len(text)


def _attributes(text: str, at: int, problems: list[str]) -> tuple[dict[str, str], int]:
    """The attributes of a tag whose name ends at `at`, unknown ones too, and where the tag ends."""
    header = HEADER.match(text, at)
    attributes = dict(ATTRIBUTE.findall(header[1])) if header else {}
    if "name" not in attributes:
        problems.append(f"a tag without a name: {_shown(text[at : at + MAX_SHOWN_CHARS])}")
    return attributes, header.end() if header else at


def _call(name: str, parameters: list[Parameter], problems: list[str], unwraps: bool) -> ToolCallParsed:
    if unwraps and not problems and len(parameters) == 1 and parameters[0][0] in WRAPPERS:
        value = parameters[0][1].strip()
        if value.startswith("{") and is_json(value):  # all arguments in one: what the model means is inside
            return ToolCallParsed(name, value)
    arguments: dict[str, str] = {}
    for key, value, is_text in parameters:
        if key in arguments:
            problems.append(f"parameter {key!r} is given twice, again as {_shown(value)}")
            continue
        if not is_text and not is_json(value):
            problems.append(f'parameter {key!r} is not JSON, and text needs string="true": {_shown(value)}')
            is_text = True
        if LOST_END.search(value):
            problems.append(f"parameter {key!r} runs into the next tag, {PARAMETER_END} is missing")
        arguments[key] = json_text(value) if is_text else value
    return ToolCallParsed(name, json_object(arguments.items()), "; ".join(problems) or None)


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…")
