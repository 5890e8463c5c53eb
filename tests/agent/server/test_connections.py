"""Connections before there is a request: compressed bodies, bytes that are no HTTP, frames, too many of them, and the log."""

import contextlib
import gzip
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from holdfast.agent.server.connections import Frames
from holdfast.agent.server.log import MAX_LINE_CHARS, MAX_OF_KIND, BoundedHandler
from tests.agent.server.serving import MODEL, TELL, Server, served

UPGRADE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("token", [None, "wrong"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-gzip", "identity, gzip"])
def test_a_compressed_body_is_refused_before_it_is_unpacked(server: Server, encoding: str, token: str | None) -> None:
    body = gzip.compress(json.dumps({"model": MODEL, "input": "x" * 1000}).encode())
    headers = {"Content_Type": "application/json", "Content_Encoding": encoding}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    for content in (body, b'{"model": "pocket"}'):
        with server.http(**headers) as http:
            answer = http.post("/v1/responses", content=content)
        assert answer.status_code == 415 and answer.json()["error"]["code"] == "unsupported_media_type"


def test_nothing_that_was_compressed_is_unpacked_for_a_route_that_is_open(server: Server) -> None:
    with server.http(Content_Encoding="gzip", Authorization="") as http:
        assert http.request("GET", "/healthz", content=gzip.compress(b"x" * 10**6)).status_code == 415


@pytest.mark.parametrize(
    "line", ["Authorization: Bearer se\x01cret-token", "Autho rization: secret-token", "secret-token"]
)
def test_bytes_that_are_no_request_never_reach_the_log(
    server: Server, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = server.running.connections.num_not_http
    with server.connect() as connection:
        connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n".encode("latin-1"))
        answer = all_of(connection)
    assert b" 400 " in answer and b"invalid_http" in answer and b"secret" not in answer
    assert "secret" not in caplog.text and "Traceback" not in caplog.text
    assert server.running.connections.num_not_http == before + 1


def test_a_body_with_broken_framing_is_the_clients_fault(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with server.connect() as connection:
        head = server.head(
            "POST", "/v1/responses", Content_Type="application/json", Transfer_Encoding="chunked", Connection="close"
        )
        connection.sendall(head + b"2\r\n{}\r\nzz\r\n\r\n")
        answer = all_of(connection)
    assert b" 400 " in answer.partition(b"\r\n")[0] and "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/healthz", "/v1/models"])
def test_a_client_that_has_closed_its_half_is_answered(server: Server, path: str) -> None:
    with server.connect() as connection:
        connection.sendall(server.head("GET", path))
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " in all_of(connection).partition(b"\r\n")[0]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_has_closed_its_half_is_answered_however_long_it_takes(
    server: Server, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.agent.server.connections.HALF_CLOSED_S", 0.01)
    monkeypatch.setattr("holdfast.agent.server.http.HALF_CLOSED_S", 0.01)
    body = json.dumps({"model": MODEL, "input": TELL * 200, "max_output_tokens": 8, "stream": is_stream}).encode()
    with server.connect() as connection:
        head = server.head("POST", "/v1/responses", Content_Type="application/json", Content_Length=str(len(body)))
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    interim, _, answer = answer.partition(b"HTTP/1.1 200 ")
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n" * interim.count(b"100")
    assert b'"reason":"max_output_tokens"' in answer and answer.endswith(b"0\r\n\r\n" if is_stream else b"}")


def test_head_is_answered_as_get_without_a_body(server: Server) -> None:
    for path in ("/healthz", "/v1/models", "/", "/v1/nothing"):
        with server.http() as http:
            head, get = http.head(path), http.get(path)
        assert (head.status_code, head.headers["Content-Length"]) == (get.status_code, get.headers["Content-Length"])
        assert not head.content


@pytest.mark.parametrize("is_at_once", [False, True])
def test_a_frame_without_a_mask_ends_the_connection(server: Server, is_at_once: bool) -> None:
    with server.connect() as connection:
        head, frame = server.head("GET", "/v1/responses", **UPGRADE), b"\x81\x01x"
        connection.sendall(head + frame if is_at_once else head)
        if not is_at_once:
            assert b" 101 " in connection.recv(4096)
            connection.sendall(frame)
        assert all_of(connection).endswith(b"\x88\x02\x03\xea")


def test_frames_are_followed_however_their_bytes_are_cut() -> None:
    masked = b"".join(
        bytes([0x81, 0x80 | size]) + extra + b"mask" + bytes(num)
        for size, extra, num in [(0, b"", 0), (1, b"", 1), (125, b"", 125), (126, b"\x01\x00", 256), (127, bytes(5) + b"\x01\x00\x00", 65536)]
    )  # fmt: skip
    for step in (1, 2, 3, 7, 1000, len(masked)):
        frames = Frames()
        assert all(frames.are_masked(masked[at : at + step]) for at in range(0, len(masked), step))
        assert not frames.are_masked(b"\x81\x00")


def test_every_answer_has_an_id(server: Server) -> None:
    ids = [server.get(path).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/v1/nothing", "/")]
    ids.append(server.get("/v1/models", Authorization="").headers["x-request-id"])
    assert len(set(ids)) == 5 and all(id.startswith("req_") for id in ids)


def test_what_this_server_cannot_do_is_said(server: Server) -> None:
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": "x"})
    assert answer.status_code == 404 and "embeddings" in answer.json()["error"]["message"]


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("holdfast.agent.server.serve.connection_limit", lambda: 16)
    with served(tmp_path) as server:
        yield server


def test_idle_strangers_do_not_lock_out_who_has_a_token(few: Server) -> None:
    with contextlib.ExitStack() as open_:
        known = open_.enter_context(few.http())
        assert known.get("/v1/models").status_code == 200
        strangers = [open_.enter_context(few.connect()) for _ in range(100)]
        strangers[50].sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        with contextlib.suppress(httpx2.ReadError):  # under load strangers may still be coming in, and push it out
            few.get("/v1/models")
        assert few.get("/v1/models").status_code == 200
        assert known.get("/v1/models").status_code == 200  # on the connection from before them
        assert len(few.running.connections) <= 16
        assert all_of(strangers[0]) == b""


def test_one_user_cannot_take_every_connection(few: Server) -> None:
    few.post("/v1/sessions", {"name": "watched"})
    with contextlib.ExitStack() as open_:
        answers = []
        for _ in range(6):
            connection = open_.enter_context(few.connect())
            connection.sendall(few.head("GET", "/v1/sessions/watched/stream"))
            answers.append(connection.recv(20).split()[1])
        assert answers == [b"200"] * 4 + [b"429"] * 2
        assert few.get("/healthz").status_code == 200


def test_the_log_holds_few_short_lines_of_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    handler = BoundedHandler()
    for number in range(1000):
        handler.emit(logging.makeLogRecord({"name": "x", "msg": "refused %s", "args": ("\x1b[31m\n" + "y" * 9999,)}))
        handler.emit(logging.makeLogRecord({"name": "x", "msg": f"another {number}"}))
    handler.say_left_out()
    text = capsys.readouterr().err
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= MAX_LINE_CHARS + 10
    assert sum("refused" in line for line in text.splitlines()) == MAX_OF_KIND + 1
    assert "990 more lines" in text and len(text.splitlines()) < 150
