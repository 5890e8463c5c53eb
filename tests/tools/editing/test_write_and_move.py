"""Promises of `write`, `move` and `delete`: nothing is lost or overwritten unseen, nothing outside is touched, all can be undone."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.tools import Context, Workspace, check_call, toolset
from tests.tools.workspace.memory_journal import MemoryJournal, tree

Call = Callable[..., str]


def test_write_makes_a_file_and_the_directories_above_it(root: Path, full: Call) -> None:
    assert full("write", path="a/b/c.py", content="x\ny\n") == "wrote a/b/c.py: new file, 2 lines"
    assert (root / "a" / "b" / "c.py").read_text() == "x\ny\n"
    assert full("edit", path="a/b/c.py", from_line=2, new="z").startswith("edited")
    assert full("write", path="a/b/c.py", content="x\n") == "wrote a/b/c.py: replaced, +0 -1"


def test_write_replaces_only_what_was_read_whole_and_stayed(root: Path, full: Call) -> None:
    (root / "a").write_text("1\n2\n3\n")
    assert full("write", path="a", content="x") == (
        "error: never read: a exists and was never shown; read all of it before you replace it, or use edit"
    )
    full("read", path="a", to_line=2)
    assert "was not shown whole" in full("write", path="a", content="x")
    full("read", path="a", from_line=3)
    (root / "a").write_text("1\n2\n4\n")
    assert full("write", path="a", content="x") == "error: stale: a changed on disk since it was read; read it again"
    (root / "bin").write_bytes(b"\0")
    assert full("write", path="bin", content="x") == "error: bin is not UTF-8 text"
    assert full("write", path="a/x", content="x") == "error: a is a file, not a directory: nothing can be below it"
    assert (root / "a").read_text() == "1\n2\n4\n" and (root / "bin").read_bytes() == b"\0"


def test_move_overwrites_nothing(root: Path, full: Call) -> None:
    (root / "a").write_text("a\n")
    (root / "b").write_text("b\n")
    (root / "d").mkdir()
    assert (
        full("move", path="a", to="b")
        == "error: b exists, and move overwrites nothing; delete it first, or give another path"
    )
    assert full("move", path="a", to="d") == "error: d is a directory; to move a into it, give the new path: d/a"
    assert full("move", path="d", to="d/e") == "error: d cannot be moved into itself, to d/e"
    assert full("move", path="zzz", to="y") == "error: no file or directory zzz"
    assert full("move", path="a", to="d/e/a") == "moved a to d/e/a"
    assert full("move", path="d", to="f") == "moved d to f (1 file)"
    assert (root / "f" / "e" / "a").read_text() == "a\n" and (root / "b").read_text() == "b\n"


def test_a_link_is_moved_and_deleted_itself(root: Path, full: Call) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "a").symlink_to("b")
    (root / "b").write_text("b\n")
    assert full("delete", path="link/key").startswith("error: link/key is outside the workspace")
    assert full("move", path="a", to="c") == "moved a to c"
    assert full("delete", path="c") == "deleted c"
    assert full("delete", path="link", recursive=True) == "deleted link"
    assert (root.parent / "secret" / "key").exists() and (root / "b").exists() and os.listdir(root) == ["b"]


def test_a_directory_is_deleted_only_when_that_is_said(root: Path, full: Call) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "e" / "x").write_text("x\n")
    assert full("delete", path="d") == "error: d is a directory; pass recursive=true to delete all that is in it"
    assert full("delete", path=".", recursive=True) == "error: the root of the workspace is not deleted by tools"
    assert full("delete", path="d", recursive=True) == "deleted d (1 file)"
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    "path", ["../out", "../ws-secrets/x", "/etc/x", "a/../../x", "/proc/self/mem", "/dev/null", "x\0", "a" * 5000, ""]
)
def test_nothing_is_made_moved_or_deleted_outside(root: Path, full: Call, path: str) -> None:
    (root / "a").write_text("a\n")
    before = tree(root.parent)
    for name, arguments in (
        ("write", {"path": path, "content": "x"}),
        ("move", {"path": "a", "to": path}),
        ("move", {"path": path, "to": "b"}),
        ("delete", {"path": path, "recursive": True}),
    ):
        assert full(name, **arguments).startswith("error: "), name
    assert tree(root.parent) == before


@pytest.mark.parametrize(
    "path", [".git", ".git/config", "sub/.git/hooks/x", ".ssh/authorized_keys", "bare/config", "half/HEAD"]
)
def test_guarded_places_are_not_made_moved_or_deleted(root: Path, full: Call, path: str) -> None:
    for folder in (".git/hooks", "sub/.git/hooks", "bare/objects", "bare/refs", "half/objects", "half/refs", ".ssh"):
        (root / folder).mkdir(parents=True)
    for file in (".git/config", "sub/.git/config", "bare/HEAD", "bare/config", ".ssh/authorized_keys"):
        (root / file).write_text("x\n")
    (root / "a").write_text("a\n")
    before = tree(root)
    above = path.split("/")[0]
    for name, arguments in (
        ("write", {"path": f"{path}", "content": "x"}),
        ("move", {"path": "a", "to": path}),
        ("move", {"path": path, "to": "moved"}),
        ("delete", {"path": path, "recursive": True}),
        *(
            (("delete", {"path": above, "recursive": True}), ("move", {"path": above, "to": "m"}))
            if above != "half"
            else ()
        ),
    ):
        assert full(name, **arguments).startswith("error: "), (name, arguments)
    assert tree(root) == before


def test_pipes_and_our_own_files_stay(root: Path) -> None:
    (root / "d" / "home").mkdir(parents=True)
    (root / "d" / "home" / "token").write_text("x\n")
    os.mkfifo(root / "pipe")
    workspace = Workspace(root, own=(root / "d" / "home",))
    tools, before = toolset(workspace, lambda query, limit: ()), tree(root)
    for name, arguments in (
        ("delete", {"path": "d", "recursive": True}),
        ("delete", {"path": "d/home", "recursive": True}),
        ("move", {"path": "d", "to": "e"}),
        ("write", {"path": "d/home/x", "content": "x"}),
        ("delete", {"path": "pipe"}),
        ("move", {"path": "pipe", "to": "x"}),
        ("write", {"path": "pipe", "content": "x"}),
    ):
        checked = asyncio.run(check_call(tools, name, json.dumps(arguments), Context(workspace)))
        assert checked.permission.refusal, (name, arguments)
        assert not asyncio.run(checked.run(Context(workspace))).ok
    assert tree(root) == before


def test_what_was_asked_about_is_what_runs(root: Path) -> None:
    workspace = Workspace(root)
    context, tools = Context(workspace), toolset(workspace, lambda query, limit: ())
    (root / "a").write_text("a\n")
    (root / "d").mkdir()
    calls = [
        ("delete", {"path": "a"}),
        ("move", {"path": "a", "to": "b"}),
        ("delete", {"path": "d", "recursive": True}),
    ]
    checked = [asyncio.run(check_call(tools, name, json.dumps(arguments), context)) for name, arguments in calls]
    assert [call.permission.preview[0] for call in checked] == ["delete a, -1", "move a -> b", "delete d (0 files), -0"]
    assert [call.permission.subjects for call in checked] == [("a",), ("a", "b"), ("d",)]
    new = asyncio.run(check_call(tools, "write", '{"path": "new", "content": "x"}', context))
    assert new.permission.preview == ("new: new file, +1", "1 +x")
    for path in ("a", "d/x", "new"):
        (root / path).write_text("mine\n")
    before = tree(root)
    for call in (*checked, new):
        assert asyncio.run(call.run(context)).output.startswith("error: stale: ")
    assert tree(root) == before


def test_everything_that_the_tools_did_is_undone_by_the_journal(root: Path) -> None:
    workspace = Workspace(root)
    context, tools = Context(workspace), toolset(workspace, lambda query, limit: ())
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "x").write_bytes(b"\xff\r\n")
    (root / "d" / "x").chmod(0o751)
    (root / "d" / "link").symlink_to("x")
    (root / "a").write_text("a\nb")
    before = tree(root)
    workspace.journal = journal = MemoryJournal(workspace)
    for name, arguments in (
        ("write", {"path": "new/n", "content": "n\n"}),
        ("edit", {"path": "a", "old": "b", "new": "c"}),
        ("move", {"path": "d", "to": "new/d"}),
        ("move", {"path": "a", "to": "z/a"}),
        ("delete", {"path": "new", "recursive": True}),
        ("write", {"path": "d", "content": "now a file\n"}),
    ):
        checked = asyncio.run(check_call(tools, name, json.dumps(arguments), context))
        result = asyncio.run(checked.run(context))
        assert result.ok, result
    assert tree(root) != before
    journal.undo()
    assert tree(root) == before
