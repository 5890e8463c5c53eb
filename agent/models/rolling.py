"""Rolling: what leaves the window when the context budget is full.

Nothing that stays is read again.

The oldest pages go, all layers together, in steps of a sixteenth of the budget; the pinned prefix (the first pages:
system prompt, tools, rules) stays and moves to sit right before the rest. Turns that went stay in the log, where
`recall` finds them. A roll is an event of the log: it changes what later tokens saw, so computing them again
rolls again.
"""

from collections.abc import Iterable

from holdfast.agent.events import Rolled
from holdfast.agent.models.model import Stateful
from holdfast.engine import Roll, Sequence
from holdfast.memory import LoggedEvent, TurnInfo

STEP_SHARE = 16
KEPT_TOKENS = 512  # at least these stay behind the head: a window of attention and what was said last


def rolls_of(events: Iterable[LoggedEvent]) -> list[Roll]:
    """The rolls that a branch went through, in order."""
    rolled = (Rolled.model_validate(event.payload) for event in events if event.type == "rolled")
    return [Roll(r.position, r.first_kept, r.head_tokens) for r in rolled]


def droppable(engine: Stateful, seq: Sequence) -> int:
    """Tokens that could leave now."""
    page = engine.config.page_tokens
    return max(0, (seq.num_tokens - KEPT_TOKENS) // page * page - _first_kept(engine, seq))


def next_roll(engine: Stateful, seq: Sequence, missing: int) -> Roll | None:
    """A roll that makes room for `missing` tokens, a whole step at least; None when that is not possible."""
    page = engine.config.page_tokens
    wanted = max(missing, engine.max_context // STEP_SHARE)
    num_dropped = min(-(-wanted // page) * page, droppable(engine, seq))
    if num_dropped < missing or num_dropped <= 0:
        return None
    return Roll(seq.num_tokens, _first_kept(engine, seq) + num_dropped, _head_tokens(engine))


def rolled_out(turns: Iterable[TurnInfo], first_kept: int) -> int:
    """The last turn that is out of the window, 0 for none."""
    return max((turn.number for turn in turns if turn.end_position <= first_kept), default=0)


def _first_kept(engine: Stateful, seq: Sequence) -> int:
    return seq.chain.rolls[-1].first_kept if seq.chain.rolls else _head_tokens(engine)


def _head_tokens(engine: Stateful) -> int:
    return engine.config.pinned_pages * engine.config.page_tokens
