"""Promises for calls and trees that come from strangers; `python -m tests.long.tool_calls` makes 20,000 such calls."""

import os
from pathlib import Path

import pytest

from tests.long.tool_calls import fuzz
from tests.tools.workspace.test_workspace import as_user, needs_root


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_but_a_result_leaves_a_tool_and_nothing_outside_changes(tmp_path: Path, seed: int) -> None:
    assert fuzz(200, seed, tmp_path) > 20


@needs_root
def test_the_same_holds_where_permissions_count(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    os.chown(tmp_path, 4711, 4711)

    def run() -> None:
        assert fuzz(300, 4, tmp_path) > 20

    assert as_user(4711, tmp_path / "ws", run) == ""
