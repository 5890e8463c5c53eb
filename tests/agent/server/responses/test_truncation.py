"""Promises of shortening a conversation: the oldest goes, the system's words stay, and no result is without its call."""

from typing import Any

import pytest

from holdfast.agent.server.responses.items import messages_of, normal_items
from holdfast.agent.server.responses.truncation import shortened

SYSTEM = {"role": "system", "content": "be brief"}
TURN = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 300}]
CALLS: list[dict[str, Any]] = [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "b", "output": "z" * 300},
    {"type": "function_call_output", "call_id": "a", "output": "z" * 300},
]


def items(*given: dict[str, Any]) -> list[dict[str, Any]]:
    return normal_items(list(given), "in_")


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.1])
def test_the_oldest_turns_go_and_about_the_share_is_left(share: float) -> None:
    whole = items(SYSTEM, *TURN * 20, TURN[0])
    left = shortened(whole, share)
    assert left is not None and left[0] == whole[0] and left[1:] == whole[-len(left) + 1 :]
    assert left[1]["role"] == "user" and share - 0.06 < len(left) / len(whole) <= share + 0.02


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2, 0.0])
def test_calls_go_together_with_their_results(share: float) -> None:
    left = shortened(items(TURN[0], *CALLS * 6), share)
    assert left is not None
    messages_of(left)  # raises for a result without its call, or a call without its result
    assert left[0]["type"] == "reasoning"


def test_the_last_words_stay_however_long_they_are() -> None:
    assert shortened(items(SYSTEM, TURN[0]), 0.1) is None
    assert shortened(items(*TURN, TURN[0]), 0.0) == items(*TURN, TURN[0])[-1:]
    assert shortened([], 0.5) is None
