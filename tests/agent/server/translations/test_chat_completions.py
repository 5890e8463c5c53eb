"""Promises of `/v1/chat/completions`, through the unmodified openai client."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.agent.server.serving import ASK, KNOWN, MODEL, SYSTEM_TEXT, TELL, WHERE, chat_tools


def complete(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def test_a_conversation_is_recognised_by_content_and_not_read_again(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TELL}]
    first = complete(client, messages)
    messages += [first.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": ASK}]
    second = complete(client, messages)
    assert second.choices[0].message.content.strip() == KNOWN and second.choices[0].finish_reason == "stop"
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens


def test_a_changed_history_is_read_as_it_is(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": TELL}, {"role": "assistant", "content": "I said this myself."}]
    completion = complete(client, [*messages, {"role": "user", "content": ASK}])
    assert completion.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_stream_is_the_completion_in_pieces(client: openai.OpenAI, with_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(complete(client, [{"role": "user", "content": TELL}], stream=True, **options))
    whole = complete(client, [{"role": "user", "content": TELL}])
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert (chunks[-1].usage is not None) is with_usage


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_tool_call_and_its_result(client: openai.OpenAI, workspace: Path, is_stream: bool) -> None:
    fields = {"tools": chat_tools(workspace)}
    messages: list[Any] = [{"role": "system", "content": SYSTEM_TEXT}, {"role": "user", "content": WHERE}]
    if is_stream:
        with client.chat.completions.stream(model=MODEL, messages=messages, **fields) as stream:  # type: ignore[arg-type]
            choice = stream.get_final_completion().choices[0]
    else:
        choice = complete(client, messages, **fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "find_symbol"
    said = {"role": "assistant", "content": None, "tool_calls": [{"id": call.id, "type": "function", "function": {
        "name": call.function.name, "arguments": call.function.arguments}}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": call.id, "content": "net/fetcher.py:5 def load_page"}
    answer = complete(client, [*messages, said, result], **fields)
    assert "net/fetcher.py:5" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens_details.cached_tokens > 50


@pytest.mark.parametrize("stop", ["port", ["is", "port"], ["nowhere"], [" staging"]])
@pytest.mark.parametrize("is_stream", [True, False])
def test_stop_texts_end_the_answer(client: openai.OpenAI, stop: Any, is_stream: bool) -> None:
    messages = [{"role": "user", "content": TELL}]
    whole = complete(client, messages).choices[0].message.content
    places = [p for s in ([stop] if isinstance(stop, str) else stop) if (p := whole.find(s)) >= 0]
    given = complete(client, messages, stop=stop, stream=is_stream)
    if is_stream:
        text = "".join(c.choices[0].delta.content or "" for c in given)
    else:
        text = given.choices[0].message.content
    assert text == (whole[: min(places)] if places else whole)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_length_ends_the_answer(client: openai.OpenAI, field: str) -> None:
    completion = complete(client, [{"role": "user", "content": TELL}], **{field: 3})
    assert completion.choices[0].finish_reason == "length" and completion.usage.completion_tokens == 3


def test_reasoning_is_apart_from_the_answer(client: openai.OpenAI) -> None:
    completion = complete(client, [{"role": "user", "content": "hi"}], reasoning_effort="high", max_tokens=4)
    assert completion.choices[0].message.reasoning_content
    chunks = complete(client, [{"role": "user", "content": "hi"}], reasoning_effort="high", max_tokens=4, stream=True)
    assert "".join(c.choices[0].delta.model_extra.get("reasoning_content", "") for c in chunks)
