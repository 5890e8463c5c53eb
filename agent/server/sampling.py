"""How the answer to a request is sampled: the format it is held to, the call it must begin with, where it stops.

Must not know conversations, nor how a model is run.
"""

from agent.config import Settings
from agent.encoding import DSML, END_THINK, USER
from agent.server.items import Opening
from agent.server.requests import Create, constraint_of, forced_call, function_tools
from agent.server.wire import bad
from engine import Engine, EngineError, SamplingParams

CALL = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="'


async def sampling_of(
    request: Create, opening: Opening, engine: Engine, settings: Settings, temperature: float, room: int
) -> SamplingParams:
    """With a format and tools that may be called, the answer is calls, or text in the format; where no tool may be
    called no control token is sampled, which a call begins with. Raises ApiError for a format that is not possible."""
    constraint = constraint_of(request)
    if constraint is not None:
        try:
            await engine.check(constraint)
        except EngineError as e:
            raise bad(f"text.format: {e}", "text.format") from None
    may_call = bool(function_tools(request.tools)) and request.tool_choice != "none"
    tokenizer = engine.tokenizer
    user_id, end_think_id = tokenizer.token_id(USER), tokenizer.token_id(END_THINK)
    stop_ids = frozenset({tokenizer.eos_id} if user_id is None else {tokenizer.eos_id, user_id})
    never = tokenizer.special_ids - stop_ids
    if opening.thinking_mode == "thinking":
        never -= {end_think_id}
    return SamplingParams(
        temperature=temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        max_tokens=min(request.max_output_tokens or settings.max_output_tokens, room),
        stop_ids=stop_ids,
        never=frozenset() if may_call else never,
        constraint=constraint,
        instead=tuple(tokenizer.encode_protocol(CALL)) if may_call and constraint is not None else (),
    )


def forced_prefix(request: Create, opening: Opening) -> str:
    """The beginning of a call, as the model would write it, when it must make one."""
    functions = function_tools(request.tools)
    choice, name = forced_call(request, functions)
    if choice != "required":
        return ""
    start = (END_THINK if opening.thinking_mode == "thinking" else "") + CALL
    name = functions[0]["name"] if len(functions) == 1 else name
    return f'{start}{name}">\n' if name else start
