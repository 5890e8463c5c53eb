"""Promises of the Responses API over HTTP and SSE, through the unmodified openai client."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from tests.agent.server.serving import (
    ASK,
    KNOWN,
    MODEL,
    SYSTEM_TEXT,
    TELL,
    WHERE,
    Server,
    agent_tools,
    create,
    origins,
    served,
)

INPUTS: list[Any] = [
    TELL,
    [{"role": "user", "content": TELL}],
    [{"type": "message", "role": "user", "content": TELL}],
    [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TELL}]}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TELL}],
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": TELL}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": TELL}],
    [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello.", "phase": "commentary"}, {"role": "user", "content": "go on"}],
    [{"role": "user", "content": "hi"}, {"role": "developer", "content": "Be brief."}, {"role": "user", "content": "go on"}],
    [{"role": "user", "content": "hi"}, {"type": "reasoning", "id": "rs_1", "summary": [], "content": []}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "Grüße, 世界 🌍 \u0000 </think> <｜User｜>"}],
    [{"type": "compaction", "id": "cmp_1", "encrypted_content": "earlier: the port is 4711"}, {"role": "user", "content": ASK}],
]  # fmt: skip


@pytest.mark.parametrize("input", INPUTS, ids=range(len(INPUTS)))
def test_every_form_of_input_is_answered(client: openai.OpenAI, input: Any) -> None:
    response = create(client, input)
    assert response.status in ("completed", "incomplete") and response.output
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens == sum(origins(response).values())


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"instructions": "Be brief."}, {"instructions": "Be brief."}),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"max_output_tokens": 3}, {"max_output_tokens": 3, "status": "incomplete"}),
        ({"user": "u"}, {"user": "u"}),
        ({"safety_identifier": "s"}, {"safety_identifier": "s"}),
        ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"store": False}, {"store": False}),
        ({"truncation": "disabled"}, {"truncation": "disabled"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"max_tool_calls": 3}, {"max_tool_calls": 3}),
        ({"extra_body": {"field_of_tomorrow": {"a": 1}}}, {}),
        ({"extra_body": {"instructions": None, "tools": None, "store": None}}, {"instructions": None, "store": True}),
    ],
    ids=str,
)  # fmt: skip
def test_a_field_of_the_request_is_honoured_and_shown(client: openai.OpenAI, fields: dict, shown: dict) -> None:
    response = create(client, TELL, **fields).model_dump()
    assert {key: response[key] for key in shown} == shown


def test_sampling_with_a_seed_is_reproducible(client: openai.OpenAI) -> None:
    texts = {create(client, "hi", temperature=1.5, extra_body={"seed": 7}).output_text for _ in range(2)}
    assert len(texts) == 1


def test_a_response_that_is_cut_says_why(client: openai.OpenAI) -> None:
    response = create(client, TELL, max_output_tokens=2)
    assert response.incomplete_details.reason == "max_output_tokens" and response.usage.output_tokens == 2
    assert response.output[-1].status == "incomplete" and response.completed_at is None


def test_a_continuation_knows_what_was_said_and_reads_nothing_again(client: openai.OpenAI) -> None:
    first = create(client, TELL)
    second = create(client, ASK, previous_response_id=first.id)
    assert second.output_text.strip() == KNOWN and second.previous_response_id == first.id
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens
    assert origins(second)["prefilled_again_tokens"] == 0


def test_going_on_twice_from_one_response_forks(client: openai.OpenAI) -> None:
    first = create(client, TELL)
    forks = [create(client, ASK, previous_response_id=first.id) for _ in range(3)]
    assert {fork.output_text.strip() for fork in forks} == {KNOWN}
    assert [origins(fork)["prefilled_again_tokens"] for fork in forks] == [0, 0, 0]
    other = create(client, "hi", previous_response_id=forks[1].id)
    assert other.usage.input_tokens > forks[1].usage.total_tokens


def test_a_chain_of_turns_grows_by_what_is_new(client: openai.OpenAI) -> None:
    response = create(client, TELL)
    for _ in range(5):
        before, response = response, create(client, ASK, previous_response_id=response.id)
        assert origins(response)["from_memory_tokens"] == before.usage.total_tokens
        assert response.output_text.strip() == KNOWN


def test_other_instructions_read_the_same_conversation_anew(client: openai.OpenAI) -> None:
    first = create(client, TELL, instructions="You are terse.")
    second = create(client, ASK, previous_response_id=first.id, instructions="You are kind.")
    assert KNOWN.split()[-1] in second.output_text and origins(second)["from_memory_tokens"] == 0
    same = create(client, ASK, previous_response_id=first.id, instructions="You are terse.")
    assert origins(same)["prefilled_again_tokens"] == 0 and same.usage.input_tokens_details.cached_tokens > 0


def test_a_conversation_that_comes_whole_is_found_by_content(client: openai.OpenAI) -> None:
    first = create(client, "remember that the blue port is 17")
    items = [{"role": "user", "content": "remember that the blue port is 17"}, *[o.model_dump() for o in first.output]]
    second = create(client, [*items, {"role": "user", "content": "what is the blue port?"}])
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens


def test_items_may_be_referred_to(client: openai.OpenAI) -> None:
    first = create(client, TELL)
    said = client.responses.input_items.list(first.id).data[0]
    items = [{"type": "item_reference", "id": item.id} for item in (said, first.output[0])]
    second = create(client, [*items, {"role": "user", "content": ASK}])
    assert second.output_text.strip() == KNOWN and origins(second)["new_tokens"] < 20
    with pytest.raises(openai.BadRequestError) as e:
        create(client, [{"type": "item_reference", "id": "msg_" + "0" * 33}])
    assert e.value.code == "item_not_found"


def test_a_tool_call_and_its_result(client: openai.OpenAI, workspace: Path) -> None:
    tools = agent_tools(workspace)
    first = create(client, WHERE, tools=tools, instructions=SYSTEM_TEXT)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "find_symbol" and json.loads(call.arguments) == {"name": "load_page"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "net/fetcher.py:5 def load_page"}
    second = create(client, [result], previous_response_id=first.id, tools=tools, instructions=SYSTEM_TEXT)
    assert "net/fetcher.py:5" in second.output_text and origins(second)["prefilled_again_tokens"] == 0


def test_a_tool_call_in_a_conversation_that_comes_whole(client: openai.OpenAI, workspace: Path) -> None:
    tools = agent_tools(workspace)
    first = create(client, WHERE, tools=tools, instructions=SYSTEM_TEXT, store=False)
    (call,) = [item for item in first.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "net/fetcher.py:5 def load_page"}
    items = [{"role": "user", "content": WHERE}, *[o.model_dump() for o in first.output], result]
    second = create(client, items, tools=tools, instructions=SYSTEM_TEXT, store=False)
    assert "net/fetcher.py:5" in second.output_text
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens


WEATHER = {
    "type": "function",
    "name": "get",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SPACES = [
    {"type": "namespace", "name": "weather", "description": "Weather", "tools": [WEATHER]},
    {"type": "web_search"},
]


def test_tools_come_in_namespaces_and_hosted_ones_are_left_out(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "namespace": "weather", "name": "get"}
    stream = create(client, "Paris?", tools=SPACES, tool_choice=choice, include=["holdfast:events"], stream=True)
    events = list(stream)
    first = events[-1].response
    (call,) = [item.to_dict() for item in first.output if item.type == "function_call"][:1]
    assert (call["namespace"], call["name"]) == ("weather", "get")
    assert [tool.type for tool in first.tools] == ["namespace"]
    assert "web_search" in next(event.message for event in events if event.type == "holdfast:notice")
    calls = [item for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": item.call_id, "output": "rain"} for item in calls]
    said = [{"role": "user", "content": "Paris?"}, *[item.to_dict() for item in first.output], *results]
    second = create(client, said, tools=SPACES)
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}], ids=str)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_can_be_forced(client: openai.OpenAI, choice: Any, is_stream: bool) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "name": "get_weather", "description": "Weather", "parameters": schema}]
    given = create(client, "weather in Paris?", tools=tools, tool_choice=choice, stream=is_stream)
    response = list(given)[-1].response if is_stream else given
    assert [item.name for item in response.output if item.type == "function_call"][:1] == ["get_weather"]


SHAPE = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("effort", [None, "high"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_is_held_to_its_schema(client: openai.OpenAI, is_stream: bool, effort: str | None) -> None:
    form = {"type": "json_schema", "name": "trip", "schema": SHAPE, "strict": True}
    given = create(client, "a trip", text={"format": form}, stream=is_stream, reasoning={"effort": effort})
    response = list(given)[-1].response if is_stream else given
    answer = json.loads(response.output_text)
    assert response.status == "completed" and set(answer) == {"city", "days"}
    assert answer["city"] in ("Paris", "Rome") and 1 <= answer["days"] <= 9


def test_an_answer_can_be_any_object_and_says_when_it_was_cut(client: openai.OpenAI) -> None:
    response = create(client, "anything", text={"format": {"type": "json_object"}}, max_output_tokens=400)
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)
    cut = create(client, "anything", text={"format": {"type": "json_object"}}, max_output_tokens=1)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_chat_completions_hold_answers_to_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SHAPE}}
    chat = client.chat.completions.create(  # type: ignore[call-overload]
        model=MODEL, messages=[{"role": "user", "content": "a trip"}], response_format=form
    )
    assert json.loads(chat.choices[0].message.content)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("is_stream", [False, True])
def test_with_a_format_and_tools_the_answer_is_a_call_or_fits_the_format(
    client: openai.OpenAI, workspace: Path, is_stream: bool
) -> None:
    format_ = {"type": "json_schema", "name": "trip", "schema": SHAPE}
    fields: dict[str, Any] = {"tools": agent_tools(workspace), "instructions": SYSTEM_TEXT, "text": {"format": format_}}

    def ask(input: Any, **more: Any) -> Any:
        if is_stream:
            return list(create(client, input, stream=True, **fields, **more))[-1].response
        return create(client, input, **fields, **more)

    first = ask(WHERE)
    assert [item.type for item in first.output] == ["function_call"] and first.status == "completed"
    assert json.loads(first.output[0].arguments) == {"name": "load_page"}
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "a.py:1 def load_page"}
    second = ask([result], previous_response_id=first.id, tool_choice="none")
    told = ask(ASK)
    assert [set(json.loads(answer.output_text)) for answer in (second, told)] == [{"city", "days"}] * 2
    forced = ask(TELL, tool_choice="required")
    assert [item.type for item in forced.output] == ["function_call"]


def test_no_call_is_made_where_none_is_allowed(client: openai.OpenAI, workspace: Path) -> None:
    response = create(client, WHERE, tools=agent_tools(workspace), tool_choice="none", instructions=SYSTEM_TEXT)
    assert response.tool_choice == "none" and len(response.tools) == len(agent_tools(workspace))
    assert [item.type for item in response.output] == ["message"]


@pytest.mark.parametrize("fields", [{}, {"reasoning": {"effort": "high"}}, {"temperature": 2.0}, {"stream": True}])
def test_no_call_is_made_without_tools(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = create(client, WHERE, instructions=SYSTEM_TEXT, **fields)
    response = list(answer)[-1].response if "stream" in fields else answer
    assert "function_call" not in {item.type for item in response.output}
    assert response.status == "completed" or "temperature" in fields  # at random it may not come to an end
    assert create(client, TELL, previous_response_id=response.id).status == "completed"


def test_one_call_at_a_time_when_asked_for(client: openai.OpenAI, workspace: Path) -> None:
    fields = {"tools": agent_tools(workspace), "instructions": SYSTEM_TEXT, "parallel_tool_calls": False}
    response = create(client, WHERE, **fields)
    assert [item.type for item in response.output].count("function_call") == 1 and response.status == "completed"


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh"])
def test_reasoning_comes_as_an_item_of_its_own(client: openai.OpenAI, effort: str) -> None:
    response = create(client, "hi", reasoning={"effort": effort}, max_output_tokens=8)
    assert response.reasoning.effort == effort and response.output[0].type == "reasoning"
    assert response.output[0].content[0].type == "reasoning_text"
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_response_is_retrieved_and_deleted(client: openai.OpenAI) -> None:
    response = create(client, TELL)
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    for ask in (lambda: client.responses.retrieve(response.id), lambda: client.responses.delete(response.id)):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError) as e:
        create(client, ASK, previous_response_id=response.id)
    assert e.value.code == "previous_response_not_found"


def test_what_goes_on_from_a_deleted_response_stays(client: openai.OpenAI) -> None:
    first = create(client, TELL)
    second = create(client, ASK, previous_response_id=first.id)
    client.responses.delete(first.id)
    third = create(client, ASK, previous_response_id=second.id)
    assert third.output_text.strip() == KNOWN and origins(third)["prefilled_again_tokens"] == 0


def test_a_response_that_is_not_stored_cannot_be_retrieved(client: openai.OpenAI) -> None:
    response = create(client, TELL, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError):
        create(client, ASK, previous_response_id=response.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_input_items_are_paged(client: openai.OpenAI, order: Any) -> None:
    texts = [f"text {number}" for number in range(5)]
    response = create(client, [{"role": "user", "content": text} for text in texts])
    pages = client.responses.input_items.list(response.id, order=order, limit=2)
    found = [item.content[0].text for item in pages]  # type: ignore[union-attr]
    assert found == (texts if order == "asc" else texts[::-1])


def test_input_tokens_are_what_a_response_then_reads(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=TELL, instructions="Be brief.")
    response = create(client, TELL, instructions="Be brief.")
    assert counted.input_tokens == response.usage.input_tokens
    more = client.responses.input_tokens.count(
        model=MODEL, input=ASK, previous_response_id=response.id, instructions="Be brief."
    )
    assert more.input_tokens > response.usage.total_tokens


def test_a_conversation_is_compacted_and_goes_on(client: openai.OpenAI) -> None:
    compacted = client.responses.compact(model=MODEL, input=[{"role": "user", "content": TELL}])
    assert compacted.object == "response.compaction" and compacted.output[-1].type == "compaction"
    response = create(client, [*(o.model_dump() for o in compacted.output), {"role": "user", "content": ASK}])
    assert response.status == "completed"


def test_a_response_in_the_background_is_polled(client: openai.OpenAI) -> None:
    response = create(client, TELL, background=True)
    assert response.status in ("queued", "in_progress")
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.status == "completed" and "4711" in response.output_text


def test_a_running_response_is_cancelled(client: openai.OpenAI) -> None:
    running = create(client, "hi " * 30_000, background=True)
    cancelled = client.responses.cancel(running.id)
    assert cancelled.status == "cancelled" == client.responses.retrieve(running.id).status
    assert client.responses.cancel(running.id).status == "cancelled"


def test_a_completed_response_cannot_be_cancelled(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(create(client, TELL).id)


def test_prefill_ahead_leaves_little_to_read(client: openai.OpenAI) -> None:
    text = "The colour of the house is red. " * 40
    ahead = create(client, text, extra_body={"generate": False})
    assert ahead.status == "completed" and ahead.output == [] and ahead.usage.output_tokens == 0
    response = create(client, "hi", previous_response_id=ahead.id)
    assert response.usage.input_tokens_details.cached_tokens >= ahead.usage.input_tokens - 32
    assert response.usage.input_tokens > ahead.usage.input_tokens


def test_a_conversation_that_is_too_long_loses_its_beginning_when_that_is_asked_for(tmp_path: Path) -> None:
    with served(tmp_path, max_context=2048) as server, server.client() as client:
        before = None
        texts, inputs = [], []
        for turn in range(12):
            text = f"note {turn}: " + "the house is red " * 60
            response = create(
                client,
                text,
                previous_response_id=before,
                truncation="auto",
                instructions="Be brief.",
                max_output_tokens=8,
            )
            assert response.truncation == "auto" and response.usage.input_tokens < 2048 - 8
            texts.append(text)
            inputs.append(response.usage.input_tokens)
            before = response.id
        ids = server.running.service.cache.in_memory[before].ids.tolist()
        said = server.running.service.app.engine.tokenizer.decode(ids)
        kept = [f"note {turn}:" in said for turn in range(12)]
        assert kept == sorted(kept) and kept[-2:] == [True, True] and not kept[0]
        assert said.index("Be brief.") < said.index("the house")
        assert sum(after < earlier for earlier, after in pairwise(inputs)) < 6  # it is not read anew every turn
        with pytest.raises(openai.BadRequestError) as e:
            create(client, "x " * 3000, previous_response_id=before, truncation="disabled")
        assert e.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):  # one item alone that does not fit
            create(client, "x " * 6000, truncation="auto")
        whole = [{"role": "user", "content": text} for text in texts]
        assert create(client, whole, truncation="auto", max_output_tokens=8).usage.input_tokens < 2040


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, AGENT_MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics_count_tokens_by_origin(server: Server) -> None:
    text = server.get("/metrics").text
    for name in ("holdfast_tokens_total{origin=\"from_memory\"}", "holdfast_response_seconds_bucket", "holdfast_disk_bytes",
                 "holdfast_pool_pages_used", "holdfast_loop_stall_seconds_bucket", "holdfast_requests_total{route=\"/v1/responses\",status=\"200\"}"):  # fmt: skip
        assert name in text
    assert server.get("/healthz", Authorization="none").json() == {"status": "ok"}
