"""Promises of the logs: what was acknowledged is there, in order and unharmed, and one process writes at a time."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.memory import NAME_PATTERN, Database, SessionInfo, SessionInUse, SessionLog, SessionStore, StoreError

WRITER = """
import sys
from pathlib import Path
from holdfast.memory import Database, SessionStore
store = SessionStore(Database(Path(sys.argv[1])))
log = store.open(store.find("work") or store.create("/w", "m", "work"))
log.start_turn([("user", {"text": "go"})], [1, 2])
for n in range(100_000):
    log.append([("text", {"n": n})], [n, n])
    print(n, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(Database(tmp_path))


def reopened(home: Path, log: SessionLog) -> SessionLog:
    log.close()
    store = SessionStore(Database(home))
    return store.open(named(store, log.session.name))


def named(store: SessionStore, name: str) -> SessionInfo:
    found = store.find(name)
    assert found is not None
    return found


def test_what_was_appended_is_read_back_by_another_process(store: SessionStore, tmp_path: Path) -> None:
    log = store.open(store.create("/w", "m"))
    assert log.start_turn([("user", {"text": "grüß “dich”\n"})], [0, 1, 2**31 - 1]) == 1
    log.append([("text", {"delta": "a"}), ("tool_call", {"id": "1"})], [5])
    log.append([], [6, 7])
    log.end_turn("done", [("turn_done", {})])
    again = reopened(tmp_path, log)
    assert again.ids.tolist() == log.ids.tolist() == [0, 1, 2**31 - 1, 5, 6, 7]
    seen = [(e.seq, e.turn, e.position, e.type, e.payload) for e in again.events()]
    assert seen == [
        (1, 1, 3, "user", {"text": "grüß “dich”\n"}),
        (2, 1, 4, "text", {"delta": "a"}),
        (3, 1, 4, "tool_call", {"id": "1"}),
        (4, 1, 6, "turn_done", {}),
    ]
    assert [e.seq for e in again.events(min_position=4)] == [2, 3, 4]
    assert again.start_turn([], []) == 2 and again.turns() == [(1, "done"), (2, "open")]


def test_an_interrupted_turn_goes_on_without_its_tokens_and_its_branch_keeps_them(
    store: SessionStore, tmp_path: Path
) -> None:
    log = store.open(store.create("/w", "m"))
    log.start_turn([("user", {"text": "one"})], [1, 2])
    log.end_turn("done")
    log.start_turn([("user", {"text": "two"})], [3, 4, 5])
    log.append([("rolled", {})])
    log.end_turn("interrupted", [("notice", {})])
    log.empty_turn(log.events()[1].seq)
    for again in (log, reopened(tmp_path, log)):
        assert again.ids.tolist() == [1, 2] and again.turns() == [(1, "done"), (2, "interrupted")]
        assert [e.type for e in again.events()] == ["user", "user"]
    again.start_turn([("user", {"text": "three"})], [6])
    again.append([], [7])
    again.end_turn("done")
    again = reopened(tmp_path, again)
    assert again.ids.tolist() == [1, 2, 6, 7] and again.num_turns == 3
    old = min(b.id for b in store.branches(again.session))
    again.switch(old)
    assert again.ids.tolist() == [1, 2, 3, 4, 5]


def test_a_turn_left_open_is_found_open(store: SessionStore, tmp_path: Path) -> None:
    log = store.open(store.create("/w", "m"))
    log.start_turn([], [1])
    again = reopened(tmp_path, log)
    assert again.open_turn == 1
    again.end_turn("interrupted")
    assert reopened(tmp_path, again).open_turn is None


def test_an_append_that_fails_changes_nothing(store: SessionStore, tmp_path: Path) -> None:
    log = store.open(store.create("/w", "m"))
    log.start_turn([("user", {})], [1, 2])
    pages = log._database.rows("PRAGMA page_count")[0][0]
    log._database.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        log.append([("text", {"delta": "x" * 100_000})], range(10_000))
    assert log.ids.tolist() == [1, 2]
    log._database.rows(f"PRAGMA max_page_count = {pages + 1000}")
    log.append([("text", {})], [3])
    again = reopened(tmp_path, log)
    assert again.ids.tolist() == [1, 2, 3] and [e.seq for e in again.events()] == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_sigkill(store: SessionStore, tmp_path: Path, seed: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = -1
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged == 5 + 9 * seed:
            break
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    writer.communicate()
    log = store.open(named(store, "work"))
    events = [e.payload["n"] for e in log.events()[1:]]
    assert events == list(range(len(events))) and len(events) in (acknowledged + 1, acknowledged + 2)
    assert log.ids.tolist() == [1, 2, *(n for n in events for _ in range(2))]
    assert log.open_turn == 1


def test_a_second_process_is_told_who_has_the_session(store: SessionStore, tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline()
    session = named(store, "work")
    with pytest.raises(StoreError, match=rf"session work is open in another process \(pid {writer.pid}\)"):
        store.open(session)
    store.open(store.create("/w", "m", "other")).close()  # another session is free
    writer.kill()
    writer.communicate()
    store.open(session).close()


def test_a_session_is_open_once_in_a_process_too(store: SessionStore) -> None:
    session = store.create("/w", "m")
    log = store.open(session)
    with pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        store.open(session)
    log.close()
    store.open(session).close()


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        ("UPDATE tokens SET ids = x'0000000109000000' WHERE start = 2", "token 2 of its token log"),
        ("UPDATE tokens SET ids = x'000000' WHERE start = 2", "token 2 of its token log"),
        ("UPDATE tokens SET start = 3 WHERE start = 2", "token 2 of its token log"),
        ("DELETE FROM tokens WHERE start = 0", "token 0 of its token log"),
        ("DELETE FROM tokens WHERE start = 4", "token 4 of its token log"),
        ("DELETE FROM events WHERE seq = 2", "event 2 of its event log"),
        ("DELETE FROM events WHERE seq = 1", "event 1 of its event log"),
    ],
)
def test_damage_is_found_and_named(store: SessionStore, tmp_path: Path, damage: str, where: str) -> None:
    log = store.open(store.create("/w", "m", "work"))
    log.start_turn([("user", {})], [1, 2])
    log.append([("text", {})], [8, 9])
    log.append([("text", {})], [10])
    log.close()
    connection = sqlite3.connect(tmp_path / "holdfast.db", isolation_level=None)
    assert connection.execute(damage).rowcount == 1
    with pytest.raises(StoreError, match=f"session work is damaged at {where}: restore .* or start a fresh session"):
        store.open(named(store, "work")).events()


def test_sessions_are_found_by_name_and_by_workspace(store: SessionStore) -> None:
    first, second = store.create("/home/me/shop", "m"), store.create("/home/me/shop", "m", "try.2")
    elsewhere = store.create("/home/you/shop", "m")
    assert [first.name, elsewhere.name] == ["shop-1", "shop-2"]
    assert store.latest("/home/me/shop", "m") == second
    log = store.open(first)
    log.start_turn([], [])
    log.close()
    used = store.latest("/home/me/shop", "m")
    assert used is not None and used.name == "shop-1"
    assert store.latest("/home/me/shop", "another") is None and store.latest("/nowhere") is None
    assert store.find("try.2") == second and store.find("try") is None
    assert [s.name for s in store.all()] == ["shop-1", "shop-2", "try.2"]


def test_a_taken_name_is_refused(store: SessionStore) -> None:
    store.create("/w", "m", "work")
    with pytest.raises(StoreError, match="session work exists already"):
        store.create("/w", "m", "work")


@pytest.mark.parametrize("name", ["", ".", "-x", "a b", "a/b", "../x", "é", "x" * 65, "a\n", "\udce9"])
def test_a_name_that_cannot_be_used_is_refused(store: SessionStore, name: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be used: take 1-64 letters"):
        store.create("/w", "m", name)


@pytest.mark.parametrize(
    ("workspace", "name"), [("/", "session-1"), ("/tmp/my project!", "my-project-1"), ("/tmp/äöü", "session-1")]
)
def test_a_session_without_a_name_gets_one_from_its_workspace(store: SessionStore, workspace: str, name: str) -> None:
    assert store.create(workspace, "m").name == name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Where is Session.turn defined?\nAnd why?", "where-is-session.turn-defined-and-why"),
        ("Prüfe die Größe, “bitte”!", "prufe-die-grosse-bitte"),
        ("review\n\n<stdin>\n+ line\n</stdin>", "review"),
        ("-rf / --no-preserve-root", "rf-no-preserve-root"),
        ("../../etc/passwd \x1b[2J $(reboot) `x`", "etc-passwd-2j-reboot-x"),
        ("word " * 100, "word-word-word-word-word-word-word-word"),
        ("x" * 500, "x" * 40),
        ("读取配置文件", "w-1"),
        (" \n ?!", "w-1"),
        ("", "w-1"),
    ],
)
def test_a_session_is_named_after_its_first_prompt(store: SessionStore, prompt: str, name: str) -> None:
    assert store.create("/w", "m", prompt=prompt).name == name
    again = store.create("/w", "m", prompt=prompt).name
    assert again != name and re.fullmatch(NAME_PATTERN, again)
    assert store.create("/w", "m", owner="ann", prompt=prompt).name == f"ann/{name}"


def test_a_fork_is_named_after_what_it_was_forked_from(store: SessionStore) -> None:
    session = store.create("/w", "m", prompt="fix the bug")
    assert [store.fork(session).name for _ in range(2)] == ["fix-the-bug-2", "fix-the-bug-3"]
    assert store.fork(store.create("/w", "m", owner="ann", prompt="fix the bug")).name == "ann/fix-the-bug-2"


def test_the_session_used_last_is_the_latest_whatever_the_clock_said(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = store.create("/w", "m", "first"), store.create("/w", "m", "second")

    def use(session: SessionInfo, now: float) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now)
            log = store.open(session)
            log.start_turn([], [])
            log.end_turn("done")
            log.close()

    use(first, 9e9)  # a clock far in the future
    use(second, 1e9)  # set right, or back
    assert [s.name for s in store.all()] == ["second", "first"]
    latest = store.latest("/w", "m")
    assert latest is not None and latest.name == "second" and latest.used_at == 1e9


def test_a_session_that_never_had_a_turn_is_found_to_be_used(store: SessionStore) -> None:
    empty = store.create("/w", "m")
    store.create("/w", "m", "named")
    assert store.unused("/w", "m") == empty
    assert store.unused("/w", "other") is None and store.unused("/v", "m") is None
    assert store.unused("/w", "m", "ann") is None
    log = store.open(empty)
    log.start_turn([], [1])
    log.end_turn("done")
    log.rewind(turn=0)
    log.close()
    assert store.unused("/w", "m") is None


def test_a_session_moves_to_another_directory(store: SessionStore, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    session = store.create(str(old), "m", "work")
    assert session.inode == old.stat().st_ino
    os.rename(old, new)
    log = store.open(session)
    with pytest.raises(SessionInUse):
        store.move(session, str(new))
    log.close()
    moved = store.move(session, str(new))
    assert (moved.workspace, moved.inode) == (str(new), session.inode) and store.find("work") == moved
    assert store.latest(str(new), "m") == moved and store.latest(str(old)) is None
