"""Promises of the ignore rules: what git ignores is ignored, whatever the pattern, and no pattern takes long."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.tools.walk.ignore import Rules

NAMES = [*rb"a b ab abc a.b - ] !x \ A [a] * aab a-b ^ #a 1".split(), b"a ", b"a b", b"\xe9"]
_PIECES = (
    rb"a b a * ** / / ? [ ] ! - \ ^ [a-c] [!a] [[:alpha:]] [[: :] [[:punct:]] # **/ /** . c A [a [z-a] []a] [\]] 1"
)
PIECES = [*_PIECES.split(), b" ", b"\r", b"\xe9", b"[[:space:]]"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def ignored_by_git(repository: Path, rules: bytes, paths: list[bytes]) -> list[bytes]:
    (repository / ".gitignore").write_bytes(rules)
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", os.fspath(repository), "check-ignore", "--no-index", "-z", "--stdin"]
    return subprocess.run(command, input=b"\0".join(paths), stdout=subprocess.PIPE, env=env).stdout.split(b"\0")[:-1]


def ignored_by_us(rules: Rules, path: bytes) -> bool:
    parts = path.split(b"/")
    folders = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
    return any(rules.ignores(folder, is_dir=True) for folder in folders) or bool(rules.ignores(path, is_dir=False))


def test_what_git_ignores_is_ignored(repository: Path) -> None:
    rng = random.Random(1)
    paths = sorted({b"/".join(rng.choices(NAMES, k=rng.randint(1, 4))) for _ in range(300)})
    for _ in range(250):
        lines = [b"".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(rng.choice((1, 1, 3)))]
        data = b"\n".join(lines) + b"\n"
        rules = Rules.of(data)
        assert [path for path in paths if ignored_by_us(rules, path)] == ignored_by_git(repository, data, paths), data


@pytest.mark.parametrize("line", [b"!", b"\\", b"a\\", b"[z-a]", b"[", b"[[:none:]]", b"/", b"\xe9 comment", b" "])
def test_a_line_that_git_skips_leaves_the_others(line: bytes) -> None:
    rules = Rules.of(b"*.log\n" + line + b"\nbuild/\n")
    assert rules.ignores(b"a.log", is_dir=False) and rules.ignores(b"x/build", is_dir=True)
    assert rules.ignores(b"a", is_dir=False) is None


def test_a_byte_order_mark_and_line_ends_are_no_part_of_a_pattern() -> None:
    rules = Rules.of("\ufeffa\r\nb \n".encode())
    assert [rules.ignores(name, is_dir=False) for name in (b"a", b"b", b"b ")] == [True, True, None]


@pytest.mark.parametrize("glob", [b"a*" * 100 + b"b", b"**/a*" * 100 + b"b", b"[a-b]*?" * 100 + b"c"])
def test_a_pattern_cannot_make_the_matcher_backtrack(glob: bytes) -> None:
    """With backtracking each of these takes longer than anyone waits."""
    assert Rules.of(glob).ignores(b"a/" * 1000 + b"a" * 255, is_dir=False) is None
