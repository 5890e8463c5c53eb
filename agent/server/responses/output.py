"""The output items of a response and their events, in the protocol's exact order, as the model writes.

Owns the scaffolding around every piece of text. Must not know where pieces come from.
"""

from collections.abc import Callable, Mapping
from typing import Any

from holdfast.agent.encoding.deltas import (
    ArgumentsDelta,
    Delta,
    TextDelta,
    ThinkingDelta,
    ToolCallBegun,
    ToolCallParsed,
)
from holdfast.agent.server.json import Json

Emit = Callable[[str, Json], None]
SERVER_LABEL = "holdfast"  # of tools that run here: clients show them as those of an MCP server


class Output:
    """The output items of one response. Each change of them is an event, given to `emit` by type and fields.

    `namespaces`: see `request.namespaces_of`.
    """

    def __init__(self, emit: Emit, id: str, namespaces: Mapping[str, Json] = {}):
        self._namespaces, self._emit, self._id = namespaces, emit, id.removeprefix("resp_")
        self.items: list[Json] = []
        self._kind = ""  # of the last item while it is open: "reasoning" or "message"
        self._texts: list[str] = []

    @property
    def is_reasoning(self) -> bool:
        """Whether the open item is reasoning."""
        return self._kind == "reasoning"

    def add(self, delta: Delta) -> None:
        """Add a delta from the parser."""
        if isinstance(delta, ToolCallBegun):
            self._begin_function_call(delta.name)
        elif isinstance(delta, ArgumentsDelta):
            self._emit("response.function_call_arguments.delta", {**self._place(), "delta": delta.text})
        elif isinstance(delta, ThinkingDelta):
            self._piece("reasoning", delta.text)
        elif isinstance(delta, TextDelta):
            self._piece("message", delta.text)
        else:
            self._end_function_call(delta)

    def begin_call(self, name: str, arguments: str) -> int:
        """Add a call of a tool of the server; gives the index for `end_call`."""
        self.close()
        item = {"type": "mcp_call", "server_label": SERVER_LABEL, "name": name, "arguments": arguments}
        self._start({"id": self._new_id("mcp"), **item, "output": None, "error": None})
        place = self._place()
        self._emit("response.mcp_call.in_progress", place)
        self._emit("response.mcp_call_arguments.done", {**place, "arguments": arguments})
        return len(self.items) - 1

    def end_call(self, index: int, output: str, *, is_ok: bool) -> None:
        """End a call of a tool of the server; one that was refused is not ok."""
        status, item = "completed" if is_ok else "failed", self.items[index]
        self._emit(f"response.mcp_call.{status}", {"item_id": item["id"], "output_index": index})
        error = None if is_ok else {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": output}]}
        self._finish({**item, "output": output, "error": error, "status": status}, index)

    def abandon_calls(self) -> None:
        """Mark the calls that have not ended as incomplete."""
        for index, item in enumerate(self.items):
            if item["type"] == "mcp_call" and item["status"] == "in_progress":
                self._finish({**item, "status": "incomplete"}, index)

    def close(self, *, is_cut: bool = False) -> None:
        """End the open item; `is_cut` if the model was stopped inside it."""
        if not self._kind:
            return
        item, text, place = self.items[-1], "".join(self._texts), self._place()
        status = "incomplete" if is_cut else "completed"
        if self._kind == "reasoning":
            part: Json = {"type": "reasoning_text", "text": text}
            self._emit("response.reasoning_text.done", {**place, "content_index": 0, "text": text})
        else:
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            self._emit("response.output_text.done", {**place, "content_index": 0, "text": text, "logprobs": []})
        self._emit("response.content_part.done", {**place, "content_index": 0, "part": part})
        item = {**item, "content": [part], "status": status}
        self._finish(item)
        self._kind = ""

    def _piece(self, kind: str, text: str) -> None:
        if kind != self._kind:
            self.close()
            self._open(kind)
        self._texts.append(text)
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        logprobs: Json = {} if kind == "reasoning" else {"logprobs": []}
        self._emit(name, {**self._place(), "content_index": 0, "delta": text, **logprobs})

    def _open(self, kind: str) -> None:
        self._kind, self._texts = kind, []
        part: Json
        if kind == "reasoning":
            self._start({"id": self._new_id("rs"), "type": "reasoning", "summary": [], "content": []})
            part = {"type": "reasoning_text", "text": ""}
        else:
            self._start({"id": self._new_id("msg"), "type": "message", "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._emit("response.content_part.added", {**self._place(), "content_index": 0, "part": part})

    def _begin_function_call(self, name: str) -> None:
        self.close()
        call_id = f"call_{self._id}{len(self.items):x}"
        named = self._namespaces.get(name, {"name": name})
        self._start({"id": self._new_id("fc"), "type": "function_call", "call_id": call_id, **named, "arguments": ""})

    def _end_function_call(self, call: ToolCallParsed) -> None:
        item = {**self.items[-1], "arguments": call.arguments_json}
        done = {**self._place(), "name": item["name"], "arguments": call.arguments_json}
        self._emit("response.function_call_arguments.done", done)
        self._finish({**item, "status": "completed" if call.malformed is None else "incomplete"})

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._id}{len(self.items):x}"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _start(self, item: Json) -> None:
        self.items.append({**item, "status": "in_progress"})
        self._emit("response.output_item.added", {"output_index": len(self.items) - 1, "item": self.items[-1]})

    def _finish(self, item: Json, index: int = -1) -> None:
        self.items[index] = item
        self._emit("response.output_item.done", {"output_index": index % len(self.items), "item": item})
