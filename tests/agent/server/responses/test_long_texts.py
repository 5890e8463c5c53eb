"""A text that no context holds is refused by its length, whichever way it comes: little of it is ever encoded."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.agent.server.serving import MODEL, TELL, Server, create, served

MOST_TOKENS = 2048
TEXT = "The quick brown fox jumps over 13 lazy dogs.\n" * 30_000  # 1.4 MB


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("home"), max_context=MOST_TOKENS) as server:
        yield server


def by_post(path: str, **body: Any) -> Callable[[Server], Any]:
    return lambda server: server.post(path, {"model": MODEL, **body}).json()["error"]


def by_socket(server: Server) -> Any:
    headers = {"Authorization": f"Bearer {server.token}"}
    url = server.url.replace("http", "ws") + "/v1/responses"
    with connect(url, additional_headers=headers, max_size=None) as socket:
        socket.send(json.dumps({"type": "response.create", "model": MODEL, "input": TEXT}))
        return json.loads(socket.recv())["error"]


def by_turn(server: Server) -> Any:
    name = server.post("/v1/sessions", {}).json()["name"]
    after = server.post(f"/v1/sessions/{name}/turns", {"prompt": TEXT}).json()["after"]
    with server.http() as http, http.stream("GET", f"/v1/sessions/{name}/stream?after={after}") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:") and (event := json.loads(line[5:]))["type"] == "error":
                return {"code": "context_length_exceeded", "message": event["message"]}


WAYS: dict[str, Callable[[Server], Any]] = {
    "response": by_post("/v1/responses", input=TEXT),
    "instructions": by_post("/v1/responses", input="hi", instructions=TEXT),
    "items": by_post("/v1/responses", input=[{"role": "user", "content": TEXT[: len(TEXT) // 9]}] * 9),
    "count": by_post("/v1/responses/input_tokens", input=TEXT),
    "compact": by_post("/v1/responses/compact", input=TEXT),
    "chat": by_post("/v1/chat/completions", messages=[{"role": "user", "content": TEXT}]),
    "word": by_post("/v1/responses", input="x" * len(TEXT)),
    "socket": by_socket,
    "turn": by_turn,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_text_that_no_context_holds_is_hardly_encoded(
    small: Server, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = small.running.service.app.engine.tokenizer
    encode, num_chars = tokenizer._whole, 0

    def counted(text: str) -> list[int]:
        nonlocal num_chars
        num_chars += len(text)
        return encode(text)

    monkeypatch.setattr(tokenizer, "_whole", counted)
    error = WAYS[way](small)
    assert error["code"] == "context_length_exceeded" and str(MOST_TOKENS) in error["message"]
    assert num_chars < len(TEXT) / 4


def test_a_long_text_is_shortened_when_that_is_asked_for(small: Server) -> None:
    with small.client() as client:
        items = [{"role": "user", "content": TEXT}, {"role": "user", "content": TELL}]
        assert create(client, items, truncation="auto", max_output_tokens=4).usage.input_tokens < MOST_TOKENS
