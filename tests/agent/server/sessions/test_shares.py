"""One user, one damaged row or another process must not stop the others: limits are per user, and the loop waits for no lock."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.server.responses.service import MAX_WAITING
from holdfast.agent.threads import to_end
from holdfast.memory.db import BUSY_TIMEOUT_S
from tests.agent.server.serving import MODEL, TELL, Server, served
from tests.agent.server.test_attacks import users_file

LOCKS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_elsewhere(database: Path) -> Iterator[None]:
    """Another process holds the database's write lock until the block ends."""
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", LOCKS, str(database)], stdin=pipe, stdout=pipe)
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        other.stdin.close()
        other.wait()
        other.stdout.close()


MOST_S = BUSY_TIMEOUT_S / 3  # a loop that waits for the lock waits for all of it

WORK: dict[str, Any] = {
    "response": lambda server: server.post("/v1/responses", {"model": MODEL, "input": TELL, "max_output_tokens": 1}),
    "background": lambda server: server.post("/v1/responses", {"model": MODEL, "input": TELL, "background": True}),
    "new session": lambda server: server.post("/v1/sessions", {}),
    "turn": lambda server: server.post("/v1/sessions/open/turns", {"prompt": TELL}),
    "open": lambda server: server.post("/v1/sessions/closed/turns", {"prompt": TELL}),
    "rewind": lambda server: server.post("/v1/sessions/open/rewind", {"turn": 0}),
    "fork": lambda server: server.post("/v1/sessions/open/fork", {}),
    "delete": lambda server: server.http().delete("/v1/sessions/other"),
    "cancel": lambda server: server.post("/v1/sessions/open/cancel", {}),
    "list": lambda server: server.get("/v1/sessions"),
}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with served(home) as server:
        for name in ("open", "other", "closed"):
            server.post("/v1/sessions", {"name": name})
        asyncio.run_coroutine_threadsafe(server.running.service.agent.sessions.close("closed"), server.loop).result()
        yield server


@pytest.mark.parametrize("work", WORK)
def test_a_lock_on_the_database_does_not_stop_the_loop(sessions: Server, work: str) -> None:
    database = sessions.running.service.app.database.path
    with locked_elsewhere(database), sessions.http() as http:
        working = threading.Thread(target=WORK[work], args=(sessions,))
        working.start()
        for _ in range(5):
            assert http.get("/healthz", timeout=MOST_S).status_code == 200
            time.sleep(0.2)
        is_locked = sqlite3.connect(database, timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError):  # it was, all the time
            is_locked.execute("BEGIN IMMEDIATE")
        is_locked.close()
    working.join()


def test_what_has_begun_on_a_thread_is_waited_for() -> None:
    ended = threading.Event()

    async def main() -> None:
        def work() -> None:
            time.sleep(0.3)
            ended.set()

        task = asyncio.create_task(to_end(work))
        await asyncio.sleep(0.05)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())


def test_sessions_that_one_user_watches_leave_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.agent.server.sessions.hub.MAX_IN_USE", 3)
    monkeypatch.setattr("holdfast.agent.server.sessions.hub.MAX_OPEN", 4)
    limit = {"workspaces": [str(tmp_path)]}
    users, tokens = users_file(tmp_path / "users.json", ann=limit, bob=limit, cid=limit)
    with served(tmp_path / "home", users) as server, contextlib.ExitStack() as watched:
        for name, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"}
            http = watched.enter_context(server.http(**headers))
            statuses = []
            for number in range(5):
                statuses.append(http.post("/v1/sessions", json={"name": f"s{number}"}).status_code)
                if statuses[-1] == 201:
                    answer = watched.enter_context(http.stream("GET", f"/v1/sessions/s{number}/stream"))
                    next(answer.iter_lines())
            assert statuses == [201, 201, 201, 429, 429], name


def test_what_others_wait_for_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.agent.server.responses.service.MAX_WAITING", 8)
    users, tokens = users_file(tmp_path / "users.json", ann={}, bob={})
    assert MAX_WAITING > 8
    with served(tmp_path / "home", users) as server:
        ann, bob = ({"Authorization": f"Bearer {token}"} for token in tokens.values())
        body = {"model": MODEL, "input": "hi " * 3000, "background": True}
        statuses = [server.post("/v1/responses", body, **ann).status_code for _ in range(12)]
        assert statuses.count(429) >= 2
        assert server.post("/v1/responses", {"model": MODEL, "input": TELL}, **bob).status_code == 200


@pytest.mark.parametrize("kind", ["missing", "loop", "nul", "long", "file"])
@pytest.mark.parametrize("is_limited", [False, True])
def test_a_workspace_that_cannot_be_is_the_clients_fault(
    server: Server, tmp_path: Path, kind: str, is_limited: bool
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    given = {"nul": "\0", "long": "/" + "x" * 100_000}.get(kind, str(tmp_path / kind))
    if not is_limited:
        answer = server.post("/v1/sessions", {"workspace": given})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "workspace"
        assert len(answer.text) < 1000
        return
    users, tokens = users_file(tmp_path / "users.json", ann={"workspaces": [str(tmp_path)]})
    with served(tmp_path / "home", users) as other:
        answer = other.post("/v1/sessions", {"workspace": given}, Authorization=f"Bearer {tokens['ann']}")
        assert answer.status_code in (400, 403) and len(answer.text) < 1000


def test_a_session_whose_directory_is_gone_is_not_left_locked(tmp_path: Path) -> None:
    place, aside = tmp_path / "place", tmp_path / "aside"
    place.mkdir()
    with served(tmp_path / "home") as server:
        assert server.post("/v1/sessions", {"name": "s", "workspace": str(place)}).status_code == 201
        close = server.running.service.agent.sessions.close("s")
        asyncio.run_coroutine_threadsafe(close, server.loop).result()
        shutil.move(place, aside)
        for _ in range(2):
            answer = server.post("/v1/sessions/s/turns", {"prompt": TELL})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (409, "workspace_gone") and "place" in error["message"]
        shutil.move(aside, place)
        assert server.post("/v1/sessions/s/turns", {"prompt": TELL}).status_code == 202


def test_a_full_disk_is_said_and_not_tried_again(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        database = server.running.service.app.database
        assert server.post("/v1/sessions", {"name": "s"}).status_code == 201
        with database.transaction() as connection:  # SQLite's own limit: a full disk without being root
            most = connection.execute("PRAGMA max_page_count = 1").fetchone()[0]
        answers = [server.post("/v1/sessions", {"name": f"n{number}"}) for number in range(200)]
        full = [answer for answer in answers if answer.status_code != 201]
        assert full and most > 1
        for answer in full:
            assert answer.status_code == 507 and answer.json()["error"]["code"] == "insufficient_storage"
            assert answer.headers["x-should-retry"] == "false"
        assert server.get("/v1/sessions").status_code == 200
