"""Tokens of a conversation back to messages: the inverse of the encoding.

Owns that structure is read from token ids alone, so that text of a user, a file or a result never becomes a message.
What a model wrote is read by the parser that reads it while it is written. Must not know how messages are sent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.agent.encoding.encode import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    THINK,
    USER,
    ProtocolTexts,
)
from holdfast.agent.encoding.parse import StreamParser
from holdfast.engine import EngineError, Roll, Tokenizer

RESULT, RESULT_END = "<tool_result>", "</tool_result>"
STRUCTURE = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK, RESULT, RESULT_END)
NO_RESULT = "no result: the call was interrupted"
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages in the form of chat completions, and the tools that the first of them describes."""

    messages: list[Message]
    tools: list[dict[str, Any]]


@dataclass(frozen=True)
class _Exchange:
    """From one user token to the next: prompts or results, then what the model wrote."""

    start: int
    inputs: list[Message]
    answer: Message | None

    @property
    def is_prompt(self) -> bool:
        return all(message["role"] == "user" for message in self.inputs)


class Decoder:
    """For one vocabulary and one checkpoint's texts. Raises EngineError where a token of structure is missing."""

    def __init__(self, tokenizer: Tokenizer, texts: ProtocolTexts):
        self._tokenizer, self._texts = tokenizer, texts
        known = {text: tokenizer.token_id(text) for text in STRUCTURE}
        if missing := [text for text, id_ in known.items() if id_ not in tokenizer.special_ids]:
            raise EngineError(f"the tokenizer has no token {', '.join(missing)}: name another one for this model")
        self._ids = {text: id_ for text, id_ in known.items() if id_ is not None}

    def conversation(self, ids: Sequence[int], roll: Roll | None = None) -> Conversation:
        """All of it; after a roll its opening, and from the first prompt on that is in the window."""
        ids = list(ids)
        starts = [place for place, id_ in enumerate(ids) if id_ == self._ids[USER]]
        system, tools = self._opening(ids[: starts[0] if starts else len(ids)])
        exchanges: list[_Exchange] = []
        num_calls = 0
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            previous = exchanges[-1].answer if exchanges else None
            exchanges.append(self._exchange(start, ids[start + 1 : end], previous, num_calls))
            num_calls += len((exchanges[-1].answer or {}).get("tool_calls", ()))
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for exchange in _seen(exchanges, roll):
            messages += [*exchange.inputs, *([exchange.answer] if exchange.answer else [])]
        return Conversation(messages, tools)

    def _opening(self, ids: list[int]) -> tuple[str, list[dict[str, Any]]]:
        """System text, and the tools out of the place that the template gives them."""
        text = self._tokenizer.decode(ids).removeprefix(BOS)
        effort = max(
            (prompt for prompt in self._texts.effort_prompts.values() if text.startswith(prompt)), key=len, default=""
        )
        text = text.removeprefix(effort)
        template = self._texts.tools_template.replace("{dsml_token}", DSML)
        template = template.replace("{thinking_start_token}", THINK).replace("{thinking_end_token}", END_THINK)
        before, slot, after = template.partition("{tool_schemas}")
        start = text.find(f"\n\n{before}")
        if not slot or start < 0:
            return text, []
        schemas, _, rest = text[start + 2 + len(before) :].partition(after) if after else (text[start:], "", "")
        tools = [{"type": "function", "function": json.loads(line)} for line in schemas.split("\n") if line]
        return text[:start] + rest, tools

    def _exchange(self, start: int, ids: list[int], previous: Message | None, num_calls: int) -> _Exchange:
        speaks = ids.index(self._ids[ASSISTANT]) if self._ids[ASSISTANT] in ids else len(ids)
        inputs = self._inputs(ids[:speaks], (previous or {}).get("tool_calls", []))
        return _Exchange(start, inputs, self._answer(ids[speaks + 1 :], num_calls))

    def _inputs(self, ids: list[int], calls: Sequence[Message]) -> list[Message]:
        """Results in the order of the calls, one for each, and prompts."""
        results: list[str] = []
        prompts: list[str] = []
        while ids:
            begins = ids.index(self._ids[RESULT]) if self._ids[RESULT] in ids else len(ids)
            if text := self._tokenizer.decode(ids[:begins]):
                prompts.append(text)
            ids = ids[begins + 1 :]
            if self._ids[RESULT_END] not in ids:
                break
            ends = ids.index(self._ids[RESULT_END])
            results.append(self._tokenizer.decode(ids[:ends]))
            ids = ids[ends + 1 :]
        if results:  # what joins them is no text of the user
            prompts = [text.removeprefix("\n\n").removesuffix("\n\n") for text in prompts]
        messages: list[Message] = [
            {"role": "tool", "tool_call_id": call["id"], "content": results[n] if n < len(results) else NO_RESULT}
            for n, call in enumerate(calls)
        ]
        return messages + [{"role": "user", "content": text} for text in prompts if text]

    def _answer(self, ids: list[int], num_calls: int) -> Message | None:
        """What the model wrote after its token of reasoning or of none; None where it has not begun."""
        if len(ids) < 2:
            return None
        parser = StreamParser(thinking=ids[0] == self._ids[THINK])
        parser.feed(self._tokenizer.decode(ids[1:]))
        said = parser.finish()
        message: Message = {"role": "assistant", "content": said.text}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": call.name or "unknown", "arguments": call.arguments_json},
                }
                for number, call in enumerate(said.calls, start=num_calls + 1)
            ]
        return message


def _seen(exchanges: list[_Exchange], roll: Roll | None) -> list[_Exchange]:
    if roll is None:
        return exchanges
    prompts = [number for number, exchange in enumerate(exchanges) if exchange.is_prompt]
    kept = [number for number in prompts if exchanges[number].start >= roll.first_kept]
    return exchanges[(kept or prompts[-1:] or [0])[0] :]
