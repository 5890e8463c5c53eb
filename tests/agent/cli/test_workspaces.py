"""Promises about the directory a command works in: a whole home or file system only after it was confirmed."""

import io
import sys
from pathlib import Path

import pytest

from holdfast.agent.cli.main import main
from holdfast.agent.cli.workspaces import chosen_workspace
from holdfast.agent.config import UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ann" / "proj").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("ann")
    monkeypatch.setenv("HOME", str(tmp_path / "alias"))
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "data"))
    return tmp_path / "ann"


@pytest.mark.parametrize("command", [["run", "hello"], ["chat"], ["serve", "--port", "0"]])
def test_a_home_directory_is_no_workspace_unless_it_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(command) == 2
    assert capfd.readouterr().err == (
        "holdfast: this directory is your home directory: go to a project's directory and start there,"
        f" or say that you mean all of it with --workspace {home}\n"
    )


def test_the_file_system_is_no_workspace_unless_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="this directory is the whole file system"):
        chosen_workspace(None, can_ask=False)
    assert chosen_workspace("/", can_ask=False) == Path("/")
    monkeypatch.chdir(home / "proj")
    assert chosen_workspace(None, can_ask=False) == home / "proj"
    assert chosen_workspace(str(home), can_ask=False) == home


@pytest.mark.parametrize(
    ("answer", "is_meant"), [("y\n", True), ("yes\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_person_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_meant: bool) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    if is_meant:
        assert chosen_workspace(None, can_ask=True) == home
    else:
        with pytest.raises(UsageError):
            chosen_workspace(None, can_ask=True)
