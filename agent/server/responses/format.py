"""How the answer to a request is sampled: its grammar, from the format and the tools, and where it stops.

Must not know conversations, nor how a model is run.
"""

from dataclasses import replace

from holdfast.agent.config import Settings
from holdfast.agent.encoding.call_grammar import NotPossible, begins_calls, calls_constraint, only_in_calls
from holdfast.agent.encoding.encode import END_THINK
from holdfast.agent.encoding.parse import stop_ids
from holdfast.agent.models.opened import AnyModel
from holdfast.agent.server.json import Json, bad
from holdfast.agent.server.responses.items import Opening
from holdfast.agent.server.responses.request import Create, constraint_of, forced_call, function_tools, strict_places
from holdfast.engine import Constraint, EngineError, SamplingParams


def temperature_of(request: Create, settings: Settings) -> float:
    """The temperature asked for, or that of the server."""
    return settings.temperature if request.temperature is None else request.temperature


async def sampling_of(
    request: Create, opening: Opening, engine: AnyModel, settings: Settings, *, room: int
) -> SamplingParams:
    """The parameters for an answer that is text in the format asked for, or calls of tools. Control tokens, with
    which a call begins, are excluded if no tool may be called. Raises ApiError for a format or a tool that is not
    possible."""
    constraint = constraint_of(request)
    if constraint is not None:
        try:
            await engine.check(constraint)
        except EngineError as e:
            raise bad(f"text.format: {e}", "text.format") from None
    tokenizer = engine.tokenizer
    stops = stop_ids(tokenizer)
    params = SamplingParams(
        temperature=temperature_of(request, settings),
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        seed=request.seed,
        max_tokens=min(request.max_output_tokens or settings.max_output_tokens, room),
        stop_ids=stops,
        never=tokenizer.special_ids - stops,
        constraint=constraint,
    )
    return await _with_calls(request, engine, params, thinks=opening.thinking_mode == "thinking")


async def _with_calls(request: Create, engine: AnyModel, params: SamplingParams, *, thinks: bool) -> SamplingParams:
    """Add the grammar of calls. Calls that are required come first, or right after the thinking."""
    tokenizer, functions = engine.tokenizer, function_tools(request.tools)
    end_think = tokenizer.token_id(END_THINK) if thinks else None
    ends_thinking = frozenset() if end_think is None else frozenset({end_think})
    choice, _ = forced_call(request, functions)
    if not functions or choice == "none":
        return replace(params, never=params.never - ends_thinking)
    if choice == "required" and ends_thinking:
        held = await _calls(request, engine, END_THINK, None)
        never = tokenizer.special_ids - ends_thinking
        return replace(params, constraint=held, begins=ends_thinking, never=never)
    if choice == "required" or params.constraint is not None:
        return replace(params, constraint=await _calls(request, engine, "", params.constraint))
    begins = begins_calls(tokenizer)
    calls = await _calls(request, engine, None, None) if begins else None
    return replace(params, constraint=calls, begins=begins, never=only_in_calls(tokenizer))


async def _calls(request: Create, engine: AnyModel, before: str | None, instead: Constraint | None) -> Constraint:
    """The grammar of the tools that may be called. Where a schema cannot be compiled, any arguments are allowed; for a
    strict tool ApiError is raised."""
    functions, strict = function_tools(request.tools), strict_places(request.tools)
    _, name = forced_call(request, functions)
    wanted = [function for function in functions if name in (None, function["name"])]

    async def compiled(functions: list[Json]) -> Constraint:
        may_be_many = request.parallel_tool_calls and name is None
        found = calls_constraint(engine.tokenizer, functions, before, may_be_many, instead)
        await engine.check(found)
        return found

    try:
        return await compiled(wanted)
    except (NotPossible, EngineError):
        pass  # one of them, or all together
    held: list[Json] = []
    for function in wanted:
        try:
            await compiled([function])
            held.append(function)
        except (NotPossible, EngineError) as e:
            if where := strict.get(function["name"]):
                raise bad(f"{where}.parameters: {e}", f"{where}.parameters") from None
            held.append({**function, "parameters": None})
    try:
        return await compiled(held)
    except EngineError as e:
        if strict:
            raise bad(f"tools: {e}", "tools") from None
        return await compiled([{**function, "parameters": None} for function in wanted])
