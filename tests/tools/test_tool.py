"""Promises of the tool contract: every mistake of the model, and every failure of ours, comes back as one clear line."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.tools import (
    Budget,
    Context,
    Result,
    Risk,
    Tool,
    ToolChoice,
    ToolError,
    Workspace,
    run_tool,
    toolset,
)
from holdfast.tools.threads import threaded


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "a.py").write_text("x = 1\n")
    return Workspace(tmp_path)


@pytest.fixture
def tools(workspace: Workspace) -> dict[str, Tool]:
    return toolset(workspace, lambda query, limit: (), ToolChoice(form="simple"))


@pytest.fixture
def context(workspace: Workspace) -> Context:
    return Context(workspace)


def run(tools: dict[str, Tool], context: Context, name: str, arguments_json: str) -> Result:
    return asyncio.run(run_tool(tools, name, arguments_json, context))


def output_of(tools: dict[str, Tool], context: Context, name: str, arguments_json: str) -> str:
    result = run(tools, context, name, arguments_json)
    assert not result.ok and "\n" not in result.output
    return result.output


def test_a_good_call_gives_its_output(tools: dict[str, Tool], context: Context) -> None:
    assert run(tools, context, "read", '{"path": "a.py"}') == Result("1|x = 1", ok=True)


def test_unknown_tool_names_the_valid_ones(tools: dict[str, Tool], context: Context) -> None:
    assert (
        output_of(tools, context, "cat", "{}")
        == "error: no tool cat; the tools are read, outline, find_symbol, search, edit, recall"
    )


def test_a_tool_name_with_line_breaks_stays_on_one_line(tools: dict[str, Tool], context: Context) -> None:
    assert output_of(tools, context, "cat\nok", "{}").startswith(r"error: no tool 'cat\nok'; the tools are")


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
    tools: dict[str, Tool], context: Context, arguments: Any, expected: str
) -> None:
    assert output_of(tools, context, "read", json.dumps(arguments)) == expected


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"path": ' + "9" * 5_000 + "}", '{"path": "a.py"} x'])
def test_arguments_that_are_not_json_are_an_error(tools: dict[str, Tool], context: Context, text: str) -> None:
    assert output_of(tools, context, "read", text).startswith("error: arguments of read are not valid JSON: ")


def test_a_number_written_as_text_is_accepted(tools: dict[str, Tool], context: Context) -> None:
    assert run(tools, context, "read", '{"path": "a.py", "start": "1"}').output == "1|x = 1"


GOOD = {
    "read": {"path": "a.py"},
    "outline": {"path": "a.py"},
    "find_symbol": {"name": "x"},
    "search": {"text": "x", "path": "a.py"},
    "edit": {"path": "a.py", "old": "x", "new": "y"},
    "recall": {"query": "x"},
}


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name, good in GOOD.items() for argument in good])
def test_lone_surrogates_are_an_error(
    tools: dict[str, Tool], context: Context, tmp_path: Path, name: str, argument: str
) -> None:
    output = output_of(tools, context, name, json.dumps({**GOOD[name], argument: "x\ud83d"}))
    assert output.startswith(
        rf"error: {name}: {argument}='x\ud83d' is wrong: it has half a character (a lone surrogate)"
    )
    assert output_of(tools, context, name, json.dumps({**GOOD[name], "\ud83d": 1})).isascii()
    assert (tmp_path / "a.py").read_text() == "x = 1\n"
    assert run(tools, context, name, json.dumps(GOOD[name])).ok


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "failed: Permission denied"),
        (OSError("of\ntwo lines"), r"failed: 'of\ntwo lines'"),
        (RecursionError("deep"), "failed by a fault of its own (RecursionError)"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "?"), "failed by a fault of its own (UnicodeEncodeError)"),
        (SystemExit(1), "failed by a fault of its own (SystemExit)"),
        (asyncio.CancelledError(), "failed by a fault of its own (CancelledError)"),
        (StopIteration(), "failed by a fault of its own (RuntimeError)"),
    ],
)
@pytest.mark.parametrize("part", ["permission", "work", "work on a thread"])
def test_nothing_but_a_result_leaves_a_tool_and_a_fault_of_ours_is_logged(
    tools: dict[str, Tool],
    context: Context,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    expected: str,
    part: str,
) -> None:
    def fail(args: Any, context: Context) -> Any:
        raise error

    async def fail_at_once(args: Any, context: Context) -> str:
        raise error

    parts: dict[str, Any] = {"permission": {"permission": fail}, "work": {"work": fail_at_once}}
    failing = {"outline": replace(tools["outline"], **parts.get(part, {"work": threaded(fail)}))}
    assert output_of(failing, context, "outline", '{"path": "x"}') == f"error: outline {expected}"
    logged = [record.exc_info for record in caplog.records if record.name == "holdfast.tools"]
    assert len(logged) == (0 if isinstance(error, OSError) else 1) and all(logged)


def test_what_a_tool_emits_reaches_the_caller_in_order_and_before_the_result(
    tools: dict[str, Tool], context: Context
) -> None:
    heard: list[str] = []
    on_loop = threading.get_ident()

    def hear(output: str) -> None:
        assert threading.get_ident() == on_loop
        heard.append(output)

    def count(args: Any, context: Context) -> str:
        for n in range(1000):
            context.emit(str(n))
        return "counted"

    counting = {"outline": replace(tools["outline"], work=threaded(count))}
    assert run(counting, replace(context, emit=hear), "outline", '{"path": "x"}') == Result("counted", ok=True)
    assert heard == [str(n) for n in range(1000)]


@pytest.mark.parametrize("num_cancels", [1, 3])
def test_a_cancelled_call_tells_its_work_and_no_thread_outlives_it(
    tools: dict[str, Tool], context: Context, num_cancels: int
) -> None:
    states: list[str] = []

    def endless(args: Any, context: Context) -> str:
        states.append("begun")
        try:
            while True:
                context.cancelled.check()
        except ToolError:
            states.append("tidied up")
            raise

    async def cancel() -> None:
        call = asyncio.ensure_future(run_tool(endless_tools, "outline", '{"path": "x"}', context))
        while not states:
            await asyncio.sleep(0.001)
        for _ in range(num_cancels):
            call.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert states == ["begun", "tidied up"]
        assert not [thread for thread in threading.enumerate() if "holdfast-tool" in thread.name]

    endless_tools = {"outline": replace(tools["outline"], work=threaded(endless))}
    asyncio.run(cancel())


def test_only_one_file_of_the_tools_makes_threads() -> None:
    tools_dir = Path(run_tool.__code__.co_filename).parent
    makers = ("ThreadPoolExecutor", "to_thread", "run_in_executor", "threading.Thread", "start_new_thread")
    found = [path.name for path in tools_dir.rglob("*.py") if any(maker in path.read_text() for maker in makers)]
    assert found == ["threads.py"]


def test_a_result_longer_than_the_budget_is_replaced_by_its_size(tools: dict[str, Tool], context: Context) -> None:
    small = replace(context, budget=Budget(6, len))
    output = "(the call ran, but its output of 7 tokens does not fit into the 6 left; ask for less)"
    assert run(tools, small, "read", '{"path": "a.py"}') == Result(output, ok=True)
    assert run(tools, replace(context, budget=Budget(7, len)), "read", '{"path": "a.py"}').output == "1|x = 1"


def test_schemas_are_trimmed_and_complete(tools: dict[str, Tool], context: Context) -> None:
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
        assert tool.about and "\n" not in tool.about


def test_only_edit_may_change_files(tools: dict[str, Tool], context: Context) -> None:
    risks = {name: tool.permission(tool.parameters(**GOOD[name]), context).risk for name, tool in tools.items()}
    assert {name for name, risk in risks.items() if risk is not Risk.READ} == {"edit"}


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("a.py", "is not a directory")])
def test_a_workspace_that_is_no_directory_is_refused(
    tools: dict[str, Tool], tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(ToolError, match=f"{name} {words}; name an existing directory"):
        Workspace(tmp_path / name)
