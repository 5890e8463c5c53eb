"""The tool `recall`: what was said and done earlier in this session, also what is no longer in view.

Owns its output format. Must not know how the log is searched.
"""

from collections.abc import Callable, Sequence

from memory import Found

from .tool import Arguments, Cancellation, ToolError

MAX_FOUND = 8
Search = Callable[[str, int], Sequence[Found]]


class RecallArguments(Arguments):
    """`query` is words to look for; the events with most of them come first."""

    query: str


def recall(search: Search, args: RecallArguments, _: Cancellation) -> str:
    """Up to eight passages of the session's log, each with its turn and kind."""
    if not args.query.strip():
        raise ToolError("query is empty; give words to look for")
    found = search(args.query, MAX_FOUND)
    if not found:
        return f"nothing in this session matches {args.query}"
    return "\n".join(f"turn {f.turn}, {f.type}: {' '.join(f.snippet.split())}" for f in found)
