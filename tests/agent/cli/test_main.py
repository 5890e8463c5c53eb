"""Promises of the command line: exit codes, events on stdout, one clear line for bad input, sessions across processes.

The engine is scripted (see scripted_engine); a test that needs a separate process runs the real command line on it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import holdfast.agent.cli.main
import holdfast.agent.models.opened
from holdfast.agent import VERSION
from holdfast.memory import Database, SessionStore
from tests.agent.scripted_engine import FAIL, HANG, Reply, ScriptedEngine, calls, make_model, says

ROOT = Path(__file__).parents[3]
EDIT = calls("edit", path="a.py", old="fox", new="cat")


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, with the command line on a scripted engine and its data directory."""
    monkeypatch.setattr(holdfast.agent.models.opened, "Engine", ScriptedEngine)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "a.py").write_text("def fox():\n    return 1\n")
    return tmp_path / "ws"


def run(ws: Path, *options: str, replies: list[Reply] | None = None, prompt: str = "hello") -> int:
    number = len(list(ws.parent.glob("model-*")))
    model = make_model(ws.parent / f"model-{number}", replies or [])
    return holdfast.agent.cli.main.main(["run", "--workspace", str(ws), "--model", str(model), *options, "--", prompt])


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def start(ws: Path, *arguments: str, replies: list[Reply], **options: Any) -> "subprocess.Popen[str]":
    """The command line in a separate process; `HOLDFAST_HOME` is inherited."""
    number = len(list(ws.parent.glob("model-*")))
    model = make_model(ws.parent / f"model-{number}", replies)
    command = [sys.executable, "-m", "tests.agent.scripted_engine", *arguments]
    command += ["--workspace", str(ws), "--model", str(model)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, **options)


def wait_for(process: "subprocess.Popen[str]", event_type: str) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if (event := json.loads(line))["type"] == event_type:
            return event
    raise AssertionError(process.communicate()[1])


def test_json_is_one_event_per_line_and_nothing_else(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(ws, "--json", replies=[calls("read", path="a.py"), says("Sí, “fox”.")]) == 0
    out, err = capfd.readouterr()
    events = events_of(out)
    assert [e["type"] for e in events if e["type"] not in ("text", "prefill_progress")] == [
        "tool_call",
        "tool_result",
        "turn_done",
    ]
    assert events[-1]["text"] == "Sí, “fox”." and events[-1]["usage"]["input_tokens"] > 0
    assert json.loads(next(e for e in events if e["type"] == "tool_call")["arguments"]) == {"path": "a.py"}
    assert err == ""


def test_a_person_sees_calls_answer_and_usage(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(ws, replies=[calls("read", path="a.py"), says("It has fox.")]) == 0
    out, err = capfd.readouterr()
    assert out == "· read path=a.py\n  1|def fox(): (+1 lines)\nIt has fox.\n"
    assert "new), " in err and "out · context" in err and err.count("\n") == 1


def test_a_failed_turn_is_exit_code_1(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(ws, "--json", replies=[[FAIL]]) == 1
    assert events_of(capfd.readouterr().out)[-1] == {"type": "error", "message": "the engine stopped: out of memory"}
    assert run(ws, replies=[[FAIL]]) == 1
    assert capfd.readouterr() == ("", "holdfast: the engine stopped: out of memory\n")


def test_a_workspace_goes_on_in_its_latest_session(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def session_of(*options: str) -> tuple[str, int, int]:
        assert run(ws, "--json", *options) == 0
        done = events_of(capfd.readouterr().out)[-1]
        return done["session"], done["turn"], done["usage"]["prefilled_again"] > 0

    assert session_of() == ("hello", 1, False)
    assert session_of() == ("hello", 2, True)
    assert session_of("--new") == ("hello-2", 1, False)
    assert session_of() == ("hello-2", 2, True)
    assert session_of("--session", "mine") == ("mine", 1, False)
    assert session_of("--session", "hello") == ("hello", 3, True)
    assert session_of() == ("hello", 4, True)


@pytest.mark.parametrize(("policy", "is_edited"), [("ask", False), ("read", False), ("edit", True), ("all", True)])
def test_approve_decides_about_edits(ws: Path, capfd: pytest.CaptureFixture[str], policy: str, is_edited: bool) -> None:
    assert run(ws, "--json", "--approve", policy, replies=[EDIT, says("ok")]) == (0 if is_edited else 3)
    assert ("cat" in (ws / "a.py").read_text()) is is_edited
    types = [e["type"] for e in events_of(capfd.readouterr().out)]
    assert "approval_needed" not in types


DONE = says("Replaced fox by cat in a.py: 1 replacement.")  # what the model says, even if it did not happen
AGAIN = calls("edit", path="a.py", old="cat = 1", new="cat = 2\ncow = 3")


@pytest.mark.parametrize(
    ("policy", "replies", "code", "line", "files", "not_done"),
    [
        ("read", [EDIT, DONE], 3, "nothing was changed on disk: edit of a.py was refused", [], ["refused"]),
        ("edit", [AGAIN, DONE], 0, "nothing was changed on disk: edit of a.py failed", [], ["failed"]),
        ("edit", [EDIT, DONE], 0, "changed: a.py +1 -1 · /undo", [("a.py", 1, 1)], []),
        ("edit", [AGAIN, EDIT, AGAIN, DONE], 0, "changed: a.py +3 -2 · /undo", [("a.py", 3, 2)], []),
        ("edit", [says("Replaced.")], 0, None, [], []),
    ],
)
def test_the_program_says_what_changed_on_disk(
    ws: Path,
    capfd: pytest.CaptureFixture[str],
    policy: str,
    replies: list[Reply],
    code: int,
    line: str | None,
    files: list[tuple[str, int, int]],
    not_done: list[str],
) -> None:
    (ws / "a.py").write_text("fox = 1\n")
    assert run(ws, "--approve", policy, replies=replies) == code
    lines = capfd.readouterr().err.splitlines()
    assert line in lines if line else not [said for said in lines if "changed" in said]
    (ws / "a.py").write_text("fox = 1\n")
    assert run(ws, "--approve", policy, "--json", "--new", replies=replies) == code
    *_, before, last = events_of(capfd.readouterr().out)
    assert last["type"] == "turn_done" and (before["type"] == "changes") is (line is not None)
    if line:
        assert [(f["path"], f["added"], f["removed"]) for f in before["files"]] == files
        assert [call["why"] for call in before["not_done"]] == not_done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "hi", "--workspace", "{tmp}/none"], "workspace {tmp}/none does not exist: name an existing directory"),
        (["run", "hi", "--workspace", "{tmp}/ws/a.py"], "workspace {tmp}/ws/a.py is not a directory"),
        (["chat", "--workspace", "{tmp}/none"], "does not exist"),
        (["run", ""], "the prompt is empty"),
        (["run", " \n"], "the prompt is empty"),
        (["run", "caf\udce9"], "the prompt is not valid UTF-8"),
        (["run", "hi", "--model", "{tmp}/none"], "model {tmp}/none is not a directory"),
        (["run", "hi", "--model", "{tmp}/ws"], "model {tmp}/ws has no config.json"),
        (["run", "hi", "--model", "caf\udce9"], r"model 'caf\udce9' is not a directory"),
        (["model", "inspect", "{tmp}/none"], "model {tmp}/none is not a directory"),
        (["bench", "--model", "{tmp}/none"], "model {tmp}/none is not a directory"),
        (["run"], "there is no prompt: holdfast run WORDS, or - for stdin"),
        (["run", "hi", "--approve", "yes"], "invalid choice: 'yes'"),
        (["run", "hi", "--session", "a b"], "'a b' cannot be a session's name: take 1-64 letters"),
        (["chat", "--session", "\x1b[2J"], r"'\x1b[2J' cannot be a session's name"),
        (["sessions", "fork", "x", "--as", ".."], "'..' cannot be a session's name"),
        (["run", "hi", "--ranks", "0"], "0 is not a whole number of at least 1"),
        (["run", "@{tmp}/none"], "{tmp}/none is not there: if @{tmp}/none is text, quote the prompt"),
        (["run", "see", "@{tmp}/ws"], "{tmp}/ws is not a file"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["model"], "required"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    ws: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    filled = [argument.replace("{tmp}", str(ws.parent)) for argument in arguments]
    if filled[0] in ("run", "chat") and "--model" not in filled:
        filled += ["--model", str(make_model(ws.parent / "model"))]
    assert holdfast.agent.cli.main.main(filled) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("holdfast: ") and err.count("\n") == 1
    assert words.replace("{tmp}", str(ws.parent)) in err
    assert not (ws.parent / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "hi", "--json", "--workspace", "{tmp}/none"], 2),
        (["run", "hi", "--json", "--model", "{tmp}/none"], 2),
        (["run", "hi", "--json", "--session", "a b"], 2),
        (["run", "hi", "--json", "--frobnicate"], 2),
        (["run", "", "--json"], 2),
        (["run", "--json", "hi", "--session", "elsewhere"], 1),
        (["sessions", "show", "nosuch", "--json"], 2),
        (["sessions", "rm", "--json"], 2),
        (["model", "inspect", "{tmp}/none", "--json"], 2),
        (["bench", "--json", "--layers", "3"], 2),
    ],
)
def test_json_says_failures_before_a_turn_too(
    ws: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    SessionStore(Database(ws.parent / "home")).create("/elsewhere", "scripted", "elsewhere")
    filled = [argument.replace("{tmp}", str(ws.parent)) for argument in arguments]
    if filled[0] == "run" and "--model" not in filled:
        filled += ["--model", str(make_model(ws.parent / "model"))]
    assert holdfast.agent.cli.main.main(filled) == code
    out, err = capfd.readouterr()
    (event,) = events_of(out)
    assert event.keys() == {"type", "message"} and event["type"] == "error" and err == ""


def test_an_unusable_home_is_one_line(
    ws: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(ws / "a.py" / "home"))
    assert run(ws) == 2
    assert "cannot be used: Not a directory; set HOLDFAST_HOME" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("elsewhere", "session elsewhere belongs to /elsewhere"),
        ("other", "was written by model another"),
    ],
)
def test_a_session_that_does_not_fit_is_one_line(
    ws: Path, capfd: pytest.CaptureFixture[str], option: str, words: str
) -> None:
    store = SessionStore(Database(ws.parent / "home"))
    store.create("/elsewhere", "scripted", "elsewhere")
    store.create(str(ws), "another", "other")
    assert run(ws, "--session", option) == 1
    out, err = capfd.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


def test_a_damaged_file_is_one_line(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (ws.parent / "home").mkdir()
    (ws.parent / "home" / "holdfast.db").write_bytes(b"garbage" * 1000)
    assert run(ws) == 1
    assert "holdfast.db is damaged" in capfd.readouterr().err


def test_a_model_says_where_its_output_stops(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model(ws.parent / "model", [says("word " * 500)])
    limits = model / "generation_config.json"
    limits.write_text('{"max_new_tokens": 20}')
    arguments = ["run", "hello", "--json", "--workspace", str(ws), "--model", str(model)]
    assert holdfast.agent.cli.main.main(arguments) == 0
    events = events_of(capfd.readouterr().out)
    assert events[-1]["usage"]["output_tokens"] == 20
    assert {"type": "notice", "message": "the answer was cut at 20 tokens"} in events
    for wrong in ('{"max_new_tokens": 0}', "[]", "{", "[" * 100_000, " " * 2_000_000, None):
        if wrong is None:
            limits.unlink()
            os.mkfifo(limits)
        else:
            limits.write_text(wrong)
        assert holdfast.agent.cli.main.main(arguments) == 2
        assert "generation_config.json" in events_of(capfd.readouterr().out)[0]["message"]


def test_help_does_not_load_the_engine() -> None:
    code = (
        "import sys, holdfast.agent.cli.main\ntry: holdfast.agent.cli.main.main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('torch', 'rich', 'prompt_toolkit', 'pydantic', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "bench" in done.stdout and done.stdout.endswith("\n[]\n")
    assert "130 interrupted (Ctrl-C)" in " ".join(done.stdout.split())


def test_the_version_is_that_of_the_package_and_loads_nothing() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "holdfast.agent.VERSION"}
    command = [sys.executable, "-X", "importtime", "-m", "holdfast.agent", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"holdfast {VERSION}\n"
    assert not re.search(r"\| +(torch|numpy|rich|aiohttp|pydantic)\b", done.stderr)


def test_killed_in_the_middle_of_a_turn_nothing_acknowledged_is_lost(
    ws: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process = start(ws, "run", "go", "--json", "--approve", "edit", replies=[EDIT, [("Now I", False), HANG]])
    result = wait_for(process, "tool_result")
    process.kill()
    process.communicate()
    assert run(ws, "--json", replies=[says("Going on.")]) == 0
    events = events_of(capfd.readouterr().out)
    assert "interrupted" in next(e["message"] for e in events if e["type"] == "notice")
    assert events[-1]["turn"] == 2 and events[-1]["usage"]["why"] == "no stored state"
    store = SessionStore(Database(ws.parent / "home"))
    log = store.open(store.all()[0])
    kept = next(e.payload for e in log.events() if e.type == "tool_result")
    assert {"type": "tool_result", **kept} == result
    assert log.turns() == [(1, "interrupted"), (2, "done")]


def test_ctrl_c_ends_with_130_and_the_session_goes_on(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(ws, "run", "go", "--json", replies=[[("Now I", False), HANG]])
    wait_for(process, "text")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == ""
    assert events_of(out)[-1] == {"type": "notice", "message": "interrupted; the session keeps what was done"}
    assert run(ws, "--json", replies=[says("Going on.")]) == 0
    assert events_of(capfd.readouterr().out)[-1]["turn"] == 2


def test_two_processes_on_one_session(ws: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(ws, "run", "go", "--json", replies=[[("Now I", False), HANG]])
    wait_for(process, "text")
    try:
        assert run(ws) == 1
        err = capfd.readouterr().err
        assert f"session go is open in another process (pid {process.pid})" in err and err.count("\n") == 1
        assert run(ws, "--json") == 1
        assert [event["type"] for event in events_of(capfd.readouterr().out)] == ["error"]
        assert run(ws, "--new") == 0
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_goes_away_is_no_traceback(ws: Path) -> None:
    process = start(ws, "run", "go", "--json", replies=[says("word " * 500)])
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 1


def test_chat_reads_lines_when_there_is_no_terminal(ws: Path) -> None:
    lines = "hello\n\n/help\n/nonsense\n/etc/hosts?\ncaf\udce9\n/new\nagain\n/quit\nnever\n"
    process = start(
        ws,
        "chat",
        replies=[says("One."), says("Two."), says("Three.")],
        stdin=subprocess.PIPE,
        errors="surrogateescape",
    )
    out, err = process.communicate(lines, timeout=60)
    assert process.returncode == 0 and out == "One.\nTwo.\nThree.\n"
    assert err.count("a new session: 0 turns") == 2
    assert "/new starts a fresh session" in err and "unknown command /nonsense" in err and "not valid UTF-8" in err
