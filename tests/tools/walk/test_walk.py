"""Promises of the walk: what it lists and what it skips."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.tools import Cancellation, ToolError, Workspace
from holdfast.tools.walk import walk
from holdfast.tools.walk.walk import SourceTree, source_entries


def listed(root: Path, *paths: str) -> list[str]:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x\n")
    return [entry.path for entry in source_entries(Workspace(root), Cancellation())]


def test_paths_are_sorted_and_known_litter_is_skipped(root: Path) -> None:
    skipped = [f"{folder}/x.py" for folder in (".git", "pkg/__pycache__", "web/node_modules", ".venv")]
    assert listed(root, "b.py", "a/z.py", "a.py", *skipped) == ["a.py", "a/z.py", "b.py"]


def test_gitignore_rules_hold_at_the_root_and_below(root: Path) -> None:
    (root / ".gitignore").write_text("build/\n*.log\n/top.txt\n")
    (root / "pkg").mkdir()
    (root / "pkg" / ".gitignore").write_text("!keep.log\nlocal.py\n")
    kept = ["pkg/keep.log", "pkg/top.txt", "local.py"]
    ignored = ["build/a.py", "pkg/build/a.py", "a.log", "pkg/b.log", "top.txt", "pkg/local.py", "pkg/sub/local.py"]
    assert listed(root, *kept, *ignored) == [".gitignore", "local.py", "pkg/.gitignore", "pkg/keep.log", "pkg/top.txt"]


def test_a_gitignore_that_is_not_text_is_no_rule(root: Path) -> None:
    (root / ".gitignore").write_bytes(b"\xff\0")
    assert listed(root, "a.py") == [".gitignore", "a.py"]


def test_a_byte_that_is_not_utf8_and_a_line_that_git_skips_leave_the_other_rules(root: Path) -> None:
    (root / ".gitignore").write_bytes(b"# caf\xe9\n*.log\n!\n\\\n[z-a]\n")
    assert listed(root, "a.log", "a.py") == [".gitignore", "a.py"]


def test_links_and_pipes_are_skipped_and_any_name_is_listed(root: Path) -> None:
    (root / "link").symlink_to("../secret")
    (root / "key").symlink_to("../secret/key")
    os.mkfifo(root / "pipe")
    assert listed(root, "bad\nname.py", "a.py") == ["a.py", r"bad\nname.py"]


def test_rules_hold_in_a_folder_of_any_name_and_its_files_can_be_read(root: Path) -> None:
    folder = root / os.fsdecode(b"a\x1b\\\xff")
    folder.mkdir()
    (folder / ".gitignore").write_text("/out\n")
    for name in ("out", "kept"):
        (folder / name).write_text(name)
    with SourceTree(Workspace(root), Cancellation()) as tree:
        paths = [entry.path for entry in tree.entries()]
        assert paths == [r"a\x1b\\\xff/.gitignore", r"a\x1b\\\xff/kept"]
        assert tree.read(paths[1]) == b"kept"


def test_deeply_nested_directories_are_listed(root: Path) -> None:
    folder = str(root)
    for _ in range(1200):
        folder += "/d"
        os.mkdir(folder)
    try:
        Path(folder, "a.py").write_text("x\n")
        assert listed(root) == ["d/" * 1200 + "a.py"]
    finally:  # deeper than the clean-up of temporary directories can follow
        os.unlink(folder + "/a.py")
        os.removedirs(folder)


def git(folder: Path, *arguments: str) -> bytes:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **dict.fromkeys(names, "t")}
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True).stdout


def shown_by_git(root: Path) -> list[str]:
    return sorted({os.fsdecode(path) for path in git(root, "ls-files", "-coz", "--exclude-standard").split(b"\0")[:-1]})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path / "home"


def test_random_trees_are_listed_as_git_lists_them(root: Path, home: Path) -> None:
    rng = random.Random(2)
    names = ("a", "b", "c.log", "d.py", "build", "x y")
    patterns = (
        "*.log",
        "!c.log",
        "build/",
        "/a",
        "a/b",
        "**/build",
        "b/**",
        "!/a/",
        "x\\ y",
        "a/*",
        "!a/d.py",
        "/*/b",
        "*",
        "!*/",
    )
    for number in range(12):
        folder = root / str(number)
        folder.mkdir()
        git(folder, "init", "-q")
        for _ in range(25):
            path = folder.joinpath(*rng.choices(names, k=rng.randint(1, 4)))
            if not any(above.is_file() for above in (path, *path.parents)) and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("x")
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and ".git" not in path.parts)]
        for ignoring in rng.sample(folders, min(3, len(folders))):
            (ignoring / ".gitignore").write_text("\n".join(rng.choices(patterns, k=3)) + "\n")
        (folder / ".git" / "info" / "exclude").write_text(rng.choice(patterns) + "\n")
        tracked = [str(path) for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
        git(folder, "add", "-f", "--", *rng.sample(tracked, len(tracked) // 3))
        git(folder, "update-index", "--index-version", rng.choice("234"))
        assert listed(folder) == shown_by_git(folder)


def test_a_subfolder_obeys_its_repository(root: Path, home: Path) -> None:
    git(root, "init", "-q")
    (root / ".gitignore").write_text("*.log\n/sub/deep/out\n")
    (root / ".git" / "info" / "exclude").write_text("*.tmp\n")
    (root / "sub").mkdir()
    files = ["a.log", "a.py", "a.tmp", "deep/kept.log", "deep/out", "out"]
    listed(root / "sub", *files)
    git(root, "add", "-f", "sub/deep/kept.log")
    assert listed(root / "sub") == ["a.py", "deep/kept.log", "out"]


@pytest.mark.parametrize("named", [True, False])
def test_the_users_own_excludes_hold_in_every_repository(root: Path, home: Path, named: bool) -> None:
    git(root, "init", "-q")
    path = home / ("my ignores" if named else ".config/git/ignore")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("*.bak\n")
    if named:
        (home / ".gitconfig").write_text(
            '[user]\n\tname = t\n[core]\n\teditor = vi ; "x"\n\texcludesFile = "~/my ignores"\n'
        )
    assert listed(root, "a.bak", "a.py") == ["a.py"] == shown_by_git(root)


def test_a_repository_cannot_name_files_outside(root: Path, home: Path, tmp_path: Path) -> None:
    git(root, "init", "-q")
    (tmp_path / "rules").write_text("*.py\n")
    git(root, "config", "core.excludesFile", str(tmp_path / "rules"))
    assert listed(root, "a.py") == ["a.py"]
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / ".git" / "info" / "exclude").write_text("*.py\n")
    shutil.rmtree(root / ".git")
    (root / ".git").write_text(f"gitdir: {other}/.git\n")
    assert listed(root) == ["a.py"]


def test_worktrees_and_submodules_have_rules_of_their_own(root: Path, home: Path, tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "-q")
    (main / ".git" / "info" / "exclude").write_text("*.tmp\n")
    git(main, "commit", "-q", "--allow-empty", "-m", "first")
    git(main, "worktree", "add", "-q", str(root / "tree"))
    files = ["a.tmp", "a.py"]
    assert listed(root / "tree", *files) == ["a.py"]
    git(root, "init", "-q")
    (root / ".gitignore").write_text("a.py\n")
    git(root, "submodule", "add", "-q", str(main), "sub")
    excludes = root / ".git" / "modules" / "sub" / "info" / "exclude"
    excludes.write_text("*.tmp\n")
    assert listed(root / "sub", *files) == ["a.py"]
    assert listed(root) == [".gitignore", ".gitmodules", "sub/a.py", "tree/a.py"]


@pytest.mark.parametrize(
    "index", [b"", b"DIRC", b"DIRC\0\0\0\2\xff\xff\xff\xff", b"DIRC\0\0\0\4\0\0\0\1" + b"\xff" * 90]
)
def test_a_damaged_index_tracks_nothing(root: Path, home: Path, index: bytes) -> None:
    git(root, "init", "-q")
    (root / ".gitignore").write_text("*.log\n")
    (root / ".git" / "index").write_bytes(index)
    assert listed(root, "a.log", "a.py") == [".gitignore", "a.py"]


def test_a_folder_that_is_asked_for_is_walked_though_ignored(root: Path) -> None:
    (root / ".gitignore").write_text("out/\n*.log\n")
    listed(
        root,
        "out/deep/a.py",
        "node_modules/x/a.py",
        "node_modules/x/node_modules/y.py",
        "src/a.py",
        "src/a.log",
        "src/out/a.py",
    )
    with SourceTree(Workspace(root), Cancellation()) as tree:
        found = {
            under: [entry.path for entry in tree.entries(under)]
            for under in ("out/deep", "node_modules", "src", "src/out")
        }
    assert found == {
        "out/deep": ["out/deep/a.py"],
        "node_modules": ["node_modules/x/a.py"],
        "src": ["src/a.py"],
        "src/out": ["src/out/a.py"],
    }


def test_folders_and_files_that_may_not_be_read_are_named(tmp_path: Path) -> None:
    listed(tmp_path, "a/x.py", "b/x.py", "c/x.py")
    modes = {"a": 0o000, "b": 0o644}
    for name, mode in (*modes.items(), (".", 0o755)):
        (tmp_path / name).chmod(mode)
    workspace, user = Workspace(tmp_path), os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with SourceTree(workspace, Cancellation()) as tree:
            assert [entry.path for entry in tree.entries()] == ["c/x.py"]
        assert tree.skipped.lines() == ["(2 files skipped: 2 unreadable: a/, b/)"]
    finally:
        if user == 0:
            os.seteuid(0)
        for name in modes:
            (tmp_path / name).chmod(0o755)


def test_pseudo_file_systems_are_left_out(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    with SourceTree(Workspace("/"), Cancellation()) as tree:
        for entry in tree.entries():
            assert not entry.path.startswith(("proc/", "sys/", "dev/"))
            if entry.path > "e":
                break
    device = os.stat("/proc").st_dev
    assert device in walk._pseudo_devices() and root.stat().st_dev not in walk._pseudo_devices()


def test_a_cancelled_walk_ends(root: Path) -> None:
    listed(root, "a.py", "b/c.py")
    cancellation = Cancellation()
    with SourceTree(Workspace(root), cancellation) as tree, pytest.raises(ToolError, match="cancelled"):
        for _ in tree.entries():
            cancellation.set()


def test_a_walk_leaves_no_descriptor_open(root: Path) -> None:
    listed(root, *(f"{'d/' * depth}a.py" for depth in range(1, 60, 7)))
    before = len(os.listdir("/proc/self/fd"))
    workspace = Workspace(root)
    assert len(source_entries(workspace, Cancellation())) == 9
    workspace.close()
    assert len(os.listdir("/proc/self/fd")) == before
