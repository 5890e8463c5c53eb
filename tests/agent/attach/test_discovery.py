"""Promises of where a server says it is: it is believed only while it runs, and a data directory has one."""

import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast.agent.attach.discovery import announced, find_server, only_server
from holdfast.agent.cli.main import main
from holdfast.agent.config import UsageError
from tests.agent.place import Place
from tests.agent.scripted_engine import says
from tests.agent.terminal.test_render import ROOT


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


def test_a_data_directory_has_one_server(place: Place) -> None:
    first = place.script().serve()
    found = find_server(place.home)
    assert found is not None and found.pid == first.pid and found.model == str(place.model)
    second = subprocess.run(
        place.command("serve", "--port", "0", own_engine=True), cwd=ROOT, env=place.env, capture_output=True, text=True
    )
    assert second.returncode == 2 and second.stdout == "" and second.stderr.count("\n") == 1
    assert found.url in second.stderr and f"pid {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0 and not (place.home / "server.json").exists()
    place.serve()


def test_a_file_that_nobody_holds_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid(), "model": "/"}))
    assert find_server(tmp_path) is None
    with only_server(tmp_path), announced(tmp_path, "http://0.0.0.0:8420", str(tmp_path)):
        found = find_server(tmp_path)
        assert found is not None and (found.url, found.pid) == ("http://127.0.0.1:8420", os.getpid())
        assert (tmp_path / "server.json").stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="has a server already at http://127"), only_server(tmp_path):
            pass
    assert find_server(tmp_path) is None
    with only_server(tmp_path), announced(tmp_path, "http://[::]:8420", str(tmp_path)):
        found = find_server(tmp_path)
        assert found is not None and found.url == "http://[::1]:8420"


def test_a_file_that_others_may_write_is_refused(place: Place) -> None:
    place.home.mkdir()
    with only_server(place.home), announced(place.home, "http://127.0.0.1:8420", str(place.home)):
        os.chmod(place.home / "server.json", 0o666)
        with pytest.raises(UsageError, match="can be written by others"):
            find_server(place.home)
        process = place.start("run", "hello")
        assert process.communicate(timeout=60)[1].startswith(
            f"holdfast: {place.home}/server.json can be written by others"
        )
        assert process.returncode == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "5",
        '{"url": 5, "pid": 1, "model": "/"}',
        '{"url": "http://h:1", "pid": "1", "model": "/"}',
        '{"url": "ftp://h:1", "pid": 1, "model": "/"}',
        "{" * 100_000,
        "\udcff",
    ],
)
def test_a_file_that_says_nothing_is_one_line(tmp_path: Path, text: str) -> None:
    with open(tmp_path / "server.json", "w", errors="surrogateescape") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        with pytest.raises(UsageError, match="restart the server"):
            find_server(tmp_path)


def test_the_owner_is_always_a_user(place: Place) -> None:
    users = place.home.parent / "users.json"
    users.write_text(json.dumps([{"name": "ann", "token": "x" * 16}]))
    place.script(says("One.")).serve("--users", str(users))
    code, events, _ = place.run("hello")
    assert code == 0 and events[-1]["text"] == "One."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--port", "TAKEN"), "cannot be listened on: Address already in use; choose another --port"),
        (("--port", "0", "--host", "nowhere.invalid"), "cannot be listened on: Name or service not known"),
        (("--port", "0", "--users", "/none"), "/none cannot be read: No such file or directory"),
        (("--port", "0", "--users", "USERS"), 'it must be [{"name"'),
        (("--port", "0"), "server.json.new cannot be written: Is a directory"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    (tmp_path / "server.json.new").mkdir()
    users = tmp_path / "users"
    users.write_text('{"name": "ann"}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"TAKEN": str(taken.getsockname()[1]), "USERS": str(users)}
        assert main(["serve", *(names.get(option, option) for option in options)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
