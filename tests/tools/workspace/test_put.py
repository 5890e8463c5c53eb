"""Promises of changes of files: journaled before the first write, all or none, confined, and undone by putting the old states back."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.tools import ToolError, Workspace
from holdfast.tools.workspace.journal import FileState
from tests.tools.workspace.memory_journal import MemoryJournal, tree


class FullJournal:
    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        raise ToolError("the disk of the data directory is full; nothing was changed")


def make_tree(root: Path) -> None:
    (root / "src" / "empty").mkdir(parents=True)
    (root / "src" / "a.py").write_bytes(b"one\r\n\xff")
    (root / "src" / "run").write_text("#!\n")
    (root / "src" / "run").chmod(0o750)
    (root / "src" / "link").symlink_to("../nowhere")
    (root / "b.txt").write_text("b\n")


def absent(states: Sequence[FileState]) -> list[FileState]:
    return [FileState(state.path) for state in states]


def test_what_is_put_back_is_as_before_in_every_byte_and_mode(root: Path) -> None:
    make_tree(root)
    workspace, before = Workspace(root), tree(root)
    workspace.journal = journal = MemoryJournal(workspace)
    paths = ["src", "src/a.py", "src/empty", "src/link", "src/run", "b.txt"]
    states = [workspace.state(path) for path in paths]
    workspace.put(states, absent(states))
    assert tree(root) == {}
    new = [
        FileState("new", "directory", 0o755),
        FileState("new/x", "file", 0o600, b"x"),
        FileState("b.txt", "link", 0o777, b"new"),
    ]
    workspace.put(absent(new), new)
    workspace.put([new[1]], [FileState("new/x", "file", 0o644, b"y")])
    assert (root / "new" / "x").read_bytes() == b"y" and os.readlink(root / "b.txt") == "new"
    journal.undo()
    assert tree(root) == before


def test_a_change_that_fails_half_way_is_put_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(root)
    workspace, before = Workspace(root), tree(root)
    states = [workspace.state(path) for path in ["src/a.py", "src/link", "src/run", "b.txt"]]
    unlink, calls = os.unlink, []

    def fail_third(path: str, *, dir_fd: int | None = None) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(5, "Input/output error")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", fail_third)
    with pytest.raises(ToolError, match=r"could not be changed \(Input/output error\)$"):
        workspace.put(states, absent(states))
    assert len(calls) > 2 and tree(root) == before


def test_nothing_is_written_without_a_journal_that_holds_it(root: Path) -> None:
    make_tree(root)
    workspace, before = Workspace(root), tree(root)
    workspace.journal = FullJournal()
    state = workspace.state("b.txt")
    with pytest.raises(ToolError, match="is full"):
        workspace.put([state], [FileState("b.txt")])
    with pytest.raises(ToolError, match="is full"):
        workspace.replace(workspace.read_text("b.txt"), "c\n")
    assert tree(root) == before


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".git/hooks/pre-commit", "belongs to git"),
        ("bare/HEAD", "belongs to git"),
        (".ssh/authorized_keys", "who may log in"),
        ("out/key", "not as it was|could not be changed"),
        ("b.txt/x", "could not be changed"),
        ("pipe", "not a regular file"),
        (".", "root of the workspace"),
    ],
)
def test_what_tools_do_not_change_is_not_put(root: Path, path: str, why: str) -> None:
    make_tree(root)
    for folder in ("bare/objects", "bare/refs"):
        (root / folder).mkdir(parents=True)
    (root / "out").symlink_to(root.parent / "secret")
    os.mkfifo(root / "pipe")
    workspace = Workspace(root)
    with pytest.raises(ToolError, match=why):
        workspace.put([FileState(path)], [FileState(path, "file", 0o644, b"x")])
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"
    assert not any(path.suffix == ".tmp" for path in root.rglob("*"))


def test_a_path_that_somebody_changed_stays(root: Path) -> None:
    make_tree(root)
    workspace = Workspace(root)
    states = [workspace.state(path) for path in ["src/a.py", "b.txt"]]
    (root / "b.txt").write_text("mine\n")
    before = tree(root)
    with pytest.raises(ToolError, match=r"b\.txt is not as it was"):
        workspace.put(states, absent(states))
    assert tree(root) == before


def test_a_directory_that_other_files_were_put_into_stays(root: Path) -> None:
    workspace = Workspace(root)
    new = [FileState("d", "directory", 0o755), FileState("d/x", "file", 0o644, b"x")]
    workspace.put(absent(new), new)
    (root / "d" / "mine").write_text("mine\n")
    workspace.put(new, absent(new))
    assert list(tree(root)) == ["d", "d/mine"]


def test_a_file_that_somebody_made_meanwhile_is_not_overwritten(root: Path) -> None:
    workspace = Workspace(root)
    states = [FileState("a", "file", 0o644, b"ours"), FileState("b", "file", 0o644, b"ours")]

    class MadeMeanwhile:
        def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
            (root / "b").write_text("mine\n")

    workspace.journal = MadeMeanwhile()
    with pytest.raises(ToolError, match=r"b could not be changed \(File exists\)$"):
        workspace.put(absent(states), states)
    assert tree(root) == {"b": ("other", (root / "b").lstat().st_mode, b"mine\n")}
