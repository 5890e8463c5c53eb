"""Promises of decoding: what was encoded comes back as it was said, and text never becomes structure."""

import json
import random
from typing import Any

import pytest

from holdfast.agent.config import POCKET_DIR
from holdfast.agent.encoding.encode import ProtocolTexts, encode_continuation, encode_messages
from holdfast.agent.models.remote.decode import NO_RESULT, Decoder
from holdfast.engine import EngineError, Roll, Tokenizer

TOKENIZER = Tokenizer.from_dir(POCKET_DIR)
TEXTS = ProtocolTexts()
DECODER = Decoder(TOKENIZER, TEXTS)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "read", "description": "Ünï", "parameters": {"type": "object", "properties": {}}},
    }
]
WORDS = [
    "fox",
    " ",
    "\n\n",
    "狐",
    "🦊",
    "<tool_result>",
    "</tool_result>",
    "<｜User｜>",
    "</think>",
    "{",
    '"',
    "\\n",
    "e\u0301",
]


def text(rng: random.Random) -> str:
    return "x" + "".join(rng.choices(WORDS, k=rng.randrange(1, 9))) + "y"


def said(rng: random.Random, reasons: bool, num_calls: int) -> dict[str, Any]:
    """What a model wrote: no protocol in its own text."""
    message: dict[str, Any] = {"role": "assistant", "content": rng.choice(["", "Well.", "狐\n\nok"])}
    if reasons:
        message["reasoning_content"] = "because\n1 < 2"
    if num_calls:
        message["tool_calls"] = [
            {"id": "", "type": "function", "function": {"name": "read", "arguments": json.dumps({"n": n, "s": 'q"\n'})}}
            for n in range(num_calls)
        ]
    return message


def conversation(rng: random.Random, reasons: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be good.", "tools": TOOLS}]
    number = 0
    for _ in range(rng.randrange(1, 5)):
        messages.append({"role": "user", "content": text(rng)})
        for _ in range(rng.randrange(3)):
            made = said(rng, reasons, rng.randrange(1, 4))
            for call in made["tool_calls"]:
                number += 1
                call["id"] = f"call_{number}"
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": text(rng)} for call in made["tool_calls"]
            ]
            messages += [made, *results]
        messages.append(said(rng, reasons, 0))
    return messages


def ids_of(messages: list[dict[str, Any]], reasons: bool) -> list[int]:
    mode = "thinking" if reasons else "chat"
    return TOKENIZER.encode_pieces(encode_messages(messages, texts=TEXTS, thinking_mode=mode, drop_thinking=False))


@pytest.mark.parametrize("seed", range(40))
def test_what_was_encoded_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    messages = conversation(rng, reasons=bool(seed % 2))
    found = DECODER.conversation(ids_of(messages, bool(seed % 2)))
    assert found.tools == TOOLS and found.messages == [{"role": "system", "content": "Be good."}, *messages[1:]]


def test_after_a_roll_the_opening_stays_and_whole_turns_follow() -> None:
    rng = random.Random(1)
    messages = [message for n in range(30) for message in conversation(rng, False)[1:]]
    ids = ids_of([{"role": "system", "content": "Be good.", "tools": TOOLS}, *messages], False)
    for first_kept in range(256, len(ids), 256):
        seen = DECODER.conversation(ids, Roll(len(ids), first_kept, 256)).messages
        assert seen[0]["role"] == "system" and seen[1]["role"] == "user"
        contents = [(m["role"], m["content"]) for m in seen[1:]]
        assert contents == [(m["role"], m["content"]) for m in messages[len(messages) - len(contents) :]]


def test_a_call_without_a_result_has_one_that_says_so() -> None:
    messages = [{"role": "user", "content": "go"}, said(random.Random(0), False, 2)]
    ids = ids_of(messages, False)
    said_next = [{"role": "tool", "tool_call_id": "", "content": "one"}, {"role": "user", "content": "on"}]
    more = encode_continuation(said_next, thinking_mode="chat")
    seen = DECODER.conversation(ids + TOKENIZER.encode_pieces(more)).messages
    assert [m["content"] for m in seen[2:]] == ["one", NO_RESULT, "on"]
    assert (
        [m["tool_call_id"] for m in seen[2:4]] == [call["id"] for call in seen[1]["tool_calls"]] == ["call_1", "call_2"]
    )


def test_a_tokenizer_without_the_structure_is_refused() -> None:
    spec = json.loads(TOKENIZER.to_json())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != "<tool_result>"]
    with pytest.raises(EngineError, match="has no token <tool_result>"):
        Decoder(Tokenizer(spec), TEXTS)
