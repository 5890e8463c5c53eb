"""`holdfast-agent` through the unmodified openai client: turns of a durable session, tools on the server, approvals."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL, APPROVE, SESSION
from holdfast.agent.server.responses.request import OWN_EVENTS
from tests.agent.real_session import make_workspace
from tests.agent.server.responses.test_websocket import Socket, talk
from tests.agent.server.serving import ASK, KNOWN, TELL, WHERE, Server, origins, served
from tests.agent.server.sessions.test_sessions import RENAME, error


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("agent") / "ws")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("home"), workspace=place) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def ask(client: openai.OpenAI, input: Any, **fields: Any) -> Any:
    return client.responses.create(model=AGENT_MODEL, input=input, **fields)


def ask_first(client: openai.OpenAI) -> Any:
    """Events of a turn whose edits wait for an approval."""
    return ask(client, RENAME, metadata={APPROVE: "ask"}, include=[OWN_EVENTS], stream=True)


def place_of(response: Any) -> dict[str, Any]:
    return dict(response.model_extra["holdfast"])


def test_it_is_listed_beside_the_plain_model(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["pocket", AGENT_MODEL]
    assert client.models.retrieve(AGENT_MODEL).id == AGENT_MODEL


def test_it_uses_its_own_tools_and_says_which(client: openai.OpenAI, place: Path) -> None:
    response = ask(client, WHERE)
    assert response.status == "completed" and "net/fetcher.py" in response.output_text
    call = next(item for item in response.output if item.type == "mcp_call")
    assert (call.name, call.error, call.status) == (
        "find_symbol",
        None,
        "completed",
    ) and "net/fetcher.py" in call.output
    assert client.responses.retrieve(response.id).output_text == response.output_text


def test_a_stream_has_the_protocols_order(client: openai.OpenAI) -> None:
    with client.responses.stream(model=AGENT_MODEL, input=WHERE) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert types[:2] == ["response.created", "response.in_progress"] and types[-1] == "response.completed"
    assert "response.mcp_call.completed" in types and "response.output_text.delta" in types
    assert "net/fetcher.py" in final.output_text
    items = [t for t in types if t in ("response.output_item.added", "response.output_item.done")]
    assert items == ["response.output_item.added", "response.output_item.done"] * len(final.output)


def test_it_goes_on_without_prefill_and_forks_where_others_went_on(client: openai.OpenAI, server: Server) -> None:
    told = ask(client, TELL)
    known = ask(client, ASK, previous_response_id=told.id)
    assert known.output_text.strip() == KNOWN and place_of(known)["session"] == place_of(told)["session"]
    assert origins(known)["prefilled_again_tokens"] == 0 and origins(known)["from_memory_tokens"] > 0
    other = ask(client, WHERE, previous_response_id=told.id)
    again = ask(client, ASK, previous_response_id=other.id)
    assert place_of(other)["session"] != place_of(told)["session"]
    assert again.output_text.strip() == KNOWN and place_of(again)["session"] == place_of(other)["session"]
    assert server.get(f"/v1/sessions/{place_of(told)['session']}").json()["turns"] == 2


@pytest.mark.parametrize("is_stream", [False, True])
def test_it_answers_chat_completions_and_knows_their_history(
    client: openai.OpenAI, server: Server, is_stream: bool
) -> None:
    def complete(messages: list[Any]) -> str:
        given = client.chat.completions.create(model=AGENT_MODEL, messages=messages, stream=is_stream)
        if not is_stream:
            assert given.choices[0].finish_reason == "stop"
            return str(given.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in given)

    def num_sessions() -> int:
        return len(server.get("/v1/sessions").json()["data"])

    before = num_sessions()
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": WHERE}]
    messages += [{"role": "assistant", "content": complete(messages)}, {"role": "user", "content": TELL}]
    assert "net/fetcher.py" in messages[2]["content"]
    messages += [{"role": "assistant", "content": complete(messages)}, {"role": "user", "content": ASK}]
    assert complete(messages).strip() == KNOWN and num_sessions() == before + 1
    assert complete(messages).strip() == KNOWN and num_sessions() == before + 2  # a second branch is a fork
    own = [*messages[:2], {"role": "assistant", "content": "I do not know."}, messages[-1]]
    assert complete(own) and num_sessions() == before + 3  # what no session has said begins one


def test_a_conversation_that_comes_whole_goes_on_in_its_session(client: openai.OpenAI) -> None:
    first = ask(client, WHERE)
    items = [{"role": "user", "content": WHERE}, *[item.to_dict() for item in first.output]]
    second = ask(client, [*items, {"role": "user", "content": TELL}])
    assert place_of(second) == {**place_of(first), "turn": 2}


def test_a_session_of_the_terminal_can_be_named(client: openai.OpenAI, server: Server) -> None:
    server.post("/v1/sessions", {"name": "shared"})
    told = ask(client, TELL, metadata={SESSION: "shared"})
    assert place_of(told)["session"] == "shared"
    assert ask(client, ASK, metadata={SESSION: "shared"}).output_text.strip() == KNOWN
    assert server.get("/v1/sessions/shared").json()["turns"] == 2


def test_edits_are_refused_unless_they_are_allowed_or_approved(
    client: openai.OpenAI, server: Server, place: Path
) -> None:
    file = place / "net" / "fetcher.py"
    before = file.read_text()
    refused = ask(client, RENAME)
    assert refused.status == "completed" and file.read_text() == before
    assert any(item.type == "mcp_call" and item.error and item.status == "failed" for item in refused.output)
    ask(client, RENAME, metadata={APPROVE: "edit"})
    assert "fetch_page" in file.read_text()
    file.write_text(before)
    for answer in (True, False):
        session = None
        for event in ask_first(client):
            if event.type == "response.created":
                session = place_of(event.response)["session"]
            if event.type == "holdfast:approval.needed":
                path = f"/v1/sessions/{session}/approvals/{event.id}"
                assert server.post(path, {"approve": answer}).status_code == 200
        assert ("fetch_page" in file.read_text()) is answer
        file.write_text(before)


def test_a_response_that_waits_for_approval_can_be_cancelled(client: openai.OpenAI, server: Server) -> None:
    events = []
    for event in ask_first(client):
        events.append(event)
        if event.type == "holdfast:approval.needed":
            threading.Thread(target=lambda: client.responses.cancel(events[0].response.id)).start()
    assert events[-1].response.status == "cancelled"
    assert server.get(f"/v1/sessions/{place_of(events[0].response)['session']}").json()["state"] == "idle"
    after = ask(client, TELL, previous_response_id=events[0].response.id)
    assert after.status == "completed" and place_of(after)["turn"] == 2


def test_a_deleted_session_is_gone_for_its_responses(client: openai.OpenAI, server: Server) -> None:
    told = ask(client, TELL)
    with server.http() as http:
        http.delete(f"/v1/sessions/{place_of(told)['session']}")
    with pytest.raises(openai.BadRequestError, match="was deleted"):
        ask(client, ASK, previous_response_id=told.id)
    client.responses.delete(told.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"metadata": {APPROVE: "always"}}, "metadata"),
        ({"metadata": {"holdfast:workspace": "/no/such"}}, "workspace"),
        ({"metadata": {SESSION: "../x"}}, "name"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
        ({"input": ""}, "prompt"),
    ],
)
def test_what_an_agent_cannot_take_is_refused(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": AGENT_MODEL, "input": "x", **fields})
    assert refused.value.param == param


def test_a_response_of_one_model_is_not_gone_on_from_by_the_other(client: openai.OpenAI, server: Server) -> None:
    agent = ask(client, TELL)
    plain = client.responses.create(model="pocket", input=TELL)
    for model, before in (("pocket", agent), (AGENT_MODEL, plain)):
        with pytest.raises(openai.BadRequestError, match="go on with"):
            client.responses.create(model=model, input=ASK, previous_response_id=before.id)
    for path in ("input_tokens", "compact"):
        body = {"model": AGENT_MODEL, "input": "x"}
        assert error(server.post(f"/v1/responses/{path}", body)) == (400, "unsupported")


def test_it_goes_on_after_a_restart_with_nothing_prefilled_again(tmp_path: Path) -> None:
    place = make_workspace(tmp_path / "ws")
    with served(tmp_path / "home", workspace=place) as server, server.client() as client:
        told = ask(client, TELL)
    with served(tmp_path / "home", workspace=place) as server, server.client() as client:
        known = ask(client, ASK, previous_response_id=told.id)
        assert known.output_text.strip() == KNOWN
        assert origins(known)["prefilled_again_tokens"] == 0 and origins(known)["from_disk_tokens"] > 0


def test_over_a_socket_it_is_steered_while_a_call_waits_for_approval(server: Server) -> None:
    async def steer(socket: Socket) -> None:
        await socket.send(model=AGENT_MODEL, input=RENAME, metadata={APPROVE: "ask"}, include=[OWN_EVENTS])
        events = [await socket.next()]
        while events[-1]["type"] != "holdfast:approval.needed":
            events.append(await socket.next())
        id = events[0]["response"]["id"]
        await socket.socket.send(json.dumps({"type": "response.steer", "previous_response_id": id, "input": TELL}))
        events = await socket.until_end(2)
        first, second = (e["response"] for e in events if e["type"] in ("response.incomplete", "response.completed"))
        assert first["incomplete_details"] == {"reason": "steered"}
        assert [item["status"] for item in first["output"]] == ["incomplete"]
        assert second["holdfast"] == {**first["holdfast"], "turn": 2}

    talk(server, steer)
