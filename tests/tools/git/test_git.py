"""Promises of `git`: it reads a page at a time, commits the named files and nothing else, and a hostile repository runs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.tools import Risk, check_call
from holdfast.tools.git.git import git_tool
from holdfast.tools.tool import Context
from tests.tools.shell.hands import Hands

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")]


@pytest.fixture(autouse=True)
def author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration, in a home of the test."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[user]\nname = A U Thor\nemail = author@example.org\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".gitconfig"


def git(directory: Path, *arguments: str) -> str:
    """git as its user runs it."""
    environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


@pytest.fixture
def root(hands: Hands) -> Path:
    """A repository with one commit of a.py and b.py."""
    git(hands.root, "init", "-q", "-b", "main")
    for name in ("a.py", "b.py"):
        (hands.root / name).write_text(f"{name} = 1\n")
    git(hands.root, "add", ".")
    git(hands.root, "commit", "-q", "-m", "begin")
    return hands.root


async def said(hands: Hands, action: str, **arguments: object) -> str:
    result = await hands.call("git", action=action, **arguments)
    assert result.ok, result.output
    return result.output


async def refused(hands: Hands, action: str, **arguments: object) -> str:
    result = await hands.call("git", action=action, **arguments)
    assert not result.ok and result.output.startswith("error: "), result.output
    return result.output.removeprefix("error: ")


async def test_what_changed_is_read(hands: Hands, root: Path) -> None:
    (root / "a.py").write_text("a.py = 2\n")
    (root / "new.py").write_text("")
    git(root, "add", "new.py")
    assert await said(hands, "status") == "## main\n M a.py\nA  new.py"
    assert "-a.py = 1\n+a.py = 2" in await said(hands, "diff")
    assert await said(hands, "diff", paths=["b.py"]) == "(no output)"
    assert "new.py" in await said(hands, "diff", staged=True)
    assert (await said(hands, "log")).endswith("A U Thor: (HEAD -> main) begin")
    assert "+b.py = 1" in await said(hands, "show", revision="HEAD", paths=["b.py"])
    assert await said(hands, "show", revision="HEAD:a.py") == "a.py = 1"
    assert "a.py = 1" in await said(hands, "blame", revision="HEAD", paths=["a.py"])


async def test_long_output_comes_in_pages(hands: Hands, root: Path) -> None:
    (root / "a.py").write_text("".join(f"line {n}\n" for n in range(3000)))
    first = await said(hands, "diff")
    assert first.endswith("\n(more; continue with line=401)")
    second = await said(hands, "diff", line=401)
    assert second.startswith(f"+line {first.count(chr(10) + '+line')}\n")
    assert await said(hands, "diff", line=99999) == "(nothing from line 99999 on)"


async def test_a_commit_has_the_named_files_and_no_others(hands: Hands, root: Path) -> None:
    (root / "a.py").write_text("a.py = 2\n")
    (root / "b.py").write_text("b.py = 2\n")
    (root / "new.py").write_text("new\n")
    git(root, "add", "b.py")
    text = await said(hands, "commit", paths=["a.py", "new.py"], message="Change a\n\n#1 is why")
    assert "(HEAD -> main): Change a" in text and text.endswith("(hooks of the repository were not run)")
    assert git(root, "show", "--format=%an %B", "--name-only").split("\n") == [
        "A U Thor Change a", "", "#1 is why", "", "", "a.py", "new.py",
    ]  # fmt: skip
    assert git(root, "status", "--short") == "M  b.py"


async def test_a_deletion_is_committed(hands: Hands, root: Path) -> None:
    (root / "a.py").unlink()
    await said(hands, "commit", paths=["a.py"], message="Remove a")
    assert git(root, "ls-files") == "b.py"


async def test_a_commit_that_fails_leaves_the_index_as_it_was(hands: Hands, root: Path, author: Path) -> None:
    (root / "new.py").write_text("new\n")
    (root / "b.py").write_text("b.py = 2\n")
    git(root, "add", "b.py")
    before = git(root, "status", "--short")
    (root / ".git" / "MERGE_HEAD").write_text(git(root, "rev-parse", "HEAD") + "\n")
    assert "merge" in await refused(hands, "commit", paths=["new.py"], message="m")
    (root / ".git" / "MERGE_HEAD").unlink()
    author.write_text("")
    assert "git knows no author here" in await refused(hands, "commit", paths=["new.py"], message="m")
    assert git(root, "status", "--short") == before


async def test_what_cannot_be_done_is_refused_with_the_way_out(hands: Hands, root: Path) -> None:
    assert await refused(hands, "commit", message="m") == "commit needs paths: the files to commit"
    assert await refused(hands, "commit", paths=["a.py"], message=" ") == "commit needs a message"
    assert "is a directory" in await refused(hands, "commit", paths=["."], message="m")
    assert "outside the workspace" in await refused(hands, "diff", paths=["../x"])
    for revision in ("--output=/tmp/x", "", "a\0b"):
        assert "give a commit" in await refused(hands, "show", revision=revision)
    assert "git show: " in await refused(hands, "show", revision="nowhere")
    assert "blame needs paths" in await refused(hands, "blame")


async def test_without_a_repository_it_is_said(hands: Hands) -> None:
    assert "not a git repository" in await refused(hands, "status")


async def test_reading_is_read_and_a_commit_shows_what_goes_in(hands: Hands, root: Path) -> None:
    async def permission(text: str) -> tuple[Risk, tuple[str, ...], tuple[str, ...]]:
        tools = {"git": git_tool(hands.shell)}
        asked = (await check_call(tools, "git", text, Context(hands.shell.workspace))).permission
        return asked.risk, asked.subjects, asked.preview

    assert (await permission('{"action": "diff"}'))[0] is Risk.READ
    risk, subjects, preview = await permission('{"action": "commit", "paths": ["a.py"], "message": "m\\u001b[2J"}')
    assert risk is Risk.EXECUTE and subjects == ("git commit -m 'm\x1b[2J' -- a.py",)
    assert preview[:3] == ("commit 1 file, and nothing else that is staged:", "  a.py", "message: m\\x1b[2J")


HOSTILE = """
[core]
    fsmonitor = "touch {mark}; false"
    hooksPath = {hooks}
    pager = "touch {mark}"
    editor = "touch {mark}"
    sshCommand = "touch {mark}"
    gitProxy = "touch {mark}"
    askPass = "touch {mark}"
    alternateRefsCommand = "touch {mark}"
[diff]
    external = "touch {mark}"
[diff "evil"]
    textconv = "touch {mark}; cat"
    command = "touch {mark}"
[filter "evil"]
    clean = "touch {mark}; cat"
    smudge = "touch {mark}; cat"
    process = "touch {mark}"
    required = true
[filter "e=vil"]
    clean = "touch {mark}; cat"
[commit]
    gpgSign = true
[log]
    showSignature = true
[gpg]
    program = "{hooks}/pre-commit"
[alias]
    status = "!touch {mark}"
[gc]
    auto = 1
[credential]
    helper = "!touch {mark}"
[include]
    path = more
[interactive]
    diffFilter = "touch {mark}"
[pager]
    log = "touch {mark}"
[remote "origin"]
    url = "ext::touch {mark}"
    promisor = true
    partialclonefilter = blob:none
"""


async def test_a_hostile_repository_runs_nothing(hands: Hands, root: Path) -> None:
    mark, hooks = root.parent / "ran", root / "hooks"
    hooks.mkdir()
    for place in (hooks, root / ".git" / "hooks"):
        for name in (
            "pre-commit",
            "commit-msg",
            "prepare-commit-msg",
            "post-commit",
            "post-index-change",
            "pre-auto-gc",
        ):
            (place / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
            (place / name).chmod(0o755)
    (root / ".gitattributes").write_text("*.py diff=evil filter=evil\n*.txt filter=e=vil\n")
    with (root / ".git" / "config").open("a") as file:
        file.write(HOSTILE.format(mark=mark, hooks=hooks))
    (root / ".git" / "more").write_text(
        f'[filter "late"]\nclean = "touch {mark}; cat"\n[core]\nfsmonitor = "touch {mark}"\n'
    )
    (root / ".git" / "info" / "attributes").write_text("*.md filter=late\n")
    for name in ("a.py", "x.txt", "x.md"):
        (root / name).write_text("changed\n")
    (root / "git").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (root / "git").chmod(0o755)
    for action, arguments in (
        ("status", {}), ("diff", {}), ("diff", {"staged": True}), ("log", {}), ("show", {}),
        ("show", {"revision": "HEAD:a.py"}), ("blame", {"paths": ["a.py"]}),
    ):  # fmt: skip
        await said(hands, action, **arguments)
        assert not mark.exists(), action
    for path in ("a.py", "x.md"):
        assert "passes through the filter" in await refused(hands, "commit", paths=[path], message="m")
    await said(hands, "commit", paths=[".gitattributes"], message="m")
    assert not mark.exists()


async def test_git_of_the_workspace_is_never_run(hands: Hands, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bin").mkdir()
    for name in ("git", "env", "bash"):
        (root / "bin" / name).write_text("#!/bin/sh\ntouch ran\n")
        (root / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}.{os.pathsep}{os.environ['PATH']}")
    await said(hands, "log")
    assert not (root / "ran").exists()


async def test_a_repository_of_another_directory_is_not_opened(hands: Hands, tmp_path: Path) -> None:
    other = tmp_path.resolve() / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "key").write_text("TOP SECRET\n")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "SECRET")
    (hands.root / ".git").write_text(f"gitdir: {other}/.git\n")
    assert "a repository of another directory" in await refused(hands, "log")
    (hands.root / ".git").unlink()
    (hands.root / ".git").symlink_to(other / ".git")
    assert "a repository of another directory" in await refused(hands, "log")
    (hands.root / ".git").unlink()
    git(hands.root, "init", "-q")
    (hands.root / ".git" / "commondir").write_text(f"{other}/.git\n")
    assert "SECRET" not in (await hands.call("git", action="log")).output
    (hands.root / ".git" / "commondir").unlink()
    git(hands.root, "config", "core.worktree", str(other))
    assert "SECRET" not in (await hands.call("git", action="diff")).output


async def test_a_linked_work_tree_and_a_part_of_a_repository_are_the_users_own(hands: Hands, tmp_path: Path) -> None:
    main = tmp_path.resolve() / "main"
    main.mkdir()
    git(main, "init", "-q", "-b", "main")
    (main / "a.py").write_text("1\n")
    git(main, "add", ".")
    git(main, "commit", "-q", "-m", "begin")
    (hands.root / "sub").rmdir()
    git(main, "worktree", "add", "-q", str(hands.root), "-b", "side")
    (hands.root / "a.py").write_text("2\n")
    assert "on (HEAD -> side): two" in await said(hands, "commit", paths=["a.py"], message="two")


async def test_only_the_workspace_of_a_larger_repository_is_shown(hands: Hands, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "outside").write_text("TOP SECRET\n")
    (hands.root / "a.py").write_text("1\n")
    git(tmp_path, "add", "outside", "ws/a.py")
    git(tmp_path, "commit", "-q", "-m", "begin")
    (tmp_path / "outside").write_text("ANOTHER SECRET\n")
    (hands.root / "a.py").write_text("2\n")
    for action in ("status", "diff", "show"):
        text = await said(hands, action)
        assert "a.py" in text and "outside" not in text, action
    await said(hands, "commit", paths=["a.py"], message="two")
    assert git(tmp_path, "status", "--short").startswith("M outside") or " M outside" in git(
        tmp_path, "status", "--short"
    )
