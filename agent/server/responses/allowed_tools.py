"""`tool_choice` of type `allowed_tools`: the tools of a request that the model may call. Its prompt has no others.

Must not know how a call is made.
"""

from holdfast.agent.server.json import Json, bad

MAX_ALLOWED = 512


def allowed(tools: list[Json], choice: Json) -> tuple[list[Json], str]:
    """The allowed tools and the `tool_choice` among them. `tools` have been checked. Raises ApiError."""
    mode, wanted = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise bad("tool_choice.mode must be auto or required", "tool_choice.mode")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(tool, dict) for tool in wanted):
        raise bad("tool_choice.tools must be a list of at least one tool", "tool_choice.tools")
    if len(wanted) > MAX_ALLOWED:
        raise bad(f"tool_choice.tools has {len(wanted)} tools, and {MAX_ALLOWED} are the most", "tool_choice.tools")
    names = [_name(tool, tool.get("namespace")) for tool in wanted]
    known: list[object] = []
    found: list[Json] = []
    for tool in tools:
        own = _name(tool, None)
        inner = tool["tools"] if tool["type"] == "namespace" else []
        inner_names = [_name(each, tool.get("name")) for each in inner]
        known += [own, *inner_names]
        if own in names:
            found.append(tool)
        elif left := [each for each, name in zip(inner, inner_names, strict=True) if name in names]:
            found.append({**tool, "tools": left})
    for number, name in enumerate(names):
        if name not in known:
            where = f"tool_choice.tools[{number}]"
            raise bad(f"{where} is not among the tools: name one of them by its type and name", where)
    return found, mode


def _name(tool: Json, namespace: object) -> list[object]:
    """The identity of a tool: hosted tools have no name, MCP servers have a label."""
    return [tool.get("type"), namespace, tool.get("name"), tool.get("server_label")]
