"""Promises of `run_tool` and of the tool schemas: every mistake of the model comes back as one clear line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.tools import Cancellation, Risk, Tool, ToolCall, ToolError, ToolResult, Workspace, run_tool, toolset


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


GOOD = {
    "read": {"path": "a.py"},
    "outline": {"path": "a.py"},
    "find_symbol": {"name": "x"},
    "search": {"text": "x", "path": "a.py"},
    "edit": {"path": "a.py", "old": "x", "new": "y"},
    "recall": {"query": "x"},
}


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, good in GOOD.items() for argument in good])
def test_lone_surrogates_are_an_error(tools: dict[str, Tool], tmp_path: Path, name: str, argument: str) -> None:
    output = output_of(tools, name, json.dumps({**GOOD[name], argument: "x\ud83d"}))
    assert output.startswith(
        rf"error: {name}: {argument}='x\ud83d' is wrong: it has half a character (a lone surrogate)"
    )
    assert output_of(tools, name, json.dumps({**GOOD[name], "\ud83d": 1})).isascii()
    assert (tmp_path / "a.py").read_text() == "x = 1\n"
    assert run_tool(tools, ToolCall("c1", name, json.dumps(GOOD[name]))).ok


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "failed: Permission denied"),
        (OSError("of\ntwo lines"), r"failed: 'of\ntwo lines'"),
        (RecursionError("deep"), "failed by a fault of its own (RecursionError)"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "?"), "failed by a fault of its own (UnicodeEncodeError)"),
    ],
)
def test_a_failing_tool_is_an_error_result_and_a_fault_of_ours_is_logged(
    tools: dict[str, Tool], caplog: pytest.LogCaptureFixture, error: Exception, expected: str
) -> None:
    def fail(args: Any, cancellation: Cancellation) -> str:
        raise error

    failing = {"outline": Tool("outline", "", tools["outline"].parameters, Risk.READ, fail)}
    assert output_of(failing, "outline", '{"path": "x"}') == f"error: outline {expected}"
    logged = [record.exc_info for record in caplog.records if record.name == "holdfast.tools"]
    assert [info and info[1] for info in logged] == ([error] if not isinstance(error, OSError) else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_is_no_result(tools: dict[str, Tool], error: type[BaseException]) -> None:
    def interrupt(args: Any, cancellation: Cancellation) -> str:
        raise error

    interrupted = {"outline": Tool("outline", "", tools["outline"].parameters, Risk.READ, interrupt)}
    with pytest.raises(error):
        run_tool(interrupted, ToolCall("1", "outline", '{"path": "x"}'))


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
