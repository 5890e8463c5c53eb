"""Promises of `/v1/messages`, in raw HTTP: the forms that its clients read."""

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from tests.agent.server.serving import ASK, KNOWN, MODEL, SYSTEM_TEXT, TELL, WHERE, Server, agent_tools

PATH = "/v1/messages"
HEADERS = {"anthropic_version": "2023-06-01"}


def tools_of(workspace: Path) -> list[dict[str, Any]]:
    tools = agent_tools(workspace)
    return [{"name": t["name"], "description": t["description"], "input_schema": t["parameters"]} for t in tools]


def ask(server: Server, messages: Any, **fields: Any) -> dict[str, Any]:
    answer = server.post(PATH, {"model": MODEL, "max_tokens": 96, "messages": messages, **fields}, **HEADERS)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events_of(server: Server, messages: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "max_tokens": 96, "messages": messages, "stream": True, **fields}
    frames = [frame.split("\n") for frame in server.post(PATH, body, **HEADERS).text.split("\n\n") if frame[:1] == "e"]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [event["type"] for event in events]
    return events


def told(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of its events."""
    message = events[0]["message"]
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"]})
            pieces = []
        elif event["type"] == "content_block_delta":
            kind, *rest = event["delta"].values()
            if kind == "input_json_delta":
                pieces += rest
            else:
                key = kind.removesuffix("_delta")
                message["content"][event["index"]][key] += rest[0]
        elif event["type"] == "content_block_stop" and pieces:
            message["content"][event["index"]]["input"] = json.loads("".join(pieces))
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert events[-1] == {"type": "message_stop"}
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {**message, "id": "", "usage": message["usage"]["output_tokens"], "content": content}


def test_a_conversation_is_answered_and_not_read_again(server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": TELL}]
    first = ask(server, messages, system="Be brief.")
    assert (first["type"], first["role"], first["stop_reason"], first["stop_sequence"]) == (
        "message", "assistant", "end_turn", None,
    )  # fmt: skip
    messages += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": ASK}]
    second = ask(
        server, messages, system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    )
    assert second["content"][0]["text"].strip() == KNOWN and second["id"].startswith("msg_")
    usage = first["usage"]
    assert second["usage"]["cache_read_input_tokens"] == sum(usage.values()) > usage["output_tokens"] > 0


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_tool_is_used_and_its_result_read(server: Server, workspace: Path, is_stream: bool) -> None:
    fields: dict[str, Any] = {"system": SYSTEM_TEXT, "tools": tools_of(workspace)}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": WHERE}]}]
    message = told(events_of(server, messages, **fields)) if is_stream else ask(server, messages, **fields)
    *_, call = message["content"]
    assert message["stop_reason"] == "tool_use" and call["type"] == "tool_use" and call["name"] == "find_symbol"
    assert call["input"] == {"name": "load_page"}
    result = {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": "net/fetcher.py:5 def load_page"}],
    }
    messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": [result]}]
    answer = ask(server, messages, **fields)
    assert "net/fetcher.py:5" in answer["content"][0]["text"] and answer["usage"]["cache_read_input_tokens"] > 50


def test_a_stream_is_the_message_in_pieces(server: Server) -> None:
    messages = [{"role": "user", "content": TELL}]
    for fields in ({}, {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 8}):
        events, whole = events_of(server, messages, **fields), ask(server, messages, **fields)
        assert without_ids(told(events)) == without_ids(whole)
        given = events[0]["message"]["usage"]["input_tokens"]
        assert given == sum(n for key, n in whole["usage"].items() if key != "output_tokens") > 0


def test_thinking_is_a_block_apart_that_may_come_back(server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    message = ask(server, messages, thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=4)
    assert message["content"][0]["type"] == "thinking" and message["content"][0]["thinking"]
    assert message["stop_reason"] == "max_tokens"
    messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": ASK}]
    assert ask(server, messages, thinking={"type": "adaptive"}, max_tokens=4)["content"]


def test_a_stop_sequence_is_named(server: Server) -> None:
    messages = [{"role": "user", "content": TELL}]
    for message in (
        ask(server, messages, stop_sequences=["nowhere", " staging"]),
        told(events_of(server, messages, stop_sequences=["nowhere", " staging"])),
    ):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " staging")
        assert "staging" not in message["content"][0]["text"]


def test_a_tool_can_be_asked_for_by_name(server: Server, workspace: Path) -> None:
    fields = {"system": SYSTEM_TEXT, "tools": tools_of(workspace), "tool_choice": {"type": "tool", "name": "search"}}
    message = ask(server, [{"role": "user", "content": WHERE}], **fields)
    assert [block["name"] for block in message["content"] if block["type"] == "tool_use"] == ["search"]


def test_tokens_are_counted_as_they_are_read(server: Server, workspace: Path) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": WHERE}],
        "tools": tools_of(workspace),
        "system": "x",
    }
    counted = server.post(f"{PATH}/count_tokens", body).json()
    usage = ask(server, body["messages"], tools=body["tools"], system="x")["usage"]
    assert counted == {"input_tokens": sum(usage.values()) - usage["output_tokens"]}


def test_the_agent_answers_without_its_own_calls(server: Server) -> None:
    message = ask(server, [{"role": "user", "content": TELL}], model=AGENT_MODEL)
    assert {block["type"] for block in message["content"]} <= {"text", "thinking"} and message["content"]


def test_a_document_of_text_is_read_and_a_tools_picture_is_named(server: Server) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": TELL}
    message = ask(server, [{"role": "user", "content": [{"type": "document", "source": source}]}])
    assert message["content"] == ask(server, [{"role": "user", "content": TELL}])["content"]
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "image", "source": {"type": "base64"}}],
    }
    ask(
        server,
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
    )


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


TEXT = {"type": "text", "text": "x"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"),
    ({"messages": None}, "messages"), ({"messages": [{"role": "x", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"), (said(5), "messages[0].content[0]"),
    (said({"type": "text"}), "messages[0].content[0].text"), (said(TEXT, {"type": "image", "source": {}}), "messages[0].content[1]"),
    (said({"type": "document", "source": {"type": "base64", "data": "x"}}), "messages[0].content[0]"),
    (said({"type": "tool_result", "tool_use_id": "t", "content": "x"}), "messages[0].content[0]"),
    (said({"type": "tool_result"}), "messages[0].content[0].tool_use_id"), (said(TEXT, role="assistant"), "messages"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"), ({"temperature": 2}, "temperature"), ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system[0]"), ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].input_schema"), ({"tools": 5}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"), ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"mcp_servers": [{}]}, "mcp_servers"), ({"container": "x"}, "container"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "poem"}}}}, "output_config.format"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"messages": [{"role": "user", "content": "hi " * 2_000_000}]}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name"), REFUSED, ids=[f"{n} {name}" for n, (_, name) in enumerate(REFUSED)])
def test_a_bad_request_is_refused_with_the_name_of_its_field(server: Server, fields: Any, name: str) -> None:
    answer = server.post(
        PATH, {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "x"}], **fields}
    )
    body = answer.json()
    assert answer.status_code == 400 and body["type"] == "error", answer.text
    assert body["error"]["type"] == "invalid_request_error" and body["error"]["message"].startswith(name), answer.text


def test_what_changes_nothing_is_accepted(server: Server) -> None:
    hosted = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]
    neutral: list[dict[str, Any]] = [
        {"tools": hosted}, {"mcp_servers": [], "container": None, "metadata": {"user_id": "u" * 2000}, "system": []},
        {"thinking": {"type": "disabled"}, "tool_choice": {"type": "auto"}, "stop_sequences": [], "service_tier": "auto"},
        dict.fromkeys(("system", "tools", "tool_choice", "thinking", "temperature", "top_p", "top_k", "stream", "output_config")),
    ]  # fmt: skip
    for fields in neutral:
        message = ask(server, [{"role": "user", "content": "x"}], **{"max_tokens": 2, **fields})
        assert message["stop_reason"] in ("max_tokens", "end_turn"), fields


def test_a_token_may_come_as_an_api_key_and_errors_have_the_apis_shape(server: Server) -> None:
    body = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    assert server.post(PATH, body, Authorization="", x_api_key=server.token).status_code == 200
    for headers in ({}, {"x_api_key": "wrong"}, {"x_api_key": ""}):
        answer = server.post(PATH, body, Authorization="", **headers)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    missing = server.post(PATH, {**body, "model": "other"})
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"


def test_models_have_the_fields_of_both_apis(server: Server) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list" and not listed["has_more"] and listed["first_id"] == MODEL
    for model in (*listed["data"], server.get(f"/v1/models/{MODEL}").json()):
        assert (model["object"], model["type"], model["display_name"]) == ("model", "model", model["id"])
