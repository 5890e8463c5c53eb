"""The response object, as clients see a response: its fields when it begins, and its usage.

Must not know how a response is made.
"""

from holdfast.agent.events import Usage
from holdfast.agent.server.json import Json
from holdfast.agent.server.responses.items import Opening
from holdfast.agent.server.responses.request import Create, is_hosted


def response_object(id: str, request: Create, opening: Opening, created_at: float, temperature: float) -> Json:
    """A response that has just begun, with every field that the protocol requires."""
    conversation = {"conversation": {"id": request.conversation_id}} if request.conversation_id else {}
    reasoning = {"effort": opening.effort and request.reasoning and request.reasoning.effort, "summary": None}
    return dict(
        id=id,
        object="response",
        created_at=int(created_at),
        completed_at=None,
        status="in_progress",
        background=request.background,
        error=None,
        incomplete_details=None,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=request.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=reasoning,
        safety_identifier=request.safety_identifier,
        service_tier=request.service_tier,
        store=request.store,
        temperature=temperature,
        text={"format": {"type": "text"}, **request.text},
        tool_choice=request.shown["tool_choice"],
        tools=[tool_object(tool) for tool in request.shown["tools"] if not is_hosted(tool)],
        top_logprobs=0,
        top_p=1.0 if request.top_p is None else request.top_p,
        truncation=request.truncation,
        usage=None,
        user=request.user,
        metadata=request.metadata,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        **conversation,
    )


def tool_object(tool: Json) -> Json:
    """A tool with every field that the protocol requires."""
    return {"description": None, "parameters": None, "strict": None, **tool} if tool["type"] == "function" else tool


def usage_object(usage: Usage, reasoning_tokens: int) -> Json:
    """Counters under the protocol's names. `cached_tokens` are those whose state was not computed again; the other
    details say where the input came from. All details are numbers: clients check it."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.from_memory + usage.from_disk,
            "cache_write_tokens": usage.new,
            "new_tokens": usage.new,
            "from_memory_tokens": usage.from_memory,
            "from_disk_tokens": usage.from_disk,
            "prefilled_again_tokens": usage.prefilled_again,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
