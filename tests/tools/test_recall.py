"""Promises of `recall`: passages of the session on one line each, and all of them within reach."""

import asyncio
import json
from pathlib import Path

from holdfast.memory import Found
from holdfast.tools import Context, ToolChoice, Workspace, run_tool, toolset


def test_every_passage_found_can_be_reached(tmp_path: Path) -> None:
    found = [Found(n, n, n, "text", f"passage\n{n}") for n in range(1, 11)]
    context = Context(Workspace(tmp_path))
    tools = toolset(
        context.workspace, lambda query, limit: found[:limit] if query == "x" else [], ToolChoice(form="simple")
    )

    def recall(**arguments: object) -> str:
        call = run_tool(tools, "recall", json.dumps({"query": "x", **arguments}), context)
        return asyncio.run(call).output

    first = [f"turn {n}, text: passage {n}" for n in range(1, 9)]
    assert recall() == "\n".join([*first, "(more; continue with start=9)"])
    assert recall(start=9) == "turn 9, text: passage 9\nturn 10, text: passage 10"
    assert recall(start=3) == "\n".join(f"turn {n}, text: passage {n}" for n in range(3, 11))
    assert recall(start=11) == "nothing in this session matches x from start=11 on"
    assert recall(query="y") == "nothing in this session matches y"
    assert recall(start=10_000).startswith("error: start=10000 is past what can be reached")
    assert list(tools["recall"].schema()["parameters"]["properties"]) == ["query"]
