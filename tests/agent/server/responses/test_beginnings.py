"""What was read once is not read again: the beginnings that requests of one user share."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.agent.server.responses.test_websocket import Socket, talk
from tests.agent.server.serving import MODEL, SYSTEM_TEXT, Server, agent_tools, create

LONG = "The colour of the house is red. " * 80


@pytest.fixture
def opening(workspace: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Instructions and tools that no other test has."""
    return {"instructions": f"{request.node.name} {SYSTEM_TEXT} {LONG}", "tools": agent_tools(workspace)}


def cached(response: Any) -> int:
    return int(response.usage.input_tokens_details.cached_tokens)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_new_question_shares_instructions_and_tools(
    client: openai.OpenAI, opening: dict[str, Any], store: bool, choice: Any
) -> None:
    first = create(client, "hi", store=store, **opening)
    other = create(client, "good morning to you", store=store, tool_choice=choice, **opening)
    assert cached(first) == 0 and cached(other) > 0.95 * first.usage.input_tokens


@pytest.mark.parametrize("store", [True, False])
def test_the_same_request_again_reads_its_last_token_alone(
    client: openai.OpenAI, opening: dict[str, Any], store: bool
) -> None:
    first, again = (create(client, LONG, store=store, **opening) for _ in range(2))
    assert cached(again) == first.usage.input_tokens - 1 and again.output_text == first.output_text


@pytest.mark.parametrize("store", [True, False])
def test_a_second_branch_reads_what_is_new(client: openai.OpenAI, opening: dict[str, Any], store: bool) -> None:
    first = create(client, LONG, store=store, **opening)
    said = [{"role": "user", "content": LONG}, *[item.to_dict() for item in first.output]]
    for question in ("hi", "good morning"):
        branch = create(client, [*said, {"role": "user", "content": question}], store=store, **opening)
        assert cached(branch) >= first.usage.total_tokens - 1


def test_chat_completions_share_their_beginning(client: openai.OpenAI, opening: dict[str, Any]) -> None:
    def complete(text: str) -> Any:
        messages: Any = [{"role": "system", "content": opening["instructions"]}, {"role": "user", "content": text}]
        return client.chat.completions.create(model=MODEL, messages=messages)

    first, other = complete("hi"), complete("good morning to you")
    assert other.usage.prompt_tokens_details.cached_tokens > 0.9 * first.usage.prompt_tokens


def test_a_prewarm_is_used_by_the_next_request(server: Server, opening: dict[str, Any]) -> None:
    async def test(socket: Socket) -> None:
        warm = (await socket.ask(generate=False, input=[], **opening))["response"]["usage"]
        asked = (await socket.ask(input="hi", **opening))["response"]["usage"]
        assert asked["input_tokens_details"]["cached_tokens"] >= warm["input_tokens"] > 256

    talk(server, test)


def test_a_beginning_whose_pages_are_gone_is_read_again(
    client: openai.OpenAI, server: Server, opening: dict[str, Any]
) -> None:
    first = create(client, LONG, store=False, **opening)
    service = server.running.service
    loop = service.app.engine._loop
    for id in list(service.sequences._idle):
        asyncio.run_coroutine_threadsafe(service.sequences.drop(id, save=False), loop).result()
    again = create(client, LONG, store=False, **opening)
    assert cached(again) == 0 and again.output_text == first.output_text
