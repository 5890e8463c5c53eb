"""A small workspace and a way to call its tools by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.tools import ToolCall, Workspace, run_tool, toolset

Call = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty directory with a sibling outside the workspace: `secret/key` and `ws-secrets/key`."""
    for outside in ("secret", "ws-secrets"):
        (tmp_path / outside).mkdir()
        (tmp_path / outside / "key").write_text("TOP SECRET\n")
    (tmp_path / "ws").mkdir()
    return tmp_path / "ws"


@pytest.fixture
def call(root: Path) -> Call:
    """`call("read", path="a.py")` gives the output; it checks that exactly failed calls start with `error: `."""
    tools = toolset(Workspace(root), lambda query, limit: ())

    def run(tool_name: str, **arguments: object) -> str:
        result = run_tool(tools, ToolCall("1", tool_name, json.dumps(arguments)))
        assert result.ok != result.output.startswith("error: ")
        return result.output

    return run
