"""Which tools a model is shown: all of them in their full form, or those that its directory names.

Owns the list of tools and the file `tools.json` of a model's directory. Must not know which model it is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast.tools import files
from holdfast.tools.editing.edit import EDIT
from holdfast.tools.editing.move import DELETE, MOVE
from holdfast.tools.editing.read import READ
from holdfast.tools.editing.write import WRITE
from holdfast.tools.errors import ToolError
from holdfast.tools.git.git import git_tool
from holdfast.tools.recall import Search, recall_tool
from holdfast.tools.search import SEARCH
from holdfast.tools.shell.jobs import jobs_tool
from holdfast.tools.shell.shell import Shell, shell_tool
from holdfast.tools.symbols.index import SymbolIndex, symbol_tools
from holdfast.tools.tool import Tool
from holdfast.tools.workspace.workspace import Workspace

FILE_NAME = "tools.json"


class ToolChoice(BaseModel):
    """`names` are shown in this order; None: every tool there is. `simple` tools take and tell less: a small model learned them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["full", "simple"] = "full"
    names: tuple[str, ...] | None = None

    @classmethod
    def read(cls, directory: Path) -> "ToolChoice":
        """What the file in a model's directory says; everything when there is none. Raises ToolError with one line."""
        path = directory / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except OSError as e:
            raise ToolError(f"{path} cannot be read: {e.strerror}") from None
        except ValidationError as e:
            mistake = e.errors()[0]
            where = ".".join(map(str, mistake["loc"]))
            raise ToolError(f"{path} is wrong{f' at {where}' if where else ''}: {mistake['msg']}") from None


def toolset(
    workspace: Workspace, search_session: Search, choice: ToolChoice | None = None, shell: Shell | None = None
) -> dict[str, Tool]:
    """The tools on one workspace and one session, by name, in the order they are shown to the model; with a `shell` those
    that run programs too. Raises ToolError for a choice that names a tool that is not there."""
    choice = choice or ToolChoice()
    forms: dict[str, Callable[[Workspace, Search], list[Tool]]] = {"full": _full, "simple": _simple}
    tools = {tool.name: tool for tool in forms[choice.form](workspace, search_session)}
    if shell is not None:
        tools |= command_tools(shell)
    if choice.names is None:
        return tools
    if unknown := [name for name in choice.names if name not in tools]:
        raise ToolError(
            f"{FILE_NAME} of the model names {unknown[0]!a}, and there is no such tool; the tools are {', '.join(tools)}"
        )
    return {name: tools[name] for name in choice.names}


def command_tools(shell: Shell) -> dict[str, Tool]:
    """The tools that run programs in the sandbox of one session."""
    return {tool.name: tool for tool in (shell_tool(shell), jobs_tool(shell.jobs), git_tool(shell))}


def _full(workspace: Workspace, search_session: Search) -> list[Tool]:
    outline, find_symbol = symbol_tools(SymbolIndex(workspace))
    return [READ, outline, find_symbol, SEARCH, EDIT, WRITE, MOVE, DELETE, recall_tool(search_session)]


def _simple(workspace: Workspace, search_session: Search) -> list[Tool]:
    outline, find_symbol = symbol_tools(SymbolIndex(workspace))
    return [files.READ, outline, find_symbol, SEARCH, files.EDIT, recall_tool(search_session)]
