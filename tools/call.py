"""One call from the model: its arguments checked, what it would do, and its run.

Owns what the model is told of a call that no tool takes. Must not know who decides whether a call may run.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from holdfast.tools.errors import ToolError
from holdfast.tools.threads import on_thread
from holdfast.tools.tool import Arguments, Context, Permission, Result, Risk, Tool, shown


@dataclass(frozen=True)
class CheckedCall:
    """A call and what it would do. Where `permission` refuses it, it runs nothing."""

    permission: Permission
    tool: Tool | None = None
    arguments: Arguments | None = None

    async def run(self, context: Context) -> Result:
        """The tool's result; the refusal if there is one."""
        if self.permission.refusal is not None:
            return context.result(f"error: {self.permission.refusal}", ok=False)
        assert self.tool is not None and self.arguments is not None
        return await self.tool.run(self.arguments, replace(context, permitted=self.permission))


async def check_call(tools: Mapping[str, Tool], name: str, arguments_json: str, context: Context) -> CheckedCall:
    """Read one call, whose `arguments_json` is unchecked text. What cannot run is refused in its permission, with the least risk."""
    try:
        tool, arguments = read_call(tools, name, arguments_json)
    except ToolError as e:
        return CheckedCall(Permission(Risk.READ, refusal=str(e)))
    try:
        return CheckedCall(await on_thread(tool.permission, arguments, context), tool, arguments)
    except (Exception, SystemExit, asyncio.CancelledError) as e:
        return CheckedCall(Permission(Risk.READ, refusal=tool.reason(e)))


async def run_tool(tools: Mapping[str, Tool], name: str, arguments_json: str, context: Context) -> Result:
    """Check and run one call without asking anybody."""
    return await (await check_call(tools, name, arguments_json, context)).run(context)


def read_call(tools: Mapping[str, Tool], name: str, arguments_json: str) -> tuple[Tool, Arguments]:
    """The tool and its arguments; raises ToolError for a mistake of the model, with the way out."""
    tool = tools.get(name)
    if tool is None:
        raise ToolError(f"no tool {shown(name)}; the tools are {', '.join(tools)}")
    takes = f"{tool.name} takes {', '.join(tool.schema()['parameters']['properties'])}"
    try:
        values = json.loads(arguments_json)
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ToolError(f"arguments of {tool.name} are not valid JSON: {reason}; {takes}") from None
    if not isinstance(values, dict):
        raise ToolError(f"arguments of {tool.name} must be a JSON object; {takes}")
    try:
        return tool, tool.parameters.model_validate(values)
    except ValidationError as e:
        raise ToolError(f"{_first_mistake(tool.name, e.errors())}; {takes}") from None


def _first_mistake(tool_name: str, mistakes: list[ErrorDetails]) -> str:
    mistake = mistakes[0]
    if not mistake["loc"]:
        return f"{tool_name}: the name of an argument has half a character (a lone surrogate)"
    argument = shown(str(mistake["loc"][0]))
    if mistake["type"] == "missing":
        return f"{tool_name} needs argument {argument}"
    if mistake["type"] == "extra_forbidden":
        return f"{tool_name} has no argument {argument}"
    return f"{tool_name}: {argument}={shown(repr(mistake['input']))} is wrong: {mistake['msg'].removeprefix('Value error, ')}"
