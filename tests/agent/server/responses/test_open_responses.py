"""The 17 checks of the Open Responses compliance suite, on our own account of its schemas."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.agent.server.responses.test_websocket import connected
from tests.agent.server.serving import MODEL, SYSTEM_TEXT, TELL, WHERE, Server, agent_tools

USER = {"type": "message", "role": "user", "content": "Say hello in exactly 3 words."}
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "id": str, "object": str, "created_at": int, "status": str, "model": str, "output": list, "tools": list,
    "tool_choice": (str, dict), "truncation": str, "parallel_tool_calls": bool, "text": dict, "top_p": float | int,
    "presence_penalty": float | int, "frequency_penalty": float | int, "top_logprobs": int, "temperature": float | int,
    "store": bool, "background": bool, "service_tier": str, "metadata": dict,
}  # type: ignore[dict-item]  # fmt: skip
NULLABLE = (
    "completed_at", "incomplete_details", "previous_response_id", "instructions", "error", "reasoning", "user", "usage",
    "max_output_tokens", "max_tool_calls", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
ITEMS = {"message": ("role", "content", "status", "id"), "function_call": ("call_id", "name", "arguments", "status", "id"),
         "reasoning": ("summary", "content", "id"), "compaction": ("encrypted_content", "id")}  # fmt: skip


def check_response(response: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    """Every field there, of its type; the output not empty."""
    for name, kind in REQUIRED.items():
        assert isinstance(response[name], kind), name
    assert not set(NULLABLE) - response.keys()
    assert (
        response["object"] == "response"
        and response["status"] == status
        and response["text"]["format"]["type"] == "text"
    )
    for tool in response["tools"]:
        assert {"type", "name", "description", "parameters", "strict"} <= tool.keys()
    for item in response["output"]:
        assert set(ITEMS[item["type"]]) <= item.keys()
        if item["type"] == "message":
            assert all(isinstance(p["annotations"], list) and isinstance(p["logprobs"], list) for p in item["content"])
    if status == "completed":
        usage = response["usage"]
        assert (
            usage["input_tokens_details"]["cached_tokens"] >= 0
            and usage["output_tokens_details"]["reasoning_tokens"] >= 0
        )
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] and response["output"]
    return response


def ask(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.post("/v1/responses", {"model": MODEL, **body})
    assert answer.status_code == 200, answer.text
    return check_response(answer.json())


def check_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.completed"
    check_response(events[0]["response"], "in_progress")
    return check_response(events[-1]["response"])


def test_basic_response(server: Server) -> None:
    assert [item["type"] for item in ask(server, input=[USER])["output"]] == ["message"]


def test_system_prompt(server: Server) -> None:
    response = ask(server, input=[{"type": "message", "role": "system", "content": "You are a pirate."}, USER])
    assert response["usage"]["input_tokens"] > ask(server, input=[USER])["usage"]["input_tokens"]


def test_multi_turn(server: Server) -> None:
    said = {"type": "message", "role": "assistant", "content": "Hello Alice!"}
    response = ask(server, input=[USER, said, {"type": "message", "role": "user", "content": "What is my name?"}])
    assert response["usage"]["input_tokens"] > ask(server, input=[USER])["usage"]["input_tokens"]


def test_assistant_phase(server: Server) -> None:
    said = {"type": "message", "role": "assistant", "content": "Looking.", "phase": "commentary"}
    response = ask(server, input=[USER, said, {"type": "message", "role": "user", "content": "Go on."}])
    assert response["usage"]["input_tokens"] > ask(server, input=[USER])["usage"]["input_tokens"]


def test_response_output_phase_schema(server: Server) -> None:
    response = ask(server, input=[USER])
    assert all(item.get("phase") in (None, "commentary", "final_answer") for item in response["output"])


def test_image_input(server: Server) -> None:
    """The one check that a model which reads text alone fails by design: it says so."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    content = [{"type": "input_text", "text": "What?"}, image]
    answer = server.post(
        "/v1/responses", {"model": MODEL, "input": [{"type": "message", "role": "user", "content": content}]}
    )
    assert answer.status_code == 400 and "text alone" in answer.json()["error"]["message"]


def test_tool_calling(server: Server) -> None:
    response = ask(server, input=WHERE, tools=agent_tools(Path("/tmp")), instructions=SYSTEM_TEXT)
    assert any(item["type"] == "function_call" for item in response["output"])


def test_compact_response(server: Server) -> None:
    answer = server.post("/v1/responses/compact", {"model": MODEL, "input": [USER]}).json()
    assert answer["object"] == "response.compaction" and answer["id"] and isinstance(answer["created_at"], int)
    assert answer["output"] and answer["usage"]["total_tokens"] > 0


def test_compact_missing_model(server: Server) -> None:
    assert 400 <= server.post("/v1/responses/compact", {"input": [USER]}).status_code < 500


def test_streaming_response(server: Server) -> None:
    seen: list[Any] = []
    with server.client() as client, client.responses.create(model=MODEL, input=TELL, stream=True) as stream:
        seen = [event.model_dump() for event in stream]
    assert seen[-1]["type"] == "response.completed"
    text = server.post("/v1/responses", {"model": MODEL, "input": TELL, "stream": True}).text
    frames = [frame for frame in text.split("\n\n") if frame.startswith("event: ")]
    assert len(frames) == len(seen) and all("\ndata: {" in frame for frame in frames)


def over_websocket(test: Callable[[Any], Any]) -> Callable[[Server], None]:
    def check(server: Server) -> None:
        async def main() -> None:
            async with connected(server) as socket:
                await test(socket)

        asyncio.run(main())

    check.__name__ = test.__name__
    return check


@over_websocket
async def test_websocket_response(socket: Any) -> None:
    await socket.send(input=[USER])
    assert check_events(await socket.until_end())["output"]


@over_websocket
async def test_websocket_sequential_responses(socket: Any) -> None:
    ids = set()
    for _ in range(2):
        await socket.send(input=[USER])
        ids.add(check_events(await socket.until_end())["id"])
    assert len(ids) == 2


@over_websocket
async def test_websocket_continuation(socket: Any) -> None:
    await socket.send(input=[USER])
    first = check_events(await socket.until_end())
    await socket.send(input=[USER], previous_response_id=first["id"])
    assert check_events(await socket.until_end())["previous_response_id"] == first["id"]


def test_websocket_reconnect_store_false_recovery(server: Server) -> None:
    async def main() -> None:
        async with connected(server) as socket:
            id = (await socket.ask(input=[USER]))["response"]["id"]
        async with connected(server) as socket:
            lost = await socket.ask(input=[USER], previous_response_id=id)
            assert lost["error"]["code"] == "previous_response_not_found"
            await socket.send(input=[USER])
            check_events(await socket.until_end())

    asyncio.run(main())


@over_websocket
async def test_websocket_previous_response_not_found(socket: Any) -> None:
    lost = await socket.ask(input=[USER], previous_response_id="resp_nonexistent")
    assert lost["status"] == 400 and lost["error"]["code"] == "previous_response_not_found"


@over_websocket
async def test_websocket_failed_continuation_evicts_cache(socket: Any) -> None:
    id = (await socket.ask(input=[USER]))["response"]["id"]
    orphan = {"type": "function_call_output", "call_id": "call_orphan", "output": "x"}
    assert (await socket.ask(input=[orphan], previous_response_id=id))["type"] == "error"
    lost = await socket.ask(input=[USER], previous_response_id=id)
    assert lost["error"]["code"] == "previous_response_not_found"


def test_websocket_compact_new_chain(server: Server) -> None:
    compacted = server.post("/v1/responses/compact", {"model": MODEL, "input": [USER]}).json()

    async def main() -> None:
        async with connected(server) as socket:
            await socket.send(input=[*compacted["output"], USER])
            check_events(await socket.until_end())

    asyncio.run(main())
