"""Promises of a stored response: it is on disk before its client hears that it is complete, and goes on after any end."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.agent.server.serving import ASK, KNOWN, MODEL, TELL, create, origins, served

ROOT = Path(__file__).parents[3]
NUM_KILLS = 1  # tests/long/server_kills.py does fifty


class Process:
    """`holdfast serve` as a process of its own."""

    def __init__(self, home: Path):
        command = [sys.executable, "-m", "holdfast.agent", "serve", "--port", "0"]
        env = {"HOLDFAST_HOME": str(home), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline() for _ in range(3)]
        token = (home / "token").read_text().strip()
        url = self.lines[0].split()[-1]
        self.client = openai.OpenAI(base_url=url, api_key=token, max_retries=0, timeout=60)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode


def test_after_a_clean_stop_nothing_is_read_again(tmp_path: Path) -> None:
    with served(tmp_path) as server, server.client() as client:
        first = create(client, TELL)
        second = create(client, ASK, previous_response_id=first.id)
        chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": TELL}], store=True)
        events = [event.model_dump() for event in create(client, TELL, stream=True)]
    with served(tmp_path) as server, server.client() as client:
        assert client.responses.retrieve(second.id) == second
        for before in (second, first):  # the end, and a fork
            again = create(client, ASK, previous_response_id=before.id)
            assert again.output_text.strip() == KNOWN
            assert origins(again)["prefilled_again_tokens"] == 0
            assert origins(again)["from_disk_tokens"] == before.usage.total_tokens
        said = chat.choices[0].message.model_dump(exclude_none=True)
        messages: Any = [{"role": "user", "content": TELL}, said, {"role": "user", "content": ASK}]
        more = client.chat.completions.create(model=MODEL, messages=messages)
        assert more.usage.prompt_tokens_details.cached_tokens == chat.usage.total_tokens  # type: ignore[union-attr]
        replayed = client.responses.retrieve(events[0]["response"]["id"], stream=True, starting_after=2)
        assert [event.model_dump() for event in replayed] == events[3:]


def test_a_restart_makes_no_difference_to_what_is_said(tmp_path: Path) -> None:
    def texts(restart: bool, home: Path) -> list[str]:
        found, before = [], None
        for turn, input in enumerate(["hi", TELL, "thanks", ASK]):
            with served(home / str(0 if restart else "one")) as server, server.client() as client:
                chain = [input] if restart else ["hi", TELL, "thanks", ASK]
                for text in chain:
                    fields = {"previous_response_id": before} if before else {}
                    response = create(client, text, **fields)
                    found.append(response.output_text)
                    before = response.id
            if not restart:
                return found
            assert turn < 4
        return found

    assert texts(True, tmp_path / "a") == texts(False, tmp_path / "b")


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    acknowledged: list[Any] = []

    def work(client: openai.OpenAI, number: int) -> None:
        before: dict[str, Any] = {}
        try:
            while True:
                response = create(client, TELL if not before else ASK, **before)
                acknowledged.append(response)
                before = {"previous_response_id": response.id}
        except openai.OpenAIError:
            pass

    for kill in range(NUM_KILLS):
        server = Process(tmp_path)
        for response in acknowledged[-3:]:
            assert server.client.responses.retrieve(response.id) == response
            assert create(server.client, ASK, previous_response_id=response.id).output_text.strip() == KNOWN
        num_before = len(acknowledged)
        threads = [threading.Thread(target=work, args=(server.client, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < num_before + 4 + kill:
            time.sleep(0.01)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for thread in threads:
            thread.join()
    server = Process(tmp_path)
    for response in acknowledged:
        assert server.client.responses.retrieve(response.id) == response
    last = create(server.client, ASK, previous_response_id=acknowledged[-1].id)
    assert last.output_text.strip() == KNOWN
    assert server.end(signal.SIGTERM) == 0


def test_the_token_is_shown_once(tmp_path: Path) -> None:
    for start in range(2):
        server = Process(tmp_path)
        token = (tmp_path / "token").read_text().strip()
        shown = [line for line in server.lines if token in line]
        assert len(shown) == (2 if start == 0 else 0) and str(tmp_path / "token") in server.lines[1]
        page = server.lines[2].split()[-1]
        assert page == server.lines[0].split()[-1].removesuffix("/v1") + (f"/#token={token}" if start == 0 else "")
        assert server.client.models.list().data[0].id == MODEL
        assert server.end(signal.SIGTERM) == 0


def test_a_response_in_the_background_that_was_cut_off_has_failed(tmp_path: Path) -> None:
    server = Process(tmp_path)
    running = create(server.client, "hi " * 20_000, background=True)
    server.end(signal.SIGKILL)
    with served(tmp_path) as again, again.client() as client:
        response = client.responses.retrieve(running.id)
        assert response.status == "failed" and response.error.code == "server_error"  # type: ignore[union-attr]


def test_a_deleted_response_leaves_no_text_and_no_state(tmp_path: Path) -> None:
    secret = "remember that the vault port is 90210"
    with served(tmp_path) as server, server.client() as client:
        response = create(client, secret)
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        database = server.running.service.app.database
        for table in ("responses", "tokens", "turns", "tail_uses", "tails", "pages"):
            assert database.rows(f"SELECT COUNT(*) FROM {table}")[0][0] == 0, table
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_a_graceful_stop_tells_websocket_clients_to_come_back_and_ends_what_runs(tmp_path: Path) -> None:
    with served(tmp_path) as server, server.client() as client:
        running = create(client, TELL, background=True)
        url, headers = f"{server.url.replace('http', 'ws')}/v1/responses", {"Authorization": f"Bearer {server.token}"}
        socket = connect(url, additional_headers=headers)
    with pytest.raises(ConnectionClosed) as e:
        socket.recv(timeout=10)
    assert e.value.rcvd is not None and e.value.rcvd.code == 1012
    with served(tmp_path) as server, server.client() as client:
        assert client.responses.retrieve(running.id).status == "completed"


def test_a_prefill_ahead_is_there_after_a_restart(tmp_path: Path) -> None:
    with served(tmp_path) as server, server.client() as client:
        ahead = create(client, "The house is red. " * 100, extra_body={"generate": False})
    with served(tmp_path) as server, server.client() as client:
        response = create(client, "hi", previous_response_id=ahead.id)
        assert origins(response)["from_disk_tokens"] >= ahead.usage.input_tokens - 32


def test_damaged_state_is_read_again_from_the_token_log(tmp_path: Path) -> None:
    with served(tmp_path) as server, server.client() as client:
        first = create(client, TELL)
    for path in (tmp_path / "blobs" / "tails").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-50] + b"x" * 50)
    with served(tmp_path) as server, server.client() as client:
        second = create(client, ASK, previous_response_id=first.id, include=["holdfast:events"])
        assert second.output_text.strip() == KNOWN
        assert origins(second)["prefilled_again_tokens"] == first.usage.total_tokens
        assert second.model_extra["holdfast"] == {"why": "no stored state"}
