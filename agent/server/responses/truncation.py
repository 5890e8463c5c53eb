"""Which items of a conversation go when it is too long: the oldest, and never half of a call and its result.

Must not know tokens: sizes are those of the items as JSON.
"""

from collections.abc import Sequence

from holdfast.agent.server.json import Json, dumps

LEFT_SHARE = 0.75  # of what fits: after it was shortened a conversation can grow for a while before it is read again


def shortened(items: Sequence[Json], share: float) -> list[Json] | None:
    """The items without the oldest, so that about this share of their text is left; None when none can go.

    System messages at the beginning stay. The rest begins with a user's message if possible, else with one of the
    model.
    """
    first = next((at for at, item in enumerate(items) if item.get("role") not in ("system", "developer")), len(items))
    starts = _starts(items, first)
    if not starts:
        return None
    sizes = [len(dumps(item)) for item in items]
    left, total = sum(sizes[first:]), sum(sizes)
    after: dict[int, int] = {}  # where it may begin -> what is left then
    for at in range(first, len(items)):
        after[at] = left
        left -= sizes[at]
    fitting = [at for at in starts if sum(sizes[:first]) + after[at] <= share * total] or starts[-1:]
    of_users = [at for at in fitting if not _is_models(items[at])]
    return [*items[:first], *items[(of_users or fitting)[0] :]]


def _starts(items: Sequence[Json], first: int) -> list[int]:
    """The indices at which a shortened conversation may begin."""
    starts: list[int] = []
    open_calls: set[str] = set()
    for at, item in enumerate(items):
        is_inside = item["type"] == "function_call_output" or (at and _is_models(item) and _is_models(items[at - 1]))
        if at > first and not open_calls and not is_inside:
            starts.append(at)
        if item["type"] == "function_call":
            open_calls.add(item["call_id"])
        elif item["type"] == "function_call_output":
            open_calls.discard(item["call_id"])
    return starts


def _is_models(item: Json) -> bool:
    return item["type"] in ("function_call", "reasoning") or item.get("role") == "assistant"
