"""Whatever is sent, no answer is a fault of the server: random values in every place of requests that are right."""

import random
from typing import Any

import pytest

from tests.agent.server.serving import MODEL, Server

JUNK: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, 1e300, "", "x", "\u0000", "<｜User｜>", [], {}, [[]], [None], [1, "a"], {"type": "x"},
    {"type": "message"}, {"a": {"b": []}}, "x" * 5000, ["user"] * 50, {"": None},
]  # fmt: skip
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/responses": {
        "model": MODEL, "max_output_tokens": 1, "store": False, "instructions": "Be brief.", "tool_choice": "auto",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
        ],
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}],
        "reasoning": {"effort": "high"}, "text": {"format": {"type": "text"}}, "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"],
        "temperature": 1.0, "top_p": 0.5, "generate": True, "stop": ["x"], "seed": 1,
    },
    "/v1/chat/completions": {
        "model": MODEL, "max_tokens": 1, "tool_choice": "auto", "stop": "x", "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "response_format": {"type": "text"},
        "reasoning_effort": "high", "metadata": {}, "user": "u",
    },
    "/v1/messages": {
        "model": MODEL, "max_tokens": 1, "system": [{"type": "text", "text": "x"}], "stop_sequences": ["x"], "top_k": 1,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "x", "signature": ""}, {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "x"}]}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "high"}, "temperature": 1.0,
    },
    "/v1/completions": {
        "model": MODEL, "max_tokens": 1, "prompt": ["hi", [1, 2]], "stop": ["x"], "n": 1, "echo": True, "seed": 1,
        "stream_options": {"include_usage": True}, "temperature": 1.0, "top_k": 2, "logit_bias": {},
    },
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], junk)
    return copy


@pytest.mark.parametrize("path", RIGHT)
def test_no_request_is_answered_with_a_fault(server: Server, path: str) -> None:
    rng, right = random.Random(5), RIGHT[path]
    found = places(right)[1:]
    cases = [(place, junk) for place in found for junk in JUNK]
    with server.http() as http:
        assert http.post(path, json=right).status_code == 200
        for place, junk in rng.sample(cases, 250):
            body = replaced(right, place, junk)
            answer = http.post(path, json=body)
            assert answer.status_code < 500, (place, junk, answer.text[:300])
            if answer.status_code != 200:
                fields = {"message", "type"} if path == "/v1/messages" else {"message", "type", "param", "code"}
                assert set(answer.json()["error"]) == fields


SESSION_BODIES: dict[str, dict[str, Any]] = {
    "": {"workspace": ".", "name": "fuzzed", "resume": True},
    "/fuzzed/turns": {"prompt": "hi", "approve": "read"},
    "/fuzzed/approvals/call_1_1": {"approve": True},
    "/fuzzed/fork": {"turn": 0, "branch": 1, "name": "fork"},
    "/fuzzed/rewind": {"turn": 0},
    "/fuzzed/cancel": {},
}


@pytest.mark.parametrize("path", SESSION_BODIES)
def test_no_request_about_sessions_is_answered_with_a_fault(server: Server, path: str) -> None:
    right = SESSION_BODIES[path]
    with server.http() as http:
        assert http.post("/v1/sessions", json={"name": "fuzzed", "resume": True}).status_code == 201
        for place in [(), *places(right)[1:], ("else",)]:
            for junk in JUNK:
                body = {**right, "else": junk} if place == ("else",) else replaced(right, place, junk)
                answer = http.post(f"/v1/sessions{path}", json=body)
                assert answer.status_code < 500, (place, junk, answer.text[:300])
                if answer.status_code >= 300:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                http.post("/v1/sessions/fuzzed/cancel", json={})


QUERIES = [
    "",
    "?branch=",
    "?branch=9" + "9" * 30,
    "?after=",
    "?after=0.0",
    "?workspace=%00",
    "?x=%ff&x",
    "?after=%C0%AF.1",
]


@pytest.mark.parametrize(
    "name", ["%00", "..", "%2e%2e%2f", "a" * 65, "%ff", "-x", "fuzzed%20", "owner%2Ffuzzed", "%E2%80%AE"]
)
def test_no_name_or_query_is_answered_with_a_fault(server: Server, name: str) -> None:
    with server.http() as http:
        for tail in ("", "/events", "/usage", "/stream", "/turns", "/nothing"):
            for query in ("", "?after=%C0%AF.1"):
                for method in ("GET", "POST", "DELETE"):
                    answer = http.request(
                        method, f"/v1/sessions/{name}{tail}{query}", json={} if method == "POST" else None
                    )
                    assert answer.status_code in (400, 403, 404, 405), (method, name, tail, query, answer.status_code)
        for query in QUERIES:
            for tail in ("", "/events", "/usage"):
                assert http.get(f"/v1/sessions/fuzzed{tail}{query}").status_code < 500
            assert http.get(f"/v1/sessions{query}").status_code == 200
