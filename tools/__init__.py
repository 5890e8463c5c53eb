"""Tools a model can call: read, outline, find_symbol, search and edit on a workspace, recall on its session.

Owns which tools there are, in which order. Must not know who calls them or whether a call was approved.
"""

from holdfast.tools.call import CheckedCall, check_call, read_call, run_tool
from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.files import EDIT, READ
from holdfast.tools.git.git import git_tool
from holdfast.tools.recall import Search, recall_tool
from holdfast.tools.search import SEARCH
from holdfast.tools.shell.jobs import Job, jobs_tool
from holdfast.tools.shell.shell import Shell, shell_tool
from holdfast.tools.symbols.index import SymbolIndex, symbol_tools
from holdfast.tools.tool import Budget, Context, Permission, Result, Risk, Tool
from holdfast.tools.workspace.workspace import Change, Workspace

__all__ = [
    "Budget",
    "Cancellation",
    "Change",
    "CheckedCall",
    "Context",
    "Job",
    "Permission",
    "Result",
    "Risk",
    "Shell",
    "Tool",
    "ToolError",
    "Workspace",
    "check_call",
    "command_tools",
    "read_call",
    "run_tool",
    "toolset",
]


def command_tools(shell: Shell) -> dict[str, Tool]:
    """The tools that run programs in the sandbox of one session."""
    return {tool.name: tool for tool in (shell_tool(shell), jobs_tool(shell.jobs), git_tool(shell))}


def toolset(workspace: Workspace, search_session: Search) -> dict[str, Tool]:
    """The tools on one workspace and one session, by name, in the order they are shown to the model."""
    outline, find_symbol = symbol_tools(SymbolIndex(workspace))
    tools = (READ, outline, find_symbol, SEARCH, EDIT, recall_tool(search_session))
    return {tool.name: tool for tool in tools}
