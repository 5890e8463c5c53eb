"""What is refused: in one line, with the name of the parameter, through the unmodified openai client."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.agent.server.serving import SYSTEM_TEXT, WHERE, agent_tools, create

BAD: list[tuple[dict[str, Any], str | None]] = [
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "alien"}]}, "input[0]"),
    ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content"),
    ({"input": [{"type": "function_call_output", "call_id": "call_x", "output": "y"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f f", "arguments": "{}"}]}, "input[0]"),
    ({"input": "x", "temperature": 3}, "temperature"),
    ({"input": "x", "temperature": "hot"}, "temperature"),
    ({"input": "x", "top_p": 0}, "top_p"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "metadata": {str(n): "v" for n in range(17)}}, "metadata"),
    ({"input": "x", "metadata": {"k" * 65: "v"}}, "metadata"),
    ({"input": "x", "metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"input": "x", "tools": [{"type": "alien"}]}, "tools[0]"),
    ({"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"input": "x", "tools": [{"type": "function", "name": "a"}] * 2}, "tools[1].name"),
    ({"input": "x", "tools": [{"type": "function", "name": f"f{n}"} for n in range(513)]}, "tools"),
    ({"input": "x", "tool_choice": "sometimes"}, "tool_choice"),
    ({"input": "x", "tool_choice": "required"}, "tool_choice"),
    ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"input": "x", "previous_response_id": "resp_nope"}, "previous_response_id"),
    ({"input": "x", "previous_response_id": "../../etc/passwd"}, "previous_response_id"),
    ({"input": "x", "truncation": "sometimes"}, "truncation"),
    ({"input": "x", "top_logprobs": 3}, "top_logprobs"),
    ({"input": "x", "background": True, "store": False}, "background"),
    ({"input": "x", "text": {"format": {"type": "poem"}}}, "text.format"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "poem"}}}}, "text.format"),
    ({"input": "x", "reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"input": "x" * 12_000_001}, "input"),
    ({"model": None, "input": "x"}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_refused_with_the_name_of_its_parameter(client: openai.OpenAI, body: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        create(client, "x", extra_body=body)
    assert e.value.param is not None and e.value.param.startswith(param)
    assert e.value.type == "invalid_request_error" and e.value.code and "\n" not in e.value.body["message"]  # type: ignore[index]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as e:
        client.responses.create(model="gpt-9", input="x")
    assert e.value.code == "model_not_found"


def test_a_call_must_get_its_result_once(client: openai.OpenAI, workspace: Path) -> None:
    fields: dict[str, Any] = {"tools": agent_tools(workspace), "instructions": SYSTEM_TEXT}
    first = create(client, WHERE, **fields)
    result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "x"}
    for wrong in ("and now?", [result, result], [{**result, "call_id": "call_other"}]):
        with pytest.raises(openai.BadRequestError):
            create(client, wrong, previous_response_id=first.id, **fields)
    assert create(client, [result], previous_response_id=first.id, **fields).status == "completed"
