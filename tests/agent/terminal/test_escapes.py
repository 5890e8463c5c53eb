"""Promise: no name of a file, directory, model or session steers the terminal, on any way it gets there."""

import json
import shutil
from pathlib import Path

import pytest

import holdfast.agent.models.opened
from holdfast.agent.cli.main import main
from holdfast.agent.terminal.render import Printer
from holdfast.memory import Database, SessionStore
from tests.agent.scripted_engine import ScriptedEngine, make_model
from tests.agent.terminal.test_render import ROOT

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"
TINY = ROOT / "tests" / "fixtures" / "v4-tiny-flash"


def is_harmless(shown: str) -> bool:
    return "owned" in shown and not set(shown) & set("\x1b\x07\x9b\u202e\r")


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of such a name, with a data directory that has a session of it."""
    monkeypatch.setattr(holdfast.agent.models.opened, "Engine", ScriptedEngine)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    directory = tmp_path / f"d{ESCAPE}"
    directory.mkdir()
    SessionStore(Database(tmp_path / "home")).create(str(directory), "scripted", "one")
    return directory


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "hi", "--session", "one", "--workspace", "{tmp}", "--model", "{model}"],
        ["run", "hi", "--workspace", "{evil}/none", "--model", "{model}"],
        ["run", "hi", "--model", "{evil}"],
        ["run", "@{evil}/none"],
        ["run", "hi", ESCAPE, "--frobnicate", ESCAPE],
        ["chat", "--approve", ESCAPE],
        ["model", "inspect", "{evil}"],
        ["model", "inspect", "{broken}"],
        ["bench", "--model", "{broken}"],
        ["serve", "--model", "{model}", "--users", "{evil}/none"],
        ["sessions", "list"],
        ["sessions", "show", "one"],
        ["sessions", "show", ESCAPE],
        ["sessions", "fork", "one", "--as", ESCAPE],
        [ESCAPE],
    ],
)
def test_a_name_from_outside_is_shown_spelled_out(
    evil: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    broken = evil.parent / "broken"
    shutil.copytree(TINY, broken)
    index = broken / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.weight": f"model-0{ESCAPE}.safetensors"}}))
    places = {"tmp": evil.parent, "evil": evil, "broken": broken, "model": make_model(evil.parent / "model")}
    main([argument.format(**places) if "{" in argument else argument for argument in arguments])
    shown = capfd.readouterr()
    assert is_harmless(shown.out + shown.err), shown


def test_a_home_of_such_a_name_too(
    evil: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(evil / "home"))
    monkeypatch.setattr("holdfast.agent.cli.doctor._engine", lambda: iter(()))
    (evil / "home").mkdir()
    (evil / "home" / "holdfast.db").write_bytes(b"garbage" * 1000)
    for arguments in (["sessions", "list"], ["sessions", "verify"], ["doctor"]):
        assert main(arguments) == 1
        shown = capfd.readouterr()
        assert is_harmless(shown.out + shown.err), (arguments, shown)


def test_a_note_beside_the_answer_too(capfd: pytest.CaptureFixture[str]) -> None:
    Printer().note(f"session one belongs to {ESCAPE}")
    assert is_harmless(capfd.readouterr().err)
