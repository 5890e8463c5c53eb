"""Tools a model can call: read, outline, find_symbol, search and edit on a workspace, recall on its session.

Owns which tools there are and how they are described to the model. Must not know who calls them or whether a call was approved.
"""

from functools import partial

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.files import EditArguments, ReadArguments, edit, read
from holdfast.tools.recall import RecallArguments, Search, recall
from holdfast.tools.search import SearchArguments, search
from holdfast.tools.symbols.index import FindSymbolArguments, OutlineArguments, SymbolIndex, find_symbol, outline
from holdfast.tools.tool import Risk, Tool, ToolCall, ToolResult, run_tool
from holdfast.tools.workspace.workspace import Change, Workspace

__all__ = [
    "Cancellation",
    "Change",
    "Risk",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "Workspace",
    "run_tool",
    "toolset",
]


def toolset(workspace: Workspace, search_session: Search) -> dict[str, Tool]:
    """The tools on one workspace and one session, by name, in the order they are shown to the model."""
    index = SymbolIndex(workspace)
    tools = [
        Tool(
            "read",
            "Show numbered lines of a file, at most 200 per call.",
            ReadArguments,
            Risk.READ,
            partial(read, workspace),
        ),
        Tool(
            "outline",
            "List the classes, functions and constants of a source file.",
            OutlineArguments,
            Risk.READ,
            partial(outline, index),
        ),
        Tool(
            "find_symbol",
            "Find where a class, function or constant is defined.",
            FindSymbolArguments,
            Risk.READ,
            partial(find_symbol, index),
        ),
        Tool(
            "search",
            "Find lines that contain the exact text; an identifier matches only as a whole. path limits it to a file or folder.",
            SearchArguments,
            Risk.READ,
            partial(search, workspace),
        ),
        Tool(
            "edit",
            "Replace old by new in a file. old must match exactly once unless all is true; an identifier matches only as a whole.",
            EditArguments,
            Risk.EDIT,
            partial(edit, workspace),
        ),
        Tool(
            "recall",
            "Find what was said or done earlier in this session, also what is no longer in view.",
            RecallArguments,
            Risk.READ,
            partial(recall, search_session),
        ),
    ]
    return {tool.name: tool for tool in tools}
