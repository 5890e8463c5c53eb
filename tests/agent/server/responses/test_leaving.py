"""Ends that neither the model nor a limit brings: the client leaves, the server stops."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.response import Response
from tests.agent.server.serving import ENDLESS, MODEL, Server, served

FORMAT = {"type": "json_schema", "name": "numbers", "schema": ENDLESS}
ASKED = {"model": MODEL, "input": "count", "max_output_tokens": 8000, "text": {"format": FORMAT}}
CHAT = {
    "model": MODEL, "messages": [{"role": "user", "content": "count"}], "max_tokens": 8000,
    "response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": ENDLESS}},
}  # fmt: skip


def speaking(server: Server) -> Response:
    """The response that runs, once the model has said something."""
    while True:
        for response in server.running.service.cache.in_flight():
            if any(event["type"] == "response.output_text.delta" for event in response.events):
                return response
        time.sleep(0.01)


def wait_for_end(response: Response) -> dict[str, Any]:
    while not response.is_over:
        time.sleep(0.01)
    return response.object


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_response_and_what_came_is_kept(
    server: Server, path: str, store: bool, stream: bool
) -> None:
    body = {**(ASKED if path == "/v1/responses" else CHAT), "store": store, "stream": stream}
    text = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        client.sendall((head + text).encode())
        response = speaking(server)
    ended = wait_for_end(response)
    assert ended["status"] == "incomplete" and 0 < ended["usage"]["output_tokens"] < 4000
    assert ended["output"][0]["content"][0]["text"].startswith("[")
    if store:
        with server.client() as official:
            assert official.responses.retrieve(response.id).output_text.startswith("[")


def test_one_in_the_background_goes_on_and_so_does_one_that_only_a_watcher_leaves(server: Server) -> None:
    with server.client() as client:
        id = client.responses.create(**ASKED, background=True).id  # type: ignore[call-overload]
        with client.responses.retrieve(id, stream=True) as watching:
            next(event for event in watching if event.type == "response.output_text.delta")
        response = server.running.service.cache.in_memory[id]
        told = len(response.events)
        while len(response.events) < told + 20:
            time.sleep(0.01)
        assert client.responses.cancel(id).status == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_completion_that_a_stopping_server_cuts_is_an_error(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.agent.server.serve.STOP_S", 0.2)
    caught: list[openai.APIError] = []

    def ask(client: openai.OpenAI) -> None:
        try:
            given = client.chat.completions.create(**CHAT, stream=stream)  # type: ignore[call-overload]
            list(given if stream else [])
        except openai.APIError as e:
            caught.append(e)

    with served(tmp_path) as server:
        thread = threading.Thread(target=ask, args=(server.client(),))
        thread.start()
        speaking(server)
    thread.join()
    assert caught and "stopping" in str(caught[0])
    assert stream or caught[0].status_code == 503  # type: ignore[attr-defined]
