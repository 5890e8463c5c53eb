"""Promises of `holdfast sessions`: what is listed and shown, where a session may move, what a rewind leaves.

Turns run in this process on a scripted engine.
"""

import json
import os
import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import holdfast.agent.models.opened
from holdfast.agent.cli.main import main
from holdfast.agent.session.catalog import SessionCatalog
from holdfast.memory import BlobStore, Database, ResponseStore, SessionStore, SnapshotStore, StoredResponse
from tests.agent.scripted_engine import Reply, ScriptedEngine, calls, make_model, says

Run = Callable[..., list[dict[str, object]]]


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["sessions", "list", *options]) == 0
    return capsys.readouterr().out


def test_responses_of_a_server_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    database = Database(tmp_path)
    sessions = SessionStore(database)
    responses = ResponseStore(database, sessions)
    held = responses.session("ann", "0123456789")
    for number in range(3):
        responses.put(StoredResponse(f"r{number}", "ann", held.id, 0, b"", 1.0, b"x"), [1, 2], 0, 0)
    assert listed(capsys).splitlines() == ["there is no session yet", "responses of ann: 3"]
    sessions.create("/home/me/project", "m")
    lines = listed(capsys).splitlines()
    assert [line.split()[0] for line in lines] == ["session", "project-1", "responses"]
    assert lines[-1] == "responses of ann: 3"
    values = json.loads(listed(capsys, "--json"))
    assert [value["name"] for value in values] == ["project-1", held.name]
    assert (values[1]["owner"], values[1]["responses"]) == ("ann", 3)


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(holdfast.agent.models.opened, "Engine", ScriptedEngine)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    (tmp_path / "ws").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "ws" / name).write_text("fox = 1\n")
    return tmp_path / "ws"


@pytest.fixture
def run(ws: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """One turn in a directory, as events."""

    def turn(prompt: str, *options: str, replies: list[Reply], code: int = 0, at: Path = ws) -> list[dict[str, object]]:
        model = make_model(ws.parent / f"model-{len(list(ws.parent.glob('model-*')))}", replies)
        arguments = ["run", prompt, "--json", "--approve", "edit", "--workspace", str(at), "--model", str(model)]
        capsys.readouterr()
        assert main([*arguments, *options]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return turn


def sessions(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["sessions", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def notices(events: list[dict[str, object]]) -> str:
    return "\n".join(str(event["message"]) for event in events if event["type"] == "notice")


def test_a_list_says_what_each_session_began_with(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("Where is\nforward defined?", replies=[says("There.")])
    run("Another thing", "--new", replies=[says("Yes.")])
    sessions(capsys, "fork", "where-is-forward-defined", "--turn", "1")
    header, *rows = sessions(capsys, "list")
    assert header.split()[-2:] == ["first", "prompt"]
    assert [row.split()[0] for row in rows] == [
        "where-is-forward-defined-2",
        "another-thing",
        "where-is-forward-defined",
    ]
    assert rows[0].endswith("  Where is forward defined?") and rows[1].endswith("  Another thing")
    values = json.loads(sessions(capsys, "list", "--json")[0])
    assert values[2]["first_prompt"] == "Where is\nforward defined?"


def test_show_has_answers_and_what_a_fork_shares(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    edit = calls("edit", path="a.py", old="fox", new="cat")
    run("first", replies=[edit, says("It is done.\nAll of it.")])
    run("second", replies=[says("Two. " * 60)])
    shown = "\n".join(sessions(capsys, "show", "first"))
    assert "  It is done. All of it.\n" in shown and "Two. Two." in shown and "…" in shown
    full = "\n".join(sessions(capsys, "show", "first", "--full"))
    assert "          > first\n" in full and "          All of it.\n" in full and "Two. " * 59 in full
    assert '· edit {"path": "a.py"' in full
    tokens = json.loads(sessions(capsys, "show", "first", "--json")[0])["branches"][0]["turns"][0]["end"]
    sessions(capsys, "fork", "first", "--turn", "1", "--as", "mine")
    line = f"forked from first: 1 turns and {tokens:,} tokens are shared with it"
    assert line in sessions(capsys, "show", "mine")
    assert json.loads(sessions(capsys, "show", "mine", "--json")[0])["forked_from"] == {
        "name": "first",
        "turns": 1,
        "tokens": tokens,
    }
    sessions(capsys, "rm", "first")
    assert line.replace("first", "a session that was removed", 1) in sessions(capsys, "show", "mine")


def test_a_rewind_brings_files_along_or_names_those_that_stay(
    run: Run, ws: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(path: str, old: str, new: str) -> Reply:
        return calls("edit", path=path, old=old, new=new)

    run("first", replies=[edit("a.py", "fox", "cat"), says("One.")])
    run("second", replies=[edit("b.py", "fox", "cat"), edit("b.py", "nothing", "x"), says("Two.")])
    run("third", replies=[edit("a.py", "nothing", "x"), says("Three.")])
    assert sessions(capsys, "rewind", "first", "--turn", "2") == [sessions_line(capsys, 2)]
    lines = sessions(capsys, "rewind", "first", "--turn", "1", "--conversation")
    assert lines[1] == "what it left behind changed b.py: the files stay as they are on disk"
    assert (ws / "b.py").read_text() == "cat = 1\n"
    assert sessions(capsys, "branches", "first")[0].startswith("  branch 1, 3 turns, ")
    run("other", replies=[edit("a.py", "cat", "dog"), says("Other.")])
    current = sessions(capsys, "branches", "first")[-1]
    assert current.startswith("* branch 3, 2 turns, ") and current.endswith("from turn 1 of branch 1: other")
    value = json.loads(sessions(capsys, "rewind", "first", "--branch", "1", "--conversation", "--json")[0])
    assert value["files_changed"] == ["a.py"] and value["turns"] == 3
    value = json.loads(sessions(capsys, "rewind", "first", "--turn", "0", "--files", "--json")[0])
    assert value["files"] == ["a.py", "b.py"] and value["turns"] == 3
    assert (ws / "a.py").read_text() == (ws / "b.py").read_text() == "fox = 1\n"
    assert sessions(capsys, "rewind", "first", "--turn", "3")[1].startswith("put back as they were then: ")
    assert (ws / "b.py").read_text() == "cat = 1\n"


def sessions_line(capsys: pytest.CaptureFixture[str], turn: int) -> str:
    """What a rewind to the end of that turn, where the session is now, says."""
    value = json.loads(sessions(capsys, "show", "first", "--json")[0])
    current = next(branch for branch in value["branches"] if branch["is_current"])
    return f"first goes on after turn {turn} ({current['tokens']:,} tokens), on branch {current['id']}"


def test_a_moved_workspace_is_known_and_its_session_moves(
    run: Run, ws: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("first", replies=[says("One.")])
    moved = ws.parent / "it is moved"
    os.rename(ws, moved)
    command = f"holdfast sessions move first {shlex.quote(str(moved))}"
    said = f"session first works in {ws}, which is gone: if it was moved, holdfast sessions move first DIR"
    assert said in "\n".join(sessions(capsys, "show", "first"))
    (error,) = run("more", "--session", "first", replies=[], code=1, at=moved)
    assert f"session first belongs to {ws}, which is gone: if it was moved here, {command}" in str(error["message"])
    said = run("more", replies=[says("New.")], at=moved)
    assert f"session first was in {ws}, which is gone" in notices(said) and f"`{command}`" in notices(said)
    assert said[-1]["session"] == "more"
    assert sessions(capsys, *shlex.split(command)[2:]) == [f"first goes on in {moved}"]
    said = run("and more", "--session", "first", replies=[says("On.")], at=moved)
    assert said[-1]["turn"] == 2 and "gone" not in notices(said)
    said = run("again", replies=[says("On.")], at=moved)
    assert said[-1]["session"] == "first", "the one used last"


def test_a_directory_with_the_name_of_one_that_is_gone_is_known_too(run: Run, ws: Path) -> None:
    run("first", replies=[says("One.")])
    os.rename(ws, ws.parent / "old")
    elsewhere = ws.parent / "deep" / "ws"
    elsewhere.mkdir(parents=True)
    assert "session first was in" in notices(run("more", replies=[says("New.")], at=elsewhere))
    os.rename(ws.parent / "old", ws)
    other = ws.parent / "other" / "ws"
    other.mkdir(parents=True)
    assert notices(run("more", replies=[says("New.")], at=other)) == ""


def test_a_session_that_never_had_a_turn_is_used_again(run: Run, ws: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("x" * 20_000, "--new", replies=[], code=1)[-1]["type"] == "error"  # it does not fit
    assert sessions(capsys, "list") == ["there is no session yet"]
    SessionStore(Database(ws.parent / "home")).create(str(ws), "scripted")  # as a page makes one
    for _ in range(2):
        run("hello", "--new", replies=[says("Hi.")])
    assert [row.split()[0] for row in sessions(capsys, "list")[1:]] == ["hello", "ws-1"]


def test_a_data_directory_is_backed_up_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    with closing(Database(tmp_path / "home")) as database:
        SessionStore(database).create("/w", "m", "work")
    assert main(["backup", str(tmp_path / "file")]) == 0
    assert main(["restore", str(tmp_path / "file")]) == 1
    assert "add --replace" in capsys.readouterr().err
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "new"))
    assert main(["restore", str(tmp_path / "file")]) == 0
    assert main(["sessions", "list"]) == 0
    assert "work" in capsys.readouterr().out


@pytest.mark.parametrize("is_directory", [False, True])
@pytest.mark.parametrize("command", ["sessions list", "sessions show work", "sessions verify --repair", "backup FILE"])
def test_a_data_directory_that_vanished_is_not_taken_for_a_new_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    is_directory: bool,
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOLDFAST_HOME", str(home))
    if is_directory:  # such as where a disk is mounted
        home.mkdir()
    assert main(command.replace("FILE", str(tmp_path / "file")).split()) == 2
    said = capsys.readouterr()
    assert (
        said.err == f"holdfast: nothing is stored in {home}: begin a session, or set HOLDFAST_HOME\n" and not said.out
    )
    assert sorted(tmp_path.rglob("*")) == ([home] if is_directory else [])


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_repair_lets_lock_files_speak_that_are_right(tmp_path: Path, is_lost: bool) -> None:
    """The id of the database, which they name, changes only where they speak of what is not there."""
    with closing(Database(tmp_path)) as database, closing(SnapshotStore(database, BlobStore(tmp_path))) as snapshots:
        sessions = SessionStore(database)
        for name in ("damaged", "sound"):
            log = sessions.open(sessions.create("/w", "m", name))
            log.start_turn([("user", {"text": "hello"})], [1])
            log.end_turn("done", [("text", {})])
            log.close()
        with database.transaction() as connection:
            connection.execute("UPDATE events SET payload = '{}' WHERE branch_id = 1 AND seq = 1")
            if is_lost:
                connection.execute("DELETE FROM sessions WHERE name = 'sound'")
        before = database.id
        _, left, repaired = SessionCatalog(sessions, snapshots, ResponseStore(database, sessions)).verify(repair=True)
        assert any("damaged is damaged at event 1" in line for line in left)
        assert (database.id != before) == is_lost == bool(repaired)


def test_a_list_costs_the_same_few_statements_for_each_session(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database, closing(SnapshotStore(database, BlobStore(tmp_path))) as snapshots:
        sessions = SessionStore(database)
        catalog = SessionCatalog(sessions, snapshots, ResponseStore(database, sessions))
        counts, steps = [], [0]
        for number in range(60):
            log = sessions.open(sessions.create("/w", "m", f"s{number}"))
            for _ in range(1 + number % 3):
                log.start_turn([], [1, 2])
                log.end_turn("done")
            log.rewind(1)
            log.close()
            if number in (19, 59):
                steps[0] = 0
                database._connection.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 10)
                values = [catalog.summary(session) for session in sessions.all()]
                database._connection.set_progress_handler(None, 0)
                counts.append(steps[0])
        assert counts[1] < 4 * counts[0]  # three times the sessions
        assert {(v["turns"], v["tokens"], v["branches"]) for v in values} == {(1, 2, 2)}


@pytest.mark.parametrize(
    ("damage", "named", "is_repaired"),
    [
        ("UPDATE responses SET body = x'00' WHERE id = 'r'", "response r", False),
        ("DELETE FROM branches WHERE id = (SELECT branch_id FROM responses)", "branch", False),
        ("UPDATE events SET payload = '{}' WHERE seq = 1", "event 1", False),
        ("UPDATE search_data SET block = zeroblob(4) WHERE id > 10", "search index", True),
    ],
    ids=["answer", "branch", "event", "search"],
)
def test_verify_looks_at_everything_and_claims_what_it_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    named: str,
    is_repaired: bool,
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    with closing(Database(tmp_path)) as database:
        sessions = SessionStore(database)
        responses = ResponseStore(database, sessions)
        held = responses.session("ann", "m")
        responses.put(StoredResponse("r", "ann", held.id, 0, b"", 1.0, b"body"), [1, 2], 0, 0)
        log = sessions.open(sessions.create("/w", "m", "work"))
        log.start_turn([("user", {"text": "lighthouse"})], [1])
        log.end_turn("done")
        log.close()
        assert main(["sessions", "verify"]) == 0
        assert "all is well" in capsys.readouterr().out
        database.rows("PRAGMA foreign_keys = OFF")
        with database.transaction() as connection:
            connection.execute(damage)
    assert main(["sessions", "verify"]) == 1
    assert named in capsys.readouterr().out
    assert main(["sessions", "verify", "--repair"]) == (0 if is_repaired else 1)
    out = capsys.readouterr().out
    assert ("1 repaired" in out) == is_repaired and ("left as they are" in out) != is_repaired
    assert "forgotten" not in out
    assert main(["sessions", "verify"]) == (0 if is_repaired else 1)
