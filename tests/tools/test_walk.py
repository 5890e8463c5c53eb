"""Promises of the walk: what it lists and what it skips."""

import os
from pathlib import Path

from tools import Workspace
from tools.walk import MAX_SOURCE_BYTES, source_entries


def listed(root: Path, *paths: str) -> list[str]:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x\n")
    return [entry.path for entry in source_entries(Workspace(root))]


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


def test_links_and_large_files_are_skipped_and_any_name_is_listed(root: Path) -> None:
    (root / "link").symlink_to("../secret")
    (root / "key").symlink_to("../secret/key")
    (root / "fits.txt").write_bytes(b"x" * MAX_SOURCE_BYTES)
    (root / "large.txt").write_bytes(b"x" * (MAX_SOURCE_BYTES + 1))
    assert listed(root, "bad\nname.py") == [r"bad\nname.py", "fits.txt"]


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
