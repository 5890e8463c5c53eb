"""Calls of a client's tools: held to names and schemas, whole or said to be cut, and sent as they are sampled."""

import json
from typing import Any

import openai
import pytest

from tests.agent.server.serving import MODEL, SYSTEM_TEXT, WHERE, create

CITY = {"enum": ["Paris", "Rome"]}
SHAPE = {
    "type": "object", "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"], "additionalProperties": False,
}  # fmt: skip
NOTE = {
    "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False,
}  # fmt: skip


def tool(name: str, parameters: Any, strict: bool = False) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": name, "parameters": parameters, "strict": strict}


TOOLS = [tool("plan_trip", SHAPE), tool("take_note", NOTE, strict=True)]
NAMED: dict[str, Any] = {"type": "function", "name": "plan_trip"}
WILD = {"temperature": 2.0, "max_output_tokens": 120}


def calls(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


def fits(call: Any) -> bool:
    arguments = json.loads(call.arguments)
    if call.name == "take_note":
        return arguments.keys() == {"text"} and isinstance(arguments["text"], str)
    is_trip = call.name == "plan_trip" and arguments.keys() == {"city", "days"}
    return is_trip and arguments["city"] in CITY["enum"] and 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize(
    "fields", [{}, WILD, {"reasoning": {"effort": "high"}, **WILD}, {"parallel_tool_calls": False, **WILD}], ids=str
)
def test_a_forced_call_is_whole_and_fits(client: openai.OpenAI, choice: Any, fields: dict[str, Any]) -> None:
    response = create(client, "a trip", tools=TOOLS, tool_choice=choice, extra_body={"seed": 1}, **fields)
    if response.status == "incomplete":  # it thought, or wrote its text, up to the limit
        assert response.incomplete_details.reason == "max_output_tokens" and fields
        return
    assert calls(response) and all(fits(call) and call.status == "completed" for call in calls(response))
    assert choice == "required" or [call.name for call in calls(response)] == ["plan_trip"]
    assert "parallel_tool_calls" not in fields or len(calls(response)) == 1


def test_a_call_that_the_model_makes_by_itself_is_one_of_the_tools_given(client: openai.OpenAI) -> None:
    """It was trained to call others here."""
    response = create(client, WHERE, tools=TOOLS, instructions=SYSTEM_TEXT, max_output_tokens=120)
    assert response.status == "completed" and calls(response) and all(map(fits, calls(response)))


@pytest.mark.parametrize("limit", [1, 6, 9, 12])
def test_a_call_that_is_cut_is_not_in_a_completed_response(client: openai.OpenAI, limit: int) -> None:
    response = create(client, "a trip", tools=TOOLS, tool_choice=NAMED, max_output_tokens=limit)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls(response))
    assert all(call.status == "incomplete" or fits(call) for call in calls(response))


EITHER = {"type": "object", "anyOf": [SHAPE, NOTE]}
UNLIKE = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}, "required": ["a"]}


@pytest.mark.parametrize("schema", [EITHER, UNLIKE], ids=["anyOf", "look-around"])
def test_a_schema_that_cannot_be_kept_to_is_refused_for_a_strict_tool_alone(client: openai.OpenAI, schema: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "hi", tools=[*TOOLS, tool("odd", schema, strict=True)])
    assert error.value.param == "tools[2].parameters"
    inner = {"type": "namespace", "name": "space", "description": "", "tools": [tool("odd", schema, strict=True)]}
    with pytest.raises(openai.BadRequestError) as error:
        create(client, "hi", tools=[*TOOLS, inner])
    assert error.value.param == "tools[2].tools[0].parameters"
    wanted: Any = {"type": "function", "name": "odd"}
    response = create(client, "hi", tools=[*TOOLS, tool("odd", schema)], tool_choice=wanted, max_output_tokens=120)
    assert all(call.name == "odd" for call in calls(response))
    again = create(client, "a trip", tools=[*TOOLS, tool("odd", schema)], tool_choice=NAMED, max_output_tokens=120)
    assert [fits(call) for call in calls(again)] == [True]


def test_chat_completions_hold_calls_too(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in TOOLS]
    choice: Any = {"type": "function", "function": {"name": "plan_trip"}}
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a trip"}], tools=tools, tool_choice=choice
    )
    [call] = chat.choices[0].message.tool_calls or []
    assert chat.choices[0].finish_reason == "tool_calls" and fits(call.function)  # type: ignore[union-attr]


LONG_NOTE: dict[str, Any] = {"type": "function", "name": "take_note"}
TOLD = {
    "temperature": 2.0,
    "max_output_tokens": 60,
    "extra_body": {"seed": 3},
}


def test_arguments_come_as_they_are_sampled(client: openai.OpenAI) -> None:
    stream = create(client, "a note", tools=TOOLS, tool_choice=LONG_NOTE, stream=True, **TOLD)
    events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    [call] = calls(events[-1].response)
    assert "".join(deltas) == done.arguments == call.arguments and "text" in json.loads(call.arguments)
    assert len(deltas) > 3


def test_arguments_come_as_they_are_sampled_in_chat_completions(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in TOOLS]
    choice: Any = {"type": "function", "function": {"name": "take_note"}}
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a note"}], tools=tools, tool_choice=choice, stream=True,
        temperature=2.0, max_tokens=60, seed=3,
    )  # fmt: skip
    told = [call for chunk in chat for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert told[0].id and told[0].function and told[0].function.name == "take_note"
    pieces = [call.function.arguments or "" for call in told if call.function]
    assert len(pieces) > 3 and json.loads("".join(pieces)).keys() == {"text"}
