"""Promises of `holdfast sessions list`: what people talk in is a row, what a server keeps for its clients one line."""

import json
from contextlib import closing
from pathlib import Path

import pytest

import agent.cli
from agent.stores import Stores
from memory import BlobStore, Database, ResponseStore, SessionStore, SnapshotStore, StoredResponse


def listed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert agent.cli.main(["sessions", "list", *options]) == 0
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


def test_a_data_directory_is_backed_up_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    assert agent.cli.main(["backup", str(tmp_path / "file")]) == 2
    assert "nothing to back up" in capsys.readouterr().err
    with closing(Database(tmp_path / "home")) as database:
        SessionStore(database).create("/w", "m", "work")
    assert agent.cli.main(["backup", str(tmp_path / "file")]) == 0
    assert agent.cli.main(["restore", str(tmp_path / "file")]) == 1
    assert "add --replace" in capsys.readouterr().err
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "new"))
    assert agent.cli.main(["restore", str(tmp_path / "file")]) == 0
    assert agent.cli.main(["sessions", "list"]) == 0
    assert "work" in capsys.readouterr().out


def test_a_list_costs_the_same_few_statements_for_each_session(tmp_path: Path) -> None:
    with closing(Database(tmp_path)) as database, closing(SnapshotStore(database, BlobStore(tmp_path))) as snapshots:
        sessions = SessionStore(database)
        stores = Stores(sessions, snapshots, ResponseStore(database, sessions))
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
                values = [stores.summary(session) for session in sessions.all()]
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str, named: str,
    is_repaired: bool,
) -> None:  # fmt: skip
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
        assert agent.cli.main(["sessions", "verify"]) == 0
        assert "all is well" in capsys.readouterr().out
        database.rows("PRAGMA foreign_keys = OFF")
        with database.transaction() as connection:
            connection.execute(damage)
    assert agent.cli.main(["sessions", "verify"]) == 1
    assert named in capsys.readouterr().out
    assert agent.cli.main(["sessions", "verify", "--repair"]) == (0 if is_repaired else 1)
    out = capsys.readouterr().out
    assert ("1 repaired" in out) == is_repaired and ("left as they are" in out) != is_repaired
    assert "forgotten" not in out
    assert agent.cli.main(["sessions", "verify"]) == (0 if is_repaired else 1)
