"""Cases for the `openai` package of February 2026, run by an interpreter that has that package and none of ours.

What it needs to know comes as JSON on stdin; for each case a line of JSON goes out: its name, and what went wrong.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import openai

GIVEN = json.load(sys.stdin)  # url, token, model, system, tools, chat_tools
MODEL = GIVEN["model"]
TELL, ASK, KNOWN = "remember that the staging port is 4711", "what is the staging port?", "The staging port is 4711."
WHERE = "where is load_page defined?"
SHAPE = {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
FORMAT: Any = {"type": "json_schema", "name": "trip", "schema": SHAPE, "strict": True}
WITH_TOOLS: Any = {"tools": GIVEN["tools"], "instructions": GIVEN["system"]}
LAST = ("response.completed", "response.incomplete", "response.failed", "error")
client = openai.OpenAI(
    base_url=f"{GIVEN['url']}/v1", websocket_base_url=f"{GIVEN['url'].replace('http', 'ws', 1)}/v1",
    api_key=GIVEN["token"], max_retries=0, timeout=60,
)  # fmt: skip
cases: list[Callable[[], None]] = []


def case(function: Callable[[], None]) -> Callable[[], None]:
    cases.append(function)
    return function


def create(input: Any, **fields: Any) -> Any:
    return client.responses.create(model=MODEL, input=input, **fields)


def refused(kind: type[openai.APIStatusError], ask: Callable[[], Any]) -> Any:
    """The error that it ends with."""
    try:
        ask()
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


def said(connection: Any, **fields: Any) -> list[Any]:
    """One response over a WebSocket: its events."""
    connection.response.create(model=MODEL, **fields)
    return until_last(connection)


def until_last(connection: Any) -> list[Any]:
    events = []
    while not events or events[-1].type not in LAST:
        events.append(connection.recv())
    return events


# ---- HTTP


@case
def a_text_is_answered() -> None:
    response = create(TELL)
    assert response.status == "completed" and "4711" in response.output_text
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


@case
def items_are_answered() -> None:
    assert create([{"role": "system", "content": "Be brief."}, {"role": "user", "content": TELL}]).output_text


@case
def parts_are_answered() -> None:
    assert create([{"role": "user", "content": [{"type": "input_text", "text": TELL}]}]).output_text


@case
def a_response_goes_on() -> None:
    second = create(ASK, previous_response_id=create(TELL).id)
    assert second.output_text.strip() == KNOWN and second.usage.input_tokens_details.cached_tokens > 0


@case
def a_response_forks() -> None:
    first = create(TELL)
    forks = [create(ASK, previous_response_id=first.id) for _ in range(2)]
    assert [fork.output_text.strip() for fork in forks] == [KNOWN] * 2 and forks[0].id != forks[1].id


@case
def a_conversation_that_comes_whole_is_known() -> None:
    first = create(TELL)
    items = [{"role": "user", "content": TELL}, *first.output, {"role": "user", "content": ASK}]
    second = create(items)
    assert second.output_text.strip() == KNOWN
    assert second.usage.input_tokens_details.cached_tokens == first.usage.total_tokens


@case
def instructions_and_metadata_are_kept() -> None:
    response = create(TELL, instructions="Be brief.", metadata={"k": "v"}, user="me", safety_identifier="s")
    again = client.responses.retrieve(response.id)
    assert (again.instructions, again.metadata, again.user) == ("Be brief.", {"k": "v"}, "me")


@case
def sampling_is_honoured() -> None:
    texts = {create("hi", temperature=0.0, top_p=1.0, max_output_tokens=8).output_text for _ in range(2)}
    assert len(texts) == 1


@case
def an_answer_that_is_cut_says_so() -> None:
    response = create(TELL, max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"


@case
def reasoning_is_an_item() -> None:
    response = create("hi", reasoning={"effort": "high"}, max_output_tokens=8)
    assert response.output[0].type == "reasoning" and response.usage.output_tokens_details.reasoning_tokens > 0


@case
def a_response_is_retrieved() -> None:
    response = create(TELL)
    assert client.responses.retrieve(response.id).output == response.output


@case
def a_response_is_deleted() -> None:
    response = create(TELL)
    client.responses.delete(response.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(response.id))


@case
def input_items_are_listed() -> None:
    response = create([{"role": "user", "content": text} for text in "abc"])
    page = client.responses.input_items.list(response.id, order="asc", limit=2)
    assert [item.content[0].text for item in page] == ["a", "b", "c"]


@case
def input_tokens_are_counted() -> None:
    assert client.responses.input_tokens.count(model=MODEL, input=TELL).input_tokens == create(TELL).usage.input_tokens


@case
def a_conversation_is_compacted() -> None:
    compacted = client.responses.compact(model=MODEL, input=[{"role": "user", "content": TELL}])
    assert compacted.object == "response.compaction"
    assert create([*compacted.output, {"role": "user", "content": ASK}]).status == "completed"


@case
def a_response_in_the_background_is_polled() -> None:
    response = create(TELL, background=True)
    while response.status in ("queued", "in_progress"):
        response = client.responses.retrieve(response.id)
    assert response.status == "completed"


@case
def a_response_is_cancelled() -> None:
    running = create("hi " * 20_000, background=True)
    assert client.responses.cancel(running.id).status == "cancelled"


@case
def models_are_listed() -> None:
    assert MODEL in [model.id for model in client.models.list()] and client.models.retrieve(MODEL).id == MODEL


# ---- SSE


@case
def a_stream_has_its_events_in_order() -> None:
    events = list(create(TELL, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


@case
def the_stream_helper_makes_the_same_response() -> None:
    with client.responses.stream(model=MODEL, input=TELL) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text


@case
def a_stream_is_replayed() -> None:
    events = [event.to_dict() for event in create(TELL, stream=True)]
    again = client.responses.retrieve(events[-1]["response"]["id"], stream=True, starting_after=3)  # type: ignore[index]
    assert [event.to_dict() for event in again] == events[4:]


@case
def a_stream_in_the_background_goes_on_after_its_client() -> None:
    stream = create(TELL, stream=True, background=True)
    id = next(iter(stream)).response.id
    stream.close()
    events = list(client.responses.retrieve(id, stream=True, starting_after=0))
    assert events[-1].type == "response.completed"


# ---- tools and formats


@case
def a_call_and_its_result() -> None:
    first = create(WHERE, **WITH_TOOLS)
    call = first.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"name": "load_page"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "net/a.py:5 def load_page"}
    second = create([result], previous_response_id=first.id, **WITH_TOOLS)
    assert "net/a.py:5" in second.output_text


@case
def a_call_in_a_stream() -> None:
    events = list(create(WHERE, stream=True, **WITH_TOOLS))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert len(done) == 1 and events[-1].response.output[-1].arguments == done[0].arguments


@case
def a_call_through_the_stream_helper() -> None:
    with client.responses.stream(model=MODEL, input=WHERE, **WITH_TOOLS) as stream:
        assert stream.get_final_response().output[-1].type == "function_call"


@case
def a_call_can_be_forced_and_forbidden() -> None:
    forced = create(TELL, tool_choice="required", **WITH_TOOLS)
    assert forced.output[-1].type == "function_call"
    assert all(item.type != "function_call" for item in create(WHERE, tool_choice="none", **WITH_TOOLS).output)


@case
def an_answer_fits_its_schema() -> None:
    assert json.loads(create("a trip", text={"format": FORMAT}).output_text)["city"] in ("Paris", "Rome")


@case
def an_answer_fits_its_schema_in_a_stream() -> None:
    with client.responses.stream(model=MODEL, input="a trip", text={"format": FORMAT}) as stream:
        assert json.loads(stream.get_final_response().output_text)["city"] in ("Paris", "Rome")


@case
def an_answer_with_tools_fits_its_schema() -> None:
    response = create(ASK, text={"format": FORMAT}, **WITH_TOOLS)
    assert json.loads(response.output_text)["city"] in ("Paris", "Rome")


# ---- chat completions


@case
def a_chat_is_answered_and_goes_on() -> None:
    messages: Any = [{"role": "user", "content": TELL}]
    first = client.chat.completions.create(model=MODEL, messages=messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": ASK}]
    second = client.chat.completions.create(model=MODEL, messages=messages)
    assert str(second.choices[0].message.content).strip() == KNOWN


@case
def a_chat_is_streamed() -> None:
    messages: Any = [{"role": "user", "content": TELL}]
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True, stream_options=options))
    assert "4711" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None


@case
def a_chat_calls_a_tool() -> None:
    messages: Any = [{"role": "system", "content": GIVEN["system"]}, {"role": "user", "content": WHERE}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, tools=GIVEN["chat_tools"])
    assert chat.choices[0].finish_reason == "tool_calls"


# ---- errors


@case
def a_wrong_token_is_refused() -> None:
    other = client.with_options(api_key="wrong")
    assert refused(openai.AuthenticationError, other.models.list).code == "invalid_api_key"


@case
def an_unknown_model_is_refused() -> None:
    e = refused(openai.NotFoundError, lambda: client.responses.create(model="gpt-9", input="x"))
    assert e.code == "model_not_found"


@case
def an_unknown_response_is_refused() -> None:
    e = refused(openai.BadRequestError, lambda: create("x", previous_response_id="resp_" + "0" * 32))
    assert e.code == "previous_response_not_found"
    refused(openai.NotFoundError, lambda: client.responses.retrieve("resp_" + "0" * 32))


@case
def a_bad_value_is_refused_by_name() -> None:
    e = refused(openai.BadRequestError, lambda: create("x", temperature=5))
    assert e.param == "temperature" and e.type == "invalid_request_error"


@case
def an_orphan_result_is_refused() -> None:
    orphan = {"type": "function_call_output", "call_id": "call_x", "output": "y"}
    assert refused(openai.BadRequestError, lambda: create([orphan])).param == "input[0].call_id"


# ---- WebSocket


@case
def a_socket_answers() -> None:
    with client.responses.connect() as connection:
        events = said(connection, input=TELL)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.completed" and "4711" in events[-1].response.output[0].content[0].text


@case
def a_socket_goes_on_without_a_store() -> None:
    with client.responses.connect() as connection:
        id = said(connection, input=TELL, store=False)[-1].response.id
        last = said(connection, input=ASK, store=False, previous_response_id=id)[-1].response
        assert last.output[0].content[0].text.strip() == KNOWN


@case
def another_socket_goes_on_from_what_is_stored() -> None:
    with client.responses.connect() as connection:
        id = said(connection, input=TELL)[-1].response.id
    with client.responses.connect() as connection:
        last = said(connection, input=ASK, previous_response_id=id)[-1].response
        assert last.output[0].content[0].text.strip() == KNOWN


@case
def another_socket_does_not_know_what_is_not_stored() -> None:
    with client.responses.connect() as connection:
        id = said(connection, input=TELL, store=False)[-1].response.id
    with client.responses.connect() as connection:
        error = said(connection, input=ASK, previous_response_id=id)[-1]
        assert error.type == "error" and error.error["code"] == "previous_response_not_found"
        assert said(connection, input=TELL)[-1].type == "response.completed"


@case
def a_call_over_a_socket() -> None:
    with client.responses.connect() as connection:
        first = said(connection, input=WHERE, **WITH_TOOLS)[-1].response
        result: Any = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "net/a.py:5"}
        last = said(connection, input=[result], previous_response_id=first.id, **WITH_TOOLS)[-1].response
        assert "net/a.py:5" in last.output[0].content[0].text


@case
def a_schema_over_a_socket() -> None:
    with client.responses.connect() as connection:
        last = said(connection, input="a trip", text={"format": FORMAT})[-1].response
        assert json.loads(last.output[0].content[0].text)["city"] in ("Paris", "Rome")


@case
def lanes_over_a_socket() -> None:
    with client.responses.connect() as connection:
        for lane in ("a", "b"):
            connection.send({"type": "response.create", "model": MODEL, "input": TELL, "stream_id": lane})  # type: ignore
        ended = [until_last(connection)[-1], until_last(connection)[-1]]
        assert {event.stream_id for event in ended} == {"a", "b"}


@case
def a_bad_frame_is_answered_and_the_socket_goes_on() -> None:
    with client.responses.connect() as connection:
        connection.send({"type": "response.explode"})  # type: ignore[arg-type]
        assert connection.recv().error["code"] == "unknown_event_type"
        assert said(connection, input="hi", max_output_tokens=1)[-1].type == "response.incomplete"


def main() -> None:
    for function in cases:
        problem = None
        try:
            function()
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps({"case": function.__name__, "problem": problem}), flush=True)


main()
