"""Tools a model can call, on a workspace and on its session.

Must not know who calls them or whether a call was approved.
"""

from holdfast.tools.call import CheckedCall, check_call, read_call, run_tool
from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.shell.jobs import Job
from holdfast.tools.shell.shell import Shell
from holdfast.tools.tool import Budget, Context, Permission, Result, Risk, Tool
from holdfast.tools.toolset import ToolChoice, command_tools, toolset
from holdfast.tools.workspace.journal import FileState, Journal
from holdfast.tools.workspace.shown import Seen
from holdfast.tools.workspace.workspace import Change, Workspace

__all__ = [
    "Budget",
    "Cancellation",
    "Change",
    "CheckedCall",
    "Context",
    "FileState",
    "Job",
    "Journal",
    "Permission",
    "Result",
    "Risk",
    "Seen",
    "Shell",
    "Tool",
    "ToolChoice",
    "ToolError",
    "Workspace",
    "check_call",
    "command_tools",
    "read_call",
    "run_tool",
    "toolset",
]
