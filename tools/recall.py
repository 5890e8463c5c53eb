"""The tool `recall`: what was said and done earlier in this session, also what is no longer in view.

Owns its output format. Must not know how the log is searched.
"""

from collections.abc import Callable, Sequence
from functools import partial

from holdfast.memory import Found
from holdfast.tools.errors import ToolError
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Tool, reads, unlisted

MAX_FOUND = 8
MAX_REACHED = 400
Search = Callable[[str, int], Sequence[Found]]


class RecallArguments(Arguments):
    """`query` is words to look for; the events with most of them come first, from number `start` on."""

    query: str
    start: int = unlisted(1)


def recall(search: Search, args: RecallArguments, context: Context) -> str:
    """Up to eight passages of the session's log, each with its turn and kind; says how to go on when there are more."""
    if not args.query.strip():
        raise ToolError("query is empty; give words to look for")
    end = args.start - 1 + MAX_FOUND
    if end > MAX_REACHED:
        raise ToolError(f"start={args.start} is past what can be reached; give words that fewer passages have")
    found = search(args.query, end + 1)
    if not found[args.start - 1 :]:
        return f"nothing in this session matches {args.query}" + (f" from start={args.start} on" if found else "")
    more = [f"(more; continue with start={end + 1})"] if len(found) > end else []
    lines = [f"turn {f.turn}, {f.type}: {' '.join(f.snippet.split())}" for f in found[args.start - 1 : end]]
    return "\n".join(lines + more)


def recall_tool(search: Search) -> Tool:
    """On what was said in one session."""
    return Tool(
        "recall",
        "Find what was said or done earlier in this session, also what is no longer in view.",
        RecallArguments,
        "reads this session's own log",
        reads,
        threaded(partial(recall, search)),
    )
