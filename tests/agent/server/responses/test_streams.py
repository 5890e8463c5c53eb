"""The events of a response, in the protocol's exact order, through the unmodified openai client."""

from pathlib import Path

import openai
import pytest

from tests.agent.server.serving import MODEL, SYSTEM_TEXT, TELL, WHERE, agent_tools, create

TEXT_EVENTS = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
BEGIN = ["response.created", "response.in_progress"]


def test_the_events_of_a_text_in_their_exact_order(client: openai.OpenAI) -> None:
    events = list(create(client, TELL, stream=True))
    types = [event.type for event in events]
    num_deltas = types.count("response.output_text.delta")
    middle = ["response.output_item.added", "response.content_part.added", *["response.output_text.delta"] * num_deltas]
    assert types == [*BEGIN, *middle, *TEXT_EVENTS, "response.completed"] and num_deltas > 3
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == events[2 + len(middle)].text
    assert events[0].response.status == "in_progress" and events[0].response.output == []


def test_the_events_of_a_call_in_their_exact_order(client: openai.OpenAI, workspace: Path) -> None:
    stream = create(client, WHERE, tools=agent_tools(workspace), instructions=SYSTEM_TEXT, stream=True)
    types = [event.type for event in stream]
    deltas = ["response.function_call_arguments.delta"] * types.count("response.function_call_arguments.delta")
    call = [*deltas, "response.function_call_arguments.done"]
    assert types == [*BEGIN, "response.output_item.added", *call, "response.output_item.done", "response.completed"]


def test_the_events_of_reasoning_in_their_exact_order(client: openai.OpenAI) -> None:
    events = list(create(client, "hi", reasoning={"effort": "high"}, max_output_tokens=4, stream=True))
    types = [event.type for event in events]
    deltas = ["response.reasoning_text.delta"] * types.count("response.reasoning_text.delta")
    begin = ["response.output_item.added", "response.content_part.added"]
    end = ["response.reasoning_text.done", "response.content_part.done", "response.output_item.done"]
    assert types == [*BEGIN, *begin, *deltas, *end, "response.incomplete"]


def test_the_client_s_own_stream_helper_accepts_the_scaffolding(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=TELL) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text


def test_the_client_s_own_stream_helper_accepts_calls(client: openai.OpenAI, workspace: Path) -> None:
    with client.responses.stream(
        model=MODEL, input=WHERE, tools=agent_tools(workspace), instructions=SYSTEM_TEXT
    ) as stream:  # type: ignore[arg-type]
        assert stream.get_final_response().output[-1].type == "function_call"


@pytest.mark.parametrize("after", [-1, 0, 1, 2, 5])
def test_a_stream_is_replayed_from_any_event(client: openai.OpenAI, after: int) -> None:
    events = [event.model_dump() for event in create(client, TELL, stream=True)]
    id = events[-1]["response"]["id"]
    again = client.responses.retrieve(id, stream=True, **({} if after < 0 else {"starting_after": after}))
    assert [event.model_dump() for event in again] == events[after + 1 :]
