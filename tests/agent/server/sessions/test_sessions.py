"""Agent sessions over HTTP: several clients watch and drive one, approvals, fork, rewind, and what users may see."""

import asyncio
import json
import socket as sockets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holdfast.tools import Context, run_tool
from tests.agent.real_session import make_workspace
from tests.agent.server.serving import ASK, KNOWN, TELL, Server, served

Event = dict[str, Any]
RENAME = "rename load_page to fetch_page in net/fetcher.py"
ENDS = ("turn_done", "error", "interrupted")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("sessions") / "ws")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("home"), workspace=place) as running:
        yield running


class Watcher:
    """Reads the event stream of a session on a thread of its own."""

    def __init__(self, server: Server, name: str, after: str | None = None):
        self.events: list[Event] = []
        self.ids: list[str] = []
        self._arrived = threading.Condition()
        self._is_over = False
        self._http = server.http()
        query = f"?after={after}" if after else ""
        request = self._http.build_request("GET", f"/v1/sessions/{name}/stream{query}")
        self._answer = self._http.send(request, stream=True)
        assert self._answer.status_code == 200, self._answer.read()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.wait_for("session")

    def _read(self) -> None:
        id = ""
        try:
            for line in self._answer.iter_lines():
                if line.startswith("id: "):
                    id = line[4:]
                elif line.startswith("data: "):
                    with self._arrived:
                        self.events.append(json.loads(line[6:]))
                        self.ids.append(id)
                        self._arrived.notify_all()
        except httpx2.HTTPError:
            pass
        with self._arrived:
            self._is_over = True
            self._arrived.notify_all()

    def wait_for(self, *types: str, count: int = 1) -> Event:
        """The `count`-th event of these types."""

        def found() -> list[Event]:
            return [e for e in self.events if e["type"] in types]

        with self._arrived:
            assert self._arrived.wait_for(lambda: len(found()) >= count or self._is_over, 30), self.events
        assert len(found()) >= count, self.events
        return found()[count - 1]

    def close(self) -> None:
        stream = self._answer.extensions["network_stream"]
        stream.get_extra_info("socket").shutdown(sockets.SHUT_RDWR)  # wakes the thread that reads
        self._thread.join()
        self._http.close()


@contextmanager
def watching(server: Server, name: str, after: str | None = None) -> Iterator[Watcher]:
    watcher = Watcher(server, name, after)
    try:
        yield watcher
    finally:
        watcher.close()


def new_session(server: Server, **fields: Any) -> str:
    answer = server.post("/v1/sessions", fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


def turn(server: Server, name: str, prompt: str, **fields: Any) -> list[Event]:
    """The events of one turn, from `user` to its end."""
    begun = server.post(f"/v1/sessions/{name}/turns", {"prompt": prompt, **fields})
    assert begun.status_code == 202, begun.text
    with watching(server, name, begun.json()["after"]) as watcher:
        watcher.wait_for(*ENDS)
        return [e for e in watcher.events if e["type"] != "session"]


def error(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_session_is_made_driven_and_shown(server: Server, place: Path) -> None:
    name = new_session(server)
    events = turn(server, name, TELL)
    assert events[0] == {"type": "user", "text": TELL, "turn": 1}
    assert "".join(e["delta"] for e in events if e["type"] == "text").strip() and events[-1]["type"] == "turn_done"
    done = turn(server, name, ASK)[-1]
    assert done["text"].strip() == KNOWN and done["usage"]["from_memory"] > 0 and done["usage"]["prefilled_again"] == 0
    shown = server.get(f"/v1/sessions/{name}").json()
    assert (shown["turns"], shown["workspace"], shown["state"]) == (2, str(place), "idle")
    assert [t["prompt"] for t in shown["branches"][0]["turns"]] == [TELL, ASK]
    assert shown["context_used"] == done["usage"]["context_used"]
    logged = server.get(f"/v1/sessions/{name}/events").json()["data"]
    assert [(e["turn"], e["text"]) for e in logged if e["type"] == "user"] == [(1, TELL), (2, ASK)]
    assert server.get("/v1/sessions").json()["data"][0]["name"] == name
    usage = server.get(f"/v1/sessions/{name}/usage").json()
    assert usage["resident_tokens"] > 0 and usage["prefilled_again"] == 0 and usage["output_tokens"] > 0


def test_two_watchers_see_the_same_and_one_that_comes_late_sees_the_turn_whole(server: Server) -> None:
    name = new_session(server)
    with watching(server, name) as one, watching(server, name) as two:
        server.post(f"/v1/sessions/{name}/turns", {"prompt": RENAME})
        one.wait_for("approval_needed")
        with watching(server, name) as late:
            late.wait_for("approval_needed")
            assert [e["type"] for e in late.events][:2] == ["session", "user"]
            assert late.events[0]["turn"] == 1 and late.events[0]["state"] == "running"
            call = one.wait_for("approval_needed")
            assert server.post(f"/v1/sessions/{name}/approvals/{call['id']}", {"approve": False}).status_code == 200
            for watcher in (one, two, late):
                watcher.wait_for(*ENDS)
        assert one.events[1:] == two.events[1:] == late.events[1:]
        assert one.wait_for("approval_done") == {"type": "approval_done", "id": call["id"], "approved": False}


def test_an_edit_waits_for_an_answer_and_the_first_answer_counts(server: Server, place: Path) -> None:
    name, file = new_session(server), place / "net" / "fetcher.py"
    before = file.read_text()
    with watching(server, name) as watcher:
        server.post(f"/v1/sessions/{name}/turns", {"prompt": RENAME})
        call = watcher.wait_for("approval_needed")
        assert file.read_text() == before and "fetch_page" in call["arguments"]
        path = f"/v1/sessions/{name}/approvals"
        assert error(server.post(f"{path}/call_1_1", {"approve": True})) == (404, "approval_not_found")
        assert error(server.post(f"{path}/{call['id']}", {"approve": "yes"})) == (400, "invalid_value")
        assert server.post(f"{path}/{call['id']}", {"approve": True}).json() == {"id": call["id"], "approved": True}
        assert error(server.post(f"{path}/{call['id']}", {"approve": False})) == (409, "approval_answered")
        watcher.wait_for("turn_done")
    assert "fetch_page" in file.read_text() != before
    file.write_text(before)
    assert turn(server, name, RENAME, approve="read")[-1]["type"] == "turn_done" and file.read_text() == before


def test_an_answer_may_say_why_not_or_always(server: Server, place: Path) -> None:
    name, file = new_session(server), place / "net" / "fetcher.py"
    before = file.read_text()
    with watching(server, name) as watcher:
        server.post(f"/v1/sessions/{name}/turns", {"prompt": RENAME})
        call = watcher.wait_for("approval_needed")
        assert (call["always_rule"], call["always_mode"]) == ("", "edit") and call["preview"][0].startswith(
            "net/fetcher.py: "
        )
        path = f"/v1/sessions/{name}/approvals/{call['id']}"
        assert error(server.post(path, {"approve": False, "always": True})) == (400, "invalid_value")
        assert server.post(path, {"approve": False, "reason": "not now"}).status_code == 200
        done = watcher.wait_for("approval_done")
        assert done == {"type": "approval_done", "id": call["id"], "approved": False, "reason": "not now"}
        assert watcher.wait_for("tool_result")["output"] == "error: the user refused this call of edit: not now"
        watcher.wait_for(*ENDS)
    with watching(server, name) as watcher:
        server.post(f"/v1/sessions/{name}/turns", {"prompt": RENAME})
        call = watcher.wait_for("approval_needed")
        assert (
            server.post(f"/v1/sessions/{name}/approvals/{call['id']}", {"approve": True, "always": True}).status_code
            == 200
        )
        assert watcher.wait_for("approval_done")["always"] == "mode: edit"
        watcher.wait_for("turn_done")
    assert "fetch_page" in file.read_text()
    file.write_text(before)


def test_a_turn_under_way_is_alone_and_can_be_cancelled(server: Server) -> None:
    name = new_session(server)
    with watching(server, name) as watcher:
        server.post(f"/v1/sessions/{name}/turns", {"prompt": RENAME})
        watcher.wait_for("approval_needed")
        busy = (409, "turn_running")
        assert error(server.post(f"/v1/sessions/{name}/turns", {"prompt": ASK})) == busy
        assert error(server.post(f"/v1/sessions/{name}/rewind", {"turn": 0})) == busy
        assert error(server.http().delete(f"/v1/sessions/{name}")) == busy
        assert server.post(f"/v1/sessions/{name}/cancel", {}).json() == {"cancelled": True}
        watcher.wait_for("interrupted")
    assert server.post(f"/v1/sessions/{name}/cancel", {}).json() == {"cancelled": False}
    assert [t["state"] for t in server.get(f"/v1/sessions/{name}").json()["branches"][0]["turns"]] == ["interrupted"]
    assert turn(server, name, TELL)[-1]["type"] == "turn_done"


def test_fork_and_rewind_keep_what_was_left(server: Server) -> None:
    name = new_session(server)
    for prompt in (TELL, ASK, WHERE := "where is load_page defined?"):
        turn(server, name, prompt)
    fork = server.post(f"/v1/sessions/{name}/fork", {"turn": 1, "name": f"{name}-fork"})
    assert fork.status_code == 201 and fork.json()["turns"] == 1
    done = turn(server, f"{name}-fork", ASK)[-1]
    assert done["text"].strip() == KNOWN and done["usage"]["prefilled_again"] == 0 and done["usage"]["from_disk"] > 0
    with watching(server, name) as watcher:
        back = server.post(f"/v1/sessions/{name}/rewind", {"turn": 1}).json()
        assert back["turns"] == 1 and back["branches"] == 2
        assert watcher.wait_for("rewound")["turns"] == 1
    assert turn(server, name, ASK)[-1]["text"].strip() == KNOWN
    tree = server.get(f"/v1/sessions/{name}").json()["branches"]
    left = next(b for b in tree if not b["is_current"])
    assert [t["prompt"] for t in left["turns"]] == [TELL, ASK, WHERE]
    assert server.post(f"/v1/sessions/{name}/rewind", {"branch": left["id"]}).json()["turns"] == 3
    assert turn(server, name, ASK)[-1]["text"].strip() == KNOWN
    old = server.get(f"/v1/sessions/{name}/events?branch={left['id']}").json()["data"]
    assert old[0] == {"type": "user", "text": TELL, "turn": 1}


def test_what_is_not_possible_says_why(server: Server, place: Path) -> None:
    name = new_session(server, name="mine")
    sessions = "/v1/sessions"
    assert error(server.post(sessions, {"name": "mine"})) == (409, "session_exists")
    assert server.post(sessions, {"name": "mine", "resume": True}).json()["name"] == name
    assert error(server.post(sessions, {"name": "../x"})) == (400, "invalid_value")
    assert error(server.post(sessions, {"workspace": "/no/such"})) == (400, "invalid_value")
    assert error(server.post(sessions, {"workspace": "/", "name": "mine", "resume": True}))[0] == 409
    assert error(server.get(f"{sessions}/nobody")) == (404, "session_not_found")
    assert error(server.get(f"{sessions}/a%2Fb"))[0] == 404
    for body in ({"prompt": " "}, {"prompt": 7}, {}, {"prompt": "x", "approve": "maybe"}):
        assert error(server.post(f"{sessions}/mine/turns", body))[0] == 400
    for place_ in ({"turn": 7}, {"token": 10**6}, {"branch": 999}, {}, {"turn": 1, "branch": 1}, {"turn": -1}):
        assert error(server.post(f"{sessions}/mine/rewind", place_))[0] == 400, place_
    assert error(server.post(f"{sessions}/mine/fork", {"turn": 9}))[0] == 400
    assert error(server.post(f"{sessions}/mine/fork", {"name": "mine"}))[0] == 400
    assert error(server.get(f"{sessions}/mine/events?branch=x"))[0] == 400
    assert error(server.get(f"{sessions}/mine/events?branch=999"))[0] == 400
    assert error(server.get(f"{sessions}/mine/stream?after={'x' * 100}"))[0] == 400
    with server.http() as http:
        assert http.delete(f"{sessions}/mine").json()["deleted"] is True
        assert error(http.delete(f"{sessions}/mine")) == (404, "session_not_found")


def test_a_session_is_made_only_where_it_may_be_and_named_after_its_prompt(server: Server, place: Path) -> None:
    first, moved = place.parent / "first", place.parent / "moved"
    first.mkdir()
    with server.http() as http:

        def post(workspace: Path, **body: Any) -> tuple[int, Any]:
            answer = http.post("/v1/sessions", json={"workspace": str(workspace), **body})
            return answer.status_code, answer.json()

        status, value = post(first, resume=True, create=False)
        assert (status, value["error"]["code"]) == (404, "no_session")
        status, value = post(first, prompt="Fix the bug, please")
        assert (status, value["name"]) == (201, "fix-the-bug-please")
        assert post(first, resume=True, create=False)[1]["name"] == "fix-the-bug-please"
        http.post("/v1/sessions", json={"workspace": str(first), "name": "closed"})
        first.rename(moved)
        status, value = post(moved, resume=True, create=False)
        assert (status, value["error"]["code"]) == (404, "session_moved")
        assert f"holdfast sessions move closed {moved}" in value["error"]["message"]


def test_a_watcher_that_fell_behind_is_told_to_read_again(server: Server) -> None:
    name = new_session(server)
    begun = server.post(f"/v1/sessions/{name}/turns", {"prompt": TELL}).json()
    with watching(server, name, begun["after"]) as watcher:
        watcher.wait_for("turn_done")
        middle = watcher.ids[3]
        rest = watcher.events[4:]
    with watching(server, name, middle) as again:  # within the last turn nothing is missed
        again.wait_for("turn_done")
        assert again.events[1:] == rest
    turn(server, name, ASK)
    for old in (middle, "00000000.3", "nonsense"):
        with watching(server, name, old) as late:
            late.wait_for("reload")


def test_users_have_sessions_and_workspaces_of_their_own(tmp_path: Path) -> None:
    places = {name: make_workspace(tmp_path / name) for name in ("ann", "bob")}
    users = tmp_path / "users.json"
    users.write_text(
        json.dumps(
            [{"name": n, "token": f"token-of-{n}-0000", "workspaces": [str(p)]} for n, p in places.items()]
            + [{"name": "eve", "token": "token-of-eve-0000"}]
        )
    )
    with served(tmp_path / "home", users=users) as server:
        ann, bob, eve = (server.http(Authorization=f"Bearer token-of-{n}-0000") for n in ("ann", "bob", "eve"))
        for http in (ann, bob):
            assert http.post("/v1/sessions", json={"name": "work"}).status_code == 201
        assert ann.get("/v1/sessions/work").json()["workspace"] == str(places["ann"])
        assert [s["name"] for s in bob.get("/v1/sessions").json()["data"]] == ["work"]
        assert bob.get("/v1/sessions/work").json()["workspace"] == str(places["bob"])
        assert error(eve.get("/v1/sessions/work")) == (404, "session_not_found")
        assert error(eve.post("/v1/sessions", json={})) == (403, "workspace_forbidden")
        for foreign in (str(places["bob"]), "/", f"{places['ann']}/../bob", str(places["ann"]) + "x"):
            assert error(ann.post("/v1/sessions", json={"workspace": foreign})) == (403, "workspace_forbidden")
        assert ann.post("/v1/sessions", json={"workspace": str(places["ann"] / "net")}).status_code == 201
        assert ann.get("/v1/workspaces").json()["data"] == [str(places["ann"])]
        for path in ("ann%2Fwork", "ann/work"):
            assert error(bob.get(f"/v1/sessions/{path}"))[0] == 404
        for method, path in [
            ("POST", "turns"), ("POST", "cancel"), ("POST", "fork"), ("POST", "rewind"), ("POST", "approvals/call_1_1"),
            ("GET", "stream"), ("GET", "events"), ("GET", "usage"),
        ]:  # fmt: skip
            body = {"prompt": "x", "approve": "ask", "turn": 0} if path == "turns" else {"approve": True, "turn": 0}
            answer = eve.request(method, f"/v1/sessions/work/{path}", **({"json": body} if method == "POST" else {}))
            assert error(answer) == (404, "session_not_found"), path


def test_a_workspace_replaced_by_a_link_to_another_users_files_is_not_entered(tmp_path: Path) -> None:
    places = {name: make_workspace(tmp_path / name) for name in ("ann", "bob")}
    users = tmp_path / "users.json"
    entries = [{"name": n, "token": f"token-of-{n}-0000", "workspaces": [str(p)]} for n, p in places.items()]
    users.write_text(json.dumps(entries))
    work, theirs = places["ann"] / "net", places["bob"] / "net" / "fetcher.py"
    before = theirs.read_text()
    with served(tmp_path / "home", users=users) as server:
        ann = server.http(Authorization="Bearer token-of-ann-0000")
        assert ann.post("/v1/sessions", json={"workspace": str(work), "name": "work"}).status_code == 201
        work.rename(places["ann"] / "gone")
        work.symlink_to(theirs.parent)
        assert ann.post("/v1/sessions/work/fork", json={"name": "fork"}).status_code == 201
        answer = ann.post("/v1/sessions/fork/turns", json={"prompt": "replace load_page with x in fetcher.py"})
        assert error(answer) == (400, "invalid_value") and "is reached through a link" in answer.text
        assert error(ann.post("/v1/sessions", json={"workspace": str(work)})) == (403, "workspace_forbidden")
        assert error(ann.post("/v1/sessions", json={"workspace": "\0"})) == (400, "invalid_value")
        # the session that is open has its own directory still
        reading = server.running.service.agent.sessions._open["ann/work"].session.toolbox
        for is_there in (True, False):
            call = run_tool(reading.tools, "read", '{"path": "fetcher.py"}', Context(reading.workspace))
            assert asyncio.run(call).ok is is_there
            (places["ann"] / "gone" / "fetcher.py").unlink(missing_ok=True)
    assert theirs.read_text() == before


def test_a_restart_finds_the_session_with_nothing_prefilled_again(tmp_path: Path) -> None:
    place = make_workspace(tmp_path / "ws")
    with served(tmp_path / "home", workspace=place) as server:
        name = new_session(server)
        turn(server, name, TELL)
    with served(tmp_path / "home", workspace=place) as server:
        assert new_session(server, resume=True) == name
        done = turn(server, name, ASK)[-1]
        assert done["text"].strip() == KNOWN
        assert done["usage"]["from_disk"] > 0 and done["usage"]["prefilled_again"] == 0
