"""Promises of `/v1/completions`, and of several choices in one answer, through the unmodified openai client."""

from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from tests.agent.server.serving import KNOWN, MODEL, TELL, Server

PROMPT = "def load_page(url):\n    return"


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, temperature=0, **fields)


def tokens_of(server: Server, text: str) -> list[int]:
    return server.running.service.app.engine.tokenizer.encode(text)


def test_a_prompt_is_gone_on_from_as_it_is(server: Server, client: openai.OpenAI) -> None:
    """Tokens that are those of a conversation get what the conversation's answer is."""
    tokenizer = server.running.service.app.engine.tokenizer
    said = tokenizer.encode_protocol(f"<｜begin▁of▁sentence｜><｜User｜>{TELL}<｜Assistant｜></think>")
    answer = complete(client, said, max_tokens=40)
    chat: Any = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": TELL}], temperature=0)
    assert answer.choices[0].text == chat.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(said) == chat.usage.prompt_tokens


def test_a_text_is_the_beginning_of_a_document(server: Server, client: openai.OpenAI) -> None:
    begin = server.running.service.app.engine.tokenizer.encode_protocol("<｜begin▁of▁sentence｜>")
    text, ids = complete(client, PROMPT), complete(client, begin + tokens_of(server, PROMPT))
    assert text.choices[0].text == ids.choices[0].text and text.usage == ids.usage
    assert text.usage.completion_tokens <= 16 and text.object == "text_completion" and text.id.startswith("cmpl-")


def test_without_a_prompt_a_document_begins(client: openai.OpenAI) -> None:
    assert complete(client, None, max_tokens=1).usage.prompt_tokens == 1


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("echo", [True, False])
def test_several_prompts_are_several_choices(client: openai.OpenAI, is_stream: bool, echo: bool) -> None:
    prompts, alone = [PROMPT, "one two three"], []
    for prompt in prompts:
        alone.append(complete(client, prompt, max_tokens=5))
    fields: dict[str, Any] = {"n": 2, "max_tokens": 5, "echo": echo}
    if is_stream:
        chunks = list(complete(client, prompts, stream=True, stream_options={"include_usage": True}, **fields))
        texts = ["", "", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        usage = chunks[-1].usage
        assert sorted(c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason) == [0, 1, 2, 3]
    else:
        answer = complete(client, prompts, **fields)
        texts, usage = [choice.text for choice in answer.choices], answer.usage
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    expected = [(prompt if echo else "") + one.choices[0].text for prompt, one in zip(prompts, alone, strict=True)]
    assert texts == [expected[0], expected[0], expected[1], expected[1]]
    assert usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert usage.completion_tokens == 2 * sum(one.usage.completion_tokens for one in alone)


def test_a_stop_text_ends_it(client: openai.OpenAI) -> None:
    whole = complete(client, PROMPT, max_tokens=30).choices[0].text
    stop = whole[3:5]
    assert complete(client, PROMPT, max_tokens=30, stop=stop).choices[0].text == whole[: whole.find(stop)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 5}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": [10**9]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"), ({"prompt": ["a", [1, "b"]]}, "prompt[1]"), ({"prompt": ["a", [10**9]]}, "prompt[1]"),
    ({"prompt": "hi " * 2_000_000}, "prompt"), ({"max_tokens": 0}, "max_tokens"), ({"n": 0}, "n"), ({"n": 129}, "n"),
    ({"n": 100, "prompt": ["a", "b"]}, "n"), ({"logprobs": 0}, "logprobs"), ({"best_of": 2}, "best_of"),
    ({"suffix": "x"}, "suffix"), ({"logit_bias": {"1": 2}}, "logit_bias"), ({"presence_penalty": 1}, "presence_penalty"),
    ({"stop": [""]}, "stop[0]"), ({"messages": []}, "messages"), ({"model": AGENT_MODEL}, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=range(len(REFUSED)))
def test_a_bad_request_is_refused_with_the_name_of_its_field(server: Server, fields: Any, param: str) -> None:
    answer = server.post("/v1/completions", {"model": MODEL, "prompt": "x", **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith(param), answer.text


def test_neutral_values_and_nulls_ask_for_nothing(server: Server) -> None:
    neutral = {"best_of": 1, "suffix": "", "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0, "n": 1}
    for fields in (
        neutral,
        {**dict.fromkeys(neutral), "stop": None, "stream": None, "logprobs": None, "max_tokens": None},
    ):
        answer = server.post("/v1/completions", {"model": MODEL, "prompt": "x", **fields})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_chat_has_as_many_choices_as_are_asked_for(client: openai.OpenAI, is_stream: bool) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": TELL}], "n": 3}
    one = client.chat.completions.create(**{**fields, "n": 1})
    if is_stream:
        texts = ["", "", ""]
        for chunk in client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
            usage = chunk.usage
    else:
        answer = client.chat.completions.create(**fields)
        texts, usage = [choice.message.content for choice in answer.choices], answer.usage
    assert texts == [one.choices[0].message.content] * 3
    assert usage.prompt_tokens == one.usage.prompt_tokens and usage.completion_tokens == 3 * one.usage.completion_tokens
    asked = [
        *fields["messages"],
        {"role": "assistant", "content": texts[2]},
        {"role": "user", "content": "what is the staging port?"},
    ]
    assert client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content == KNOWN


def test_choices_with_a_seed_differ_and_come_again(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 4, "max_tokens": 12}
    texts = [
        [choice.message.content for choice in client.chat.completions.create(**fields, temperature=2, seed=7).choices]
        for _ in range(2)
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
