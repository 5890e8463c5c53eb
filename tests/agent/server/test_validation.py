"""However many mistakes a body has, the first is told, at once; and by the name that the client used."""

from typing import Any

import pytest

from holdfast.agent.server.json import ApiError
from holdfast.agent.server.responses import request as requests
from holdfast.agent.server.translations import messages_request as message_requests
from holdfast.agent.server.translations.chat_request import Chat
from holdfast.agent.server.translations.completions import Completion
from holdfast.agent.server.validation import Body, Names, checked

MANY = 1_000_000  # of which pydantic would make errors for minutes
ASKED: dict[type[Body], dict[str, Any]] = {
    requests.Create: {"model": "m"}, Chat: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    Completion: {"model": "m"}, message_requests.Asked: {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
}  # fmt: skip
FULL: list[tuple[type[Body], dict[str, Any], str]] = [
    (requests.Create, {"input": [5] * MANY}, "input[0]"), (requests.Create, {"stop": [5] * MANY}, "stop"),
    (requests.Create, {"tools": [5] * MANY}, "tools[0]"), (requests.Create, {"include": [5] * MANY}, "include"),
    (requests.Create, {"metadata": {str(n): n for n in range(MANY)}}, "metadata"),
    (Chat, {"messages": [5] * MANY}, "messages[0]"), (Chat, {"messages": [{"role": "user", "content": [5] * MANY}]}, "messages[0].content[0]"),
    (Chat, {"messages": [{"role": "assistant", "tool_calls": [5] * MANY}]}, "messages[0].tool_calls[0]"),
    (Completion, {"prompt": [1, *["x"] * MANY]}, "prompt[0][1]"), (Completion, {"prompt": ["x"] * MANY}, "prompt"),
    (message_requests.Asked, {"messages": [{"role": "user", "content": [5] * MANY}]}, "messages[0].content[0]"),
    (message_requests.Asked, {"system": [5] * MANY}, "system[0]"),
    (message_requests.Asked, {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [5] * MANY}]}]},
     "messages[0].content[0].content[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "param"), FULL, ids=[f"{kind.__name__} {param}" for kind, _, param in FULL])
def test_of_many_mistakes_one_is_found(kind: type[Body], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as e:
        checked(kind, {**ASKED[kind], **fields})
    assert e.value.param == param and len(str(e.value)) < 200


def test_a_body_that_is_right_is_taken() -> None:
    for kind, body in ASKED.items():
        assert checked(kind, body)


def test_an_error_has_the_clients_name_and_keeps_the_rest() -> None:
    names = Names(
        {"input": "messages", "text.format": "response_format", ".call_id": ".tool_call_id"},
        ["messages[0]", "messages[2]"],
    )
    for ours, theirs in (
        ("input", "messages"), ("input[1]", "messages[2]"), ("input[1].call_id", "messages[2].tool_call_id"),
        ("input[0].content[3]", "messages[0].content[3]"), ("text.format", "response_format"), ("inputs", "inputs"), ("model", "model"),
    ):  # fmt: skip
        error = names.said(ApiError(400, f"{ours} is wrong: the input has 5", "code", ours))
        assert (error.param, str(error), error.code) == (theirs, f"{theirs} is wrong: the input has 5", "code")
    assert names.said(ApiError(404, "input is no parameter here")).param is None
