"""Promises of `/v1/conversations` and of `conversation` in responses, through the unmodified openai client."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from tests.agent.server.serving import (
    ASK,
    ENDLESS,
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

PATH = "/v1/conversations"


def texts(client: openai.OpenAI, id: str) -> list[tuple[str, str]]:
    """Who said what, the oldest first."""
    items: Any = client.conversations.items.list(id, order="asc", limit=100)
    return [(item.role, item.content[0].text.strip()) for item in items if item.type == "message"]


def test_responses_of_a_conversation_add_to_it_and_know_it(client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    first = create(client, TELL, conversation=id)
    second = create(client, ASK, conversation={"id": id})
    assert second.output_text.strip() == KNOWN and second.conversation.id == id == first.conversation.id
    assert texts(client, id) == [
        ("user", TELL), ("assistant", first.output_text.strip()), ("user", ASK), ("assistant", KNOWN),
    ]  # fmt: skip
    assert origins(second)["new_tokens"] < origins(first)["new_tokens"]
    given: Any = client.responses.input_items.list(second.id)
    assert [item.content[0].text for item in given] == [ASK]


@pytest.mark.parametrize("model", [MODEL, AGENT_MODEL])
def test_a_conversation_is_there_after_a_restart(tmp_path: Path, model: str) -> None:
    with served(tmp_path / "home") as server, server.client() as client:
        kept = client.conversations.create(metadata={"topic": "ports"})
        client.responses.create(model=model, input=TELL, conversation=kept.id)
        said = texts(client, kept.id)
    with served(tmp_path / "home") as server, server.client() as client:
        assert client.conversations.retrieve(kept.id) == kept and texts(client, kept.id) == said
        assert KNOWN in client.responses.create(model=model, input=ASK, conversation=kept.id).output_text


def test_other_instructions_and_responses_that_are_not_stored_belong_to_it_too(client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    create(client, TELL, conversation=id, store=False)
    assert create(client, ASK, conversation=id, instructions="Be brief.").output_text.strip() == KNOWN
    assert len(texts(client, id)) == 4


def test_items_can_be_added_listed_read_and_removed(client: openai.OpenAI) -> None:
    message: Any = {"type": "message", "role": "user", "content": TELL}
    kept = client.conversations.create(
        items=[message, {**message, "role": "assistant", "content": "Noted: the staging port is 4711."}]
    )
    wrong_message: Any = {**message, "content": "wrong"}
    added = client.conversations.items.create(kept.id, items=[wrong_message])
    assert [role for role, _ in texts(client, kept.id)] == ["user", "assistant", "user"]
    newest = client.conversations.items.list(kept.id, limit=1)
    assert newest.has_more and newest.data[0].id == added.data[0].id == newest.last_id
    wrong = added.data[0].id or ""
    assert client.conversations.items.retrieve(wrong, conversation_id=kept.id).id == wrong
    assert client.conversations.items.delete(wrong, conversation_id=kept.id).id == kept.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(wrong, conversation_id=kept.id)
    assert create(client, ASK, conversation=kept.id).output_text.strip() == KNOWN


def test_metadata_can_be_changed_and_all_of_it_deleted(server: Server, client: openai.OpenAI) -> None:
    kept = client.conversations.create(metadata={"a": "b"})
    create(client, TELL, conversation=kept.id)
    assert client.conversations.update(kept.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert client.conversations.retrieve(kept.id).metadata == {"c": "d"} and len(texts(client, kept.id)) == 2
    assert client.conversations.delete(kept.id).deleted
    for path in (f"{PATH}/{kept.id}", f"{PATH}/{kept.id}/items", f"/v1/responses/{kept.id}"):
        assert server.get(path).status_code == 404
    with pytest.raises(openai.NotFoundError):
        create(client, ASK, conversation=kept.id)


def test_a_call_waits_in_the_conversation_for_its_result(client: openai.OpenAI, workspace: Path) -> None:
    id = client.conversations.create().id
    fields: dict[str, Any] = {"tools": agent_tools(workspace), "instructions": SYSTEM_TEXT, "conversation": id}
    call = create(client, WHERE, **fields).output[-1]
    with pytest.raises(openai.BadRequestError):
        create(client, "and now?", **fields)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "net/fetcher.py:5 def load_page"}
    with pytest.raises(openai.BadRequestError) as e:
        create(client, [{**result, "call_id": "call_other"}], **fields)
    assert e.value.param == "input[0].call_id"
    assert "net/fetcher.py:5" in create(client, [result], **fields).output_text


def test_one_response_at_a_time_and_what_came_is_kept(server: Server, client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    format_ = {"type": "json_schema", "name": "numbers", "schema": ENDLESS}
    fields: dict[str, Any] = {"conversation": id, "max_output_tokens": 8000, "text": {"format": format_}}
    running = create(client, "count", background=True, **fields)
    for call in (
        lambda: create(client, ASK, conversation=id),
        lambda: client.conversations.delete(id),
        lambda: client.conversations.items.create(id, items=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.ConflictError) as e:
            call()
        assert e.value.code == "conversation_locked"
    client.responses.cancel(running.id)
    assert texts(client, id)[0] == ("user", "count")
    create(client, TELL, conversation=id)


def test_a_stream_and_a_socket_may_name_a_conversation(client: openai.OpenAI) -> None:
    id = client.conversations.create().id
    events = list(create(client, TELL, conversation=id, stream=True))
    assert events[-1].response.conversation.id == id
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input=ASK, conversation=id, store=False)
        done = next(event for event in connection if event.type == "response.completed")
    assert done.response.output_text.strip() == KNOWN and len(texts(client, id)) == 4


def test_an_addition_that_was_cut_off_is_not_there_and_one_that_is_missing_is_told(
    server: Server, client: openai.OpenAI
) -> None:
    store = server.running.service.cache.store
    message: Any = {"role": "user", "content": TELL}
    kept = client.conversations.create(items=[message])
    row = store.get(f"{kept.id}.0", "owner")
    assert row is not None
    store.put_body(replace(row, id=f"{kept.id}.1"))
    assert len(texts(client, kept.id)) == 1
    client.conversations.items.create(kept.id, items=[message])
    assert len(texts(client, kept.id)) == 2
    store.remove(row)
    answer = server.get(f"{PATH}/{kept.id}/items")
    assert answer.status_code == 500 and "restore it from a backup" in answer.json()["error"]["message"]


def test_another_user_finds_none_of_it(tmp_path: Path) -> None:
    users = tmp_path / "users.json"
    users.write_text(json.dumps([{"name": name, "token": name * 16} for name in ("a", "b")]))
    with served(tmp_path / "home", users=users) as server, server.client("a" * 16) as a, server.client("b" * 16) as b:
        id = a.conversations.create(items=[{"role": "user", "content": "secret"}]).id
        for call in (
            lambda: b.conversations.retrieve(id),
            lambda: b.conversations.items.list(id),
            lambda: b.conversations.items.list(f"{id}.0"),
            lambda: b.conversations.delete(id),
            lambda: b.conversations.update(id, metadata={}),
            lambda: create(b, "hi", conversation=id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert len(texts(a, id)) == 1


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (PATH, {"items": 5}, "items"), (PATH, {"items": [{"type": "alien"}]}, "items[0]"), (PATH, {"metadata": {"a": 1}}, "metadata.a"),
    (PATH, {"items": [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "input_image"}]}]}, "items[1].content[0]"),
    ("/v1/responses", {"input": "x", "conversation": 5}, "conversation"), ("/v1/responses", {"input": "x", "conversation": {}}, "conversation.id"),
    ("/v1/responses", {"input": "x", "conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
    ("/v1/responses/compact", {"input": "x", "conversation": "conv_1"}, "conversation"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_named(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    answer = server.post(path, {"model": MODEL, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert server.post("/v1/responses", {"model": MODEL, "input": "x", "conversation": "conv_none"}).status_code == 404
    assert (
        server.post("/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": "conv_none"}).status_code
        == 400
    )
