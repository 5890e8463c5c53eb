"""Promises of a model's choice of tools."""

from pathlib import Path

import pytest

from holdfast.tools import ToolChoice, ToolError, Workspace, toolset


def test_without_a_file_a_model_is_shown_every_tool(tmp_path: Path) -> None:
    tools = toolset(Workspace(tmp_path), lambda query, limit: (), ToolChoice.read(tmp_path))
    assert {"read", "write", "edit", "move", "delete", "search", "recall"} <= set(tools)
    assert "from_line" in tools["read"].schema()["parameters"]["properties"]


def test_a_file_names_tools_their_order_and_their_form(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('{"form": "simple", "names": ["edit", "read"]}')
    tools = toolset(Workspace(tmp_path), lambda query, limit: (), ToolChoice.read(tmp_path))
    assert list(tools) == ["edit", "read"]
    assert list(tools["read"].schema()["parameters"]["properties"]) == ["path", "start", "end"]


@pytest.mark.parametrize("text", ["{", "[]", '{"form": "half"}', '{"names": "read"}', '{"tools": []}', "\0"])
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "tools.json").write_text(text)
    with pytest.raises(ToolError, match=r"tools\.json is wrong") as refused:
        ToolChoice.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_name_that_no_tool_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"names 'reed', and there is no such tool; the tools are read, outline"):
        toolset(Workspace(tmp_path), lambda query, limit: (), ToolChoice(names=("read", "reed")))
