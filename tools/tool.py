"""What a tool is, and how one call from the model is checked and run.

Owns Tool, ToolCall, ToolResult, Risk and `run_tool`. Knows no particular tool, no workspace, no approval policy and no wire format.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from holdfast.tools.errors import Cancellation, ToolError

MAX_SHOWN_VALUE_CHARS = 60
UNLISTED = "unlisted"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
log = logging.getLogger("holdfast.tools")


class Risk(Enum):
    """The worst a tool can do; what is allowed without asking is the agent's policy."""

    READ = "read"
    EDIT = "edit"
    EXECUTE = "execute"


class Arguments(BaseModel):
    """Base of every tool's parameters: an argument that no tool declares is an error, and so is text that UTF-8 cannot hold."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _holds_characters(cls, value: Any) -> Any:
        if isinstance(value, str) and LONE_SURROGATE.search(value):
            raise ValueError("it has half a character (a lone surrogate), which no file and no name can have")
        return value


def unlisted(default: int) -> Any:
    """A whole number of at least 1 that the schema does not list: an output names it where there is more (`continue with column=501`)."""
    return Field(default=default, ge=1, json_schema_extra={UNLISTED: True})


@dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it; `arguments_json` is unchecked text."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True)
class ToolResult:
    """What goes back to the model; a failed call has `ok=False` and an output starting with `error: `."""

    id: str
    output: str
    ok: bool


@dataclass(frozen=True)
class Tool:
    """One tool: `run` takes an instance of `parameters` and a Cancellation, returns text, and raises ToolError to refuse."""

    name: str
    description: str
    parameters: type[Arguments]
    risk: Risk
    run: Callable[[Any, Cancellation], str]

    def schema(self) -> dict[str, Any]:
        """Name, description and JSON schema of the arguments, with nothing the model does not need."""
        full = self.parameters.model_json_schema()
        listed = {name: prop for name, prop in full.get("properties", {}).items() if not prop.get(UNLISTED)}
        properties = {name: _trimmed(prop) for name, prop in listed.items()}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if full.get("required"):
            parameters["required"] = full["required"]
        return {"name": self.name, "description": self.description, "parameters": parameters}


def run_tool(tools: Mapping[str, Tool], call: ToolCall, cancellation: Cancellation | None = None) -> ToolResult:
    """Check and run one call, until it is cancelled. Any failure gives `ok=False`, never an exception: a mistake of the model, a
    failing file system, and a fault of ours, whose traceback is logged."""
    try:
        tool = tools.get(call.name)
        if tool is None:
            raise ToolError(f"no tool {_shown(call.name)}; the tools are {', '.join(tools)}")
        arguments = _parse_arguments(tool, call.arguments_json)
        return ToolResult(call.id, tool.run(arguments, cancellation or Cancellation()), ok=True)
    except ToolError as e:
        return ToolResult(call.id, f"error: {e}", ok=False)
    except OSError as e:
        return ToolResult(call.id, f"error: {call.name} failed: {e.strerror or _shown(str(e))}", ok=False)
    except Exception as e:
        log.exception("the tool %s failed", call.name)
        return ToolResult(call.id, f"error: {call.name} failed by a fault of its own ({type(e).__name__})", ok=False)


def _parse_arguments(tool: Tool, arguments_json: str) -> Arguments:
    takes = f"{tool.name} takes {', '.join(tool.schema()['parameters']['properties'])}"
    try:
        values = json.loads(arguments_json)
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ToolError(f"arguments of {tool.name} are not valid JSON: {reason}; {takes}") from None
    if not isinstance(values, dict):
        raise ToolError(f"arguments of {tool.name} must be a JSON object; {takes}")
    try:
        return tool.parameters.model_validate(values)
    except ValidationError as e:
        raise ToolError(f"{_first_mistake(tool.name, e.errors())}; {takes}") from None


def _first_mistake(tool_name: str, mistakes: list[ErrorDetails]) -> str:
    mistake = mistakes[0]
    if not mistake["loc"]:
        return f"{tool_name}: the name of an argument has half a character (a lone surrogate)"
    argument = _shown(str(mistake["loc"][0]))
    if mistake["type"] == "missing":
        return f"{tool_name} needs argument {argument}"
    if mistake["type"] == "extra_forbidden":
        return f"{tool_name} has no argument {argument}"
    return f"{tool_name}: {argument}={_shown(repr(mistake['input']))} is wrong: {mistake['msg'].removeprefix('Value error, ')}"


def _shown(value: str) -> str:
    """A value of the model's, safe inside a one-line message."""
    one_line = value if value.isprintable() else ascii(value)
    return one_line if len(one_line) <= MAX_SHOWN_VALUE_CHARS else one_line[:MAX_SHOWN_VALUE_CHARS] + "…"


def _trimmed(prop: dict[str, Any]) -> dict[str, Any]:
    """Drop titles and spell an optional argument as its plain type: leaving it out is how to say null."""
    kept = {key: value for key, value in prop.items() if key not in ("title", "anyOf", "default")}
    for option in prop.get("anyOf", []):
        if option.get("type") != "null":
            kept.update(option)
    if prop.get("default") is not None:
        kept["default"] = prop["default"]
    return kept
