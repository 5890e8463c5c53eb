"""Promises of `holdfast doctor`: it is complete, says only what is so, and changes nothing."""

import os
import platform
import sqlite3
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from holdfast.agent import VERSION
from holdfast.agent.cli import doctor
from holdfast.agent.cli.main import main
from holdfast.memory import Database, SessionStore
from holdfast.tools.sandbox import choose
from holdfast.tools.sandbox.process import SandboxError
from tests.agent.place import Place
from tests.agent.scripted_engine import says


def report(capfd: pytest.CaptureFixture[str], code: int = 0) -> dict[str, str]:
    """State by name, of a doctor that ends with this code."""
    assert main(["doctor"]) == code
    return {line[5:].partition(": ")[0]: line for line in capfd.readouterr().out.splitlines()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the child process that loads torch."""
    monkeypatch.setattr(doctor, "_engine", lambda: iter(()))


def test_everything_is_named_and_nothing_is_made(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = report(capfd)
    assert list(found) == [
        "holdfast",
        "python",
        "cpu",
        "memory",
        "torch",
        "device",
        "threads",
        "kernels",
        "triton",
        "tree-sitter",
        "model",
        "sqlite",
        "data",
        "server",
        "sandbox",
    ]
    assert VERSION in found["holdfast"] and platform.python_version() in found["python"]
    assert f"of {os.cpu_count()} cores" in found["cpu"] and " GB" in found["memory"]
    assert sqlite3.sqlite_version in found["sqlite"] and "made by the first start" in found["data"]
    assert "none runs" in found["server"]
    assert not home.exists()


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock", "none"])
def test_the_sandbox_that_works_is_named(
    home: Path, quick: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def missing(*arguments: object) -> NoReturn:
        raise SandboxError("not here")

    for name, word in (("Bubblewrap", "bubblewrap"), ("Landlock", "landlock")):
        if kind == "none" or (kind == "landlock" and word == "bubblewrap"):
            monkeypatch.setattr(choose, name, missing)
    line = report(capfd)["sandbox"]
    if kind == "none":
        assert line == "note sandbox: none: a command would have all rights of yours (not here; not here)"
    elif f"sandbox: {kind}" not in line:
        pytest.skip(line)
    else:
        assert line.startswith(
            "ok   sandbox: bubblewrap: full" if kind == "bubblewrap" else "note sandbox: landlock: partial: "
        )


def test_what_the_data_directory_holds_is_said(home: Path, quick: None, capfd: pytest.CaptureFixture[str]) -> None:
    SessionStore(Database(home)).create("/w", "m")
    assert report(capfd)["sessions"].startswith("ok   sessions: 1, in 0.")
    (home / "holdfast.db").write_bytes(b"garbage" * 1000)
    assert "FAIL sessions: " in report(capfd, 1)["sessions"]


def test_a_home_that_cannot_be_written_is_a_failure(
    home: Path, quick: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("a file")
    monkeypatch.setenv("HOLDFAST_HOME", str(home / "below"))
    assert "cannot be written" in report(capfd, 1)["data"]


@pytest.mark.parametrize(
    ("number", "kind"), [((3, 40, 1), "note"), ((3, 51, 2), "note"), ((3, 51, 3), "ok"), ((3, 52, 0), "ok")]
)
def test_an_old_sqlite_is_a_note(
    home: Path,
    quick: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: tuple[int, int, int],
    kind: str,
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", number)
    line = report(capfd)["sqlite"]
    assert line.startswith(kind) and ("WAL-reset" in line) is ("they are safe from it" in line) is (kind == "note")


def test_a_torch_that_breaks_costs_a_line(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ASK_ENGINE", "raise ImportError('lib\\x1b[2Jtorch is broken')")
    assert report(capfd, 1)["torch"].endswith("(ImportError: lib\\x1b[2Jtorch is broken): install holdfast again")


def test_kernels_are_said_to_be_compiled_when_they_are(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform != "linux":
        pytest.skip("the cache directory is set by XDG_CACHE_HOME on Linux only")
    line = report(capfd)["kernels"]
    assert line.startswith("note kernels: not compiled yet") and f"in {tmp_path}/cache" in line


def test_a_server_that_runs_is_named(
    tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        place = Place(tmp_path, stack).script(says("One."))
        server = place.serve()
        monkeypatch.setenv("HOLDFAST_HOME", str(place.home))
        assert f"(pid {server.pid}, model " in report(capfd)["server"]
