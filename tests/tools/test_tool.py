"""Promises of `run_tool` and of the tool schemas: every mistake of the model comes back as one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import Cancellation, Risk, Tool, ToolCall, ToolError, ToolResult, Workspace, run_tool, toolset


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, Tool]:
    (tmp_path / "a.py").write_text("x = 1\n")
    return toolset(Workspace(tmp_path), lambda query, limit: ())


def output_of(tools: dict[str, Tool], name: str, arguments_json: str) -> str:
    result = run_tool(tools, ToolCall("c1", name, arguments_json))
    assert result.id == "c1" and not result.ok and "\n" not in result.output
    return result.output


def test_a_good_call_gives_its_output_under_its_id(tools: dict[str, Tool]) -> None:
    assert run_tool(tools, ToolCall("c7", "read", '{"path": "a.py"}')) == ToolResult("c7", "1|x = 1", ok=True)


def test_unknown_tool_names_the_valid_ones(tools: dict[str, Tool]) -> None:
    assert (
        output_of(tools, "cat", "{}")
        == "error: no tool cat; the tools are read, outline, find_symbol, search, edit, recall"
    )


def test_a_tool_name_with_line_breaks_stays_on_one_line(tools: dict[str, Tool]) -> None:
    assert output_of(tools, "cat\nok", "{}").startswith(r"error: no tool 'cat\nok'; the tools are")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "error: read needs argument path; read takes path, start, end"),
        ({"path": "a.py", "line": 3}, "error: read has no argument line; read takes path, start, end"),
        (
            {"path": "a.py", "start": "x"},
            "error: read: start='x' is wrong: Input should be a valid integer, unable to parse string as an integer; "
            "read takes path, start, end",
        ),
        (
            {"path": "a.py", "start": 0},
            "error: read: start=0 is wrong: Input should be greater than or equal to 1; read takes path, start, end",
        ),
        (["a.py"], "error: arguments of read must be a JSON object; read takes path, start, end"),
    ],
)
def test_wrong_arguments_name_the_argument_and_the_choices(
    tools: dict[str, Tool], arguments: Any, expected: str
) -> None:
    assert output_of(tools, "read", json.dumps(arguments)) == expected


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"path": ' + "9" * 5_000 + "}", '{"path": "a.py"} x'])
def test_arguments_that_are_not_json_are_an_error(tools: dict[str, Tool], text: str) -> None:
    assert output_of(tools, "read", text).startswith("error: arguments of read are not valid JSON: ")


def test_a_number_written_as_text_is_accepted(tools: dict[str, Tool]) -> None:
    assert run_tool(tools, ToolCall("1", "read", '{"path": "a.py", "start": "1"}')).output == "1|x = 1"


@pytest.mark.parametrize("name", ["read", "outline", "search", "edit"])
def test_lone_surrogates_are_an_error(tools: dict[str, Tool], name: str) -> None:
    arguments = dict.fromkeys(tools[name].parameters.model_fields, "\ud800")
    assert output_of(tools, name, json.dumps(arguments)).startswith(f"error: {name}: ")


def test_a_failing_file_system_is_an_error_result() -> None:
    def fail(args: Any, cancellation: Cancellation) -> str:
        raise PermissionError(13, "Permission denied")

    with_path = toolset(Workspace("/"), lambda query, limit: ())["outline"].parameters
    failing = {"outline": Tool("outline", "", with_path, Risk.READ, fail)}
    assert output_of(failing, "outline", '{"path": "x"}') == "error: outline failed: Permission denied"


def test_schemas_are_trimmed_and_complete(tools: dict[str, Tool]) -> None:
    assert tools["read"].schema()["parameters"] == {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "start": {"type": "integer", "minimum": 1, "default": 1},
            "end": {"type": "integer", "minimum": 1},
        },
        "required": ["path"],
    }
    assert tools["edit"].schema()["parameters"]["required"] == ["path", "old", "new"]
    for name, tool in tools.items():
        assert tool.name == name == tool.schema()["name"] and tool.schema()["description"]


def test_only_edit_may_change_files(tools: dict[str, Tool]) -> None:
    assert {name for name, tool in tools.items() if tool.risk is not Risk.READ} == {"edit"}


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("a.py", "is not a directory")])
def test_a_workspace_that_is_no_directory_is_refused(
    tools: dict[str, Tool], tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(ToolError, match=f"{name} {words}; name an existing directory"):
        Workspace(tmp_path / name)
