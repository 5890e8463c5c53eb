"""A small workspace and a way to call its tools by name."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.tools import Context, ToolChoice, Workspace, run_tool, toolset

Call = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty directory with a sibling outside the workspace: `secret/key` and `ws-secrets/key`."""
    for outside in ("secret", "ws-secrets"):
        (tmp_path / outside).mkdir()
        (tmp_path / outside / "key").write_text("TOP SECRET\n")
    (tmp_path / "ws").mkdir()
    return tmp_path / "ws"


def caller(root: Path, choice: ToolChoice) -> Call:
    context = Context(Workspace(root))
    tools = toolset(context.workspace, lambda query, limit: (), choice)

    def run(tool_name: str, **arguments: object) -> str:
        result = asyncio.run(run_tool(tools, tool_name, json.dumps(arguments), context))
        assert result.ok != result.output.startswith("error: ")
        return result.output

    return run


@pytest.fixture
def call(root: Path) -> Call:
    """`call("read", path="a.py")` gives the output of a simple tool; it checks that exactly failed calls start with `error: `."""
    return caller(root, ToolChoice(form="simple"))


@pytest.fixture
def full(root: Path) -> Call:
    """The same with the tools in their full form."""
    return caller(root, ToolChoice())
