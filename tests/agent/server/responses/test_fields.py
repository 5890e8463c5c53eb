"""Every field of both APIs: its null and its neutral value ask for nothing, what cannot be served is refused by the name
that the client used, and what can be is.
"""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

from tests.agent.server.serving import MODEL, SYSTEM_TEXT, TELL, WHERE, Server, agent_tools, chat_tools

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
ASKED: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": MODEL, "input": "hi", "max_output_tokens": 2},
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(("path", "params"), [(RESPONSES, ResponseParams), (CHAT, ChatParams)])
def test_a_field_that_is_null_asks_for_nothing(server: Server, path: str, params: Any) -> None:
    fields = params.__annotations__.keys() - {"model", "input", "messages"}
    with server.http() as http:
        for field in [*fields, "stream"]:
            answer = http.post(path, json={**ASKED[path], field: None})
            assert answer.status_code == 200, f"{field}: {answer.text}"
        everything = {**dict.fromkeys([*fields, "stream"]), **ASKED[path]}
        assert http.post(path, json=everything).status_code == 200


NULLS = [
    (RESPONSES, {"reasoning": {"effort": None, "summary": None}, "text": {"format": None, "verbosity": None}}),
    (RESPONSES, {"input": [{"type": None, "role": "user", "content": "hi", "id": None, "status": None, "phase": None}]}),
    (RESPONSES, {"tools": [{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}]}),
    (CHAT, {"messages": [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        {"role": "assistant", "content": "x", "tool_calls": None, "reasoning_content": None},
        {"role": "user", "content": "hi"},
    ]}),
    (CHAT, {"stream_options": {"include_usage": None}}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": None}}]}),
]  # fmt: skip
NEUTRAL = [
    (RESPONSES, {"top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0.0, "n": 1, "logit_bias": {}}),
    (RESPONSES, {"include": ["reasoning.encrypted_content", "message.input_image.image_url"]}),
    (RESPONSES, {"top_k": -1, "min_p": 0}),
    (CHAT, {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "top_k": 0}),
    (CHAT, {"modalities": ["text"], "functions": [], "tools": [], "stop": []}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields"), [*NULLS, *NEUTRAL], ids=str)
def test_a_value_that_changes_nothing_is_accepted(server: Server, path: str, fields: dict[str, Any]) -> None:
    answer = server.post(path, {**ASKED[path], **fields})
    assert answer.status_code == 200, answer.text


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": "see"}, *parts]}]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TOOL = {"type": "function", "name": "f"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"top_logprobs": 2}, "top_logprobs"), (RESPONSES, {"frequency_penalty": 1}, "frequency_penalty"),
    (RESPONSES, {"presence_penalty": 1}, "presence_penalty"), (RESPONSES, {"stop": [""]}, "stop[0]"),
    (RESPONSES, {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, "include[1]"),
    (RESPONSES, {"max_output_tokens": -1}, "max_output_tokens"), (RESPONSES, {"max_tokens": 5}, "max_tokens"),
    (RESPONSES, {"response_format": {"type": "json_object"}}, "response_format"), (RESPONSES, {"n": 2}, "n"),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"), (RESPONSES, {"moderation": {}}, "moderation"),
    (RESPONSES, {"logit_bias": {"5": 3}}, "logit_bias"), (RESPONSES, {"logprobs": True}, "logprobs"),
    (RESPONSES, {"reasoning": {"effort": "huge"}}, "reasoning.effort"), (RESPONSES, {"input": [5]}, "input[0]"),
    (RESPONSES, {"input": user({"type": "input_image", "image_url": "data:,"})}, "input[0].content[1]"),
    (RESPONSES, {"input": user({"type": "input_file", "file_data": "data:,"})}, "input[0].content[1]"),
    (RESPONSES, {"input": user({"type": "input_audio", "input_audio": {}})}, "input[0].content[1]"),
    (RESPONSES, {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "never", "tools": [TOOL]}}, "tool_choice.mode"),
    (RESPONSES, {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    (RESPONSES, {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [TOOL, {**TOOL, "name": "g"}]}},
     "tool_choice.tools[1]"),
    (CHAT, {"max_tokens": -1}, "max_tokens"), (CHAT, {"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"max_completion_tokens": "many"}, "max_completion_tokens"), (CHAT, {"stop": ""}, "stop[0]"),
    (CHAT, {"stop": ["a", ""]}, "stop[1]"), (CHAT, {"stop": 5}, "stop"), (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"), (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty"),
    (CHAT, {"presence_penalty": -1}, "presence_penalty"), (CHAT, {"logit_bias": {"5": 3}}, "logit_bias"),
    (CHAT, {"audio": {"voice": "x"}}, "audio"), (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions"), (CHAT, {"function_call": "auto"}, "function_call"),
    (CHAT, {"web_search_options": {}}, "web_search_options"), (CHAT, {"instructions": "x"}, "instructions"),
    (CHAT, {"max_output_tokens": 3}, "max_output_tokens"), (CHAT, {"input": "x"}, "input"),
    (CHAT, {"reasoning_effort": "huge"}, "reasoning_effort"), (CHAT, {"temperature": 3}, "temperature"),
    (CHAT, {"messages": user(IMAGE)}, "messages[0].content[1]"),
    (CHAT, {"messages": [{"role": "system", "content": "x"}, *user({"type": "input_audio", "input_audio": {}})]}, "messages[1].content[1]"),
    (CHAT, {"messages": user({"type": "file", "file": {}})}, "messages[0].content[1]"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (CHAT, {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages[0].tool_call_id"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}]}, "messages"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "a b", "arguments": ""}}]}]},
     "messages[0].tool_calls[0].function.name"),
    (CHAT, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    (CHAT, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools[1].function.name"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "poem"}}}}, "response_format"),
    (CHAT, {"messages": [{"role": "user", "content": "hi " * 2_000_000}]}, "messages"),
    (CHAT, {"tools": chat_tools(Path("/")), "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
        {"type": "function", "function": {"name": "nothing"}}]}}}, "tool_choice.allowed_tools.tools[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED, ids=[f"{path} {param}" for path, _, param in REFUSED])
def test_what_cannot_be_served_is_refused_by_its_own_name(server: Server, path: str, fields: Any, param: str) -> None:
    answer = server.post(path, {**ASKED[path], **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), answer.text
    assert error["code"] in ("unsupported", "invalid_value", "missing_required_parameter", "context_length_exceeded")
    assert "\n" not in error["message"] and len(error["message"]) < 300
    if error["message"].startswith(("input", "text", "max_output", "messages", "response_format")):
        assert error["message"].startswith(param)


def test_a_picture_in_the_result_of_a_tool_is_named_to_the_model(server: Server) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {
        "type": "function_call_output",
        "call_id": "c",
        "output": [{"type": "input_image", "image_url": "data:,"}],
    }
    answer = server.post(RESPONSES, {**ASKED[RESPONSES], "input": [{"role": "user", "content": "hi"}, call, result]})
    items = server.get(f"{RESPONSES}/{answer.json()['id']}/input_items").json()["data"]
    assert items[0]["output"] == "[Unsupported input_image]"


def test_a_tool_that_is_not_allowed_is_not_read(client: openai.OpenAI, workspace: Path) -> None:
    tools: Any = agent_tools(workspace)
    named = {tool["name"]: {"type": "function", "name": tool["name"]} for tool in tools}
    fields: dict[str, Any] = {"model": MODEL, "instructions": SYSTEM_TEXT, "input": WHERE}
    modes: list[tuple[Any, list[str]]] = [("auto", list(named)), ("required", ["search"]), ("auto", ["find_symbol"])]
    for mode, names in modes:
        choice: Any = {"type": "allowed_tools", "mode": mode, "tools": [named[name] for name in names]}
        response: Any = client.responses.create(**fields, tools=tools, tool_choice=choice)
        left = [tool for tool in tools if tool["name"] in names]
        plain: Any = client.responses.create(**fields, tools=left, tool_choice=mode)
        assert calls_of(response) == calls_of(plain) and calls_of(response)[0][0] in names
        assert response.usage.input_tokens == plain.usage.input_tokens
        assert response.to_dict()["tool_choice"] == choice and len(response.tools) == len(tools)


def calls_of(response: Any) -> list[tuple[str, str]]:
    return [(item.name, item.arguments) for item in response.output if item.type == "function_call"]


def test_tools_of_a_namespace_are_allowed_one_by_one(server: Server) -> None:
    function = {"type": "function", "name": "f"}
    tools = [{"type": "namespace", "name": "a", "tools": [function, {**function, "name": "g"}]}, function]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{**function, "namespace": "a", "name": "g"}]}
    answer = server.post(
        RESPONSES, {**ASKED[RESPONSES], "max_output_tokens": 60, "tools": tools, "tool_choice": choice}
    )
    assert answer.status_code == 200, answer.text
    called = [
        (item.get("namespace"), item["name"]) for item in answer.json()["output"] if item["type"] == "function_call"
    ]
    assert set(called) <= {("a", "g")}


def test_a_chat_names_the_tools_it_allows_in_its_own_form(client: openai.OpenAI, workspace: Path) -> None:
    choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "search"}}]}}  # fmt: skip
    messages: Any = [{"role": "system", "content": SYSTEM_TEXT}, {"role": "user", "content": WHERE}]
    tools: Any = chat_tools(workspace)
    answer: Any = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, tool_choice=choice)
    assert {call.function.name for call in answer.choices[0].message.tool_calls} == {"search"}


def test_a_records_keys_may_be_described_in_tools_and_formats(server: Server) -> None:
    record = {
        "type": "object",
        "propertyNames": {"type": "string", "enum": ["a"]},
        "additionalProperties": {"type": "integer"},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": record}}
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": record}}
    for fields in ({"tools": [tool]}, {"response_format": format_}):
        answer = server.post(CHAT, {**ASKED[CHAT], **fields})
        assert answer.status_code == 200, answer.text


def test_top_k_and_min_p_are_kept_to(client: openai.OpenAI) -> None:
    """Of a random answer only the likeliest token is left, so it is the greedy one."""
    messages: Any = [{"role": "user", "content": TELL}]
    greedy = client.chat.completions.create(model=MODEL, messages=messages, temperature=0).choices[0].message.content
    for field in ({"top_k": 1}, {"min_p": 0.999999}):
        chosen = client.chat.completions.create(model=MODEL, messages=messages, temperature=2, extra_body=field)
        assert chosen.choices[0].message.content == greedy
