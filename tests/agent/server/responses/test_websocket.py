"""Promises of the Responses API over a WebSocket: lanes, continuation, steering, exact errors; through the openai client
where it can say it, else through a plain socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import websockets

from holdfast.agent.server.responses.websocket import MAX_LANES, MAX_QUEUED
from tests.agent.server.serving import ASK, KNOWN, MODEL, TELL, Server

LONG = "Say it. " * 600  # keeps the engine busy for some time
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


class Socket:
    """One connection, one JSON object a frame."""

    def __init__(self, socket: Any):
        self.socket = socket

    async def send(self, **body: Any) -> None:
        await self.socket.send(json.dumps({"type": "response.create", "model": MODEL, "store": False, **body}))

    async def next(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self.socket.recv(), 30))

    async def until_end(self, num: int = 1) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while sum(event["type"] in ENDS for event in events) < num:
            events.append(await self.next())
        return events

    async def ask(self, **body: Any) -> dict[str, Any]:
        await self.send(**body)
        return (await self.until_end())[-1]


@asynccontextmanager
async def connected(server: Server, token: str | None = None, **options: Any) -> AsyncIterator[Socket]:
    headers = {"Authorization": f"Bearer {token or server.token}"}
    url = server.url.replace("http", "ws") + "/v1/responses"
    async with websockets.connect(url, additional_headers=headers, close_timeout=1, **options) as socket:
        yield Socket(socket)


def talk(server: Server, test: Callable[[Socket], Awaitable[None]]) -> None:
    async def main() -> None:
        async with connected(server) as socket:
            await test(socket)

    asyncio.run(main())


@pytest.mark.parametrize("lane", [None, "main", "a.b-c_9", "x" * 256])
@pytest.mark.parametrize("store", [True, False])
def test_a_turn_and_its_continuation_through_the_openai_client(server: Server, lane: str | None, store: bool) -> None:
    async def main() -> None:
        named: Any = {} if lane is None else {"stream_id": lane}
        async with server.async_client() as client, client.responses.connect() as connection:
            before: Any = {}
            for input in (TELL, ASK):
                await connection.response.create(model=MODEL, input=input, store=store, **named, **before)
                events = []
                async for event in connection:
                    events.append(event)
                    if event.type in ENDS:
                        break
                assert [event.sequence_number for event in events] == list(range(len(events)))
                assert {getattr(event, "stream_id", None) for event in events} == {lane}
                before = {"previous_response_id": events[-1].response.id}
            assert events[-1].response.output_text.strip() == KNOWN
            details = events[-1].response.usage.input_tokens_details
            assert details.prefilled_again_tokens == 0 and details.cached_tokens > 0

    asyncio.run(main())


@pytest.mark.parametrize("num_lanes", [2, 8, 20])
def test_lanes_run_side_by_side_and_keep_their_own_order(server: Server, num_lanes: int) -> None:
    async def test(socket: Socket) -> None:
        for lane in range(num_lanes):
            await socket.send(input=TELL, stream_id=f"lane{lane}")
            await socket.send(input="hi", stream_id=f"lane{lane}")
        events = await socket.until_end(2 * num_lanes)
        for lane in range(num_lanes):
            numbers = [event["sequence_number"] for event in events if event["stream_id"] == f"lane{lane}"]
            half = numbers.index(0, 1)
            assert numbers == [*range(half), *range(len(numbers) - half)]
        switches = sum(a["stream_id"] != b["stream_id"] for a, b in pairwise(events))
        assert switches > 2 * num_lanes

    talk(server, test)


def test_a_parent_forks_on_other_lanes(server: Server) -> None:
    async def test(socket: Socket) -> None:
        first = await socket.ask(input=TELL, stream_id="a")
        for lane in ("a", "b", "c"):
            await socket.send(input=ASK, previous_response_id=first["response"]["id"], stream_id=lane)
        ends = [event for event in await socket.until_end(3) if event["type"] in ENDS]
        assert [end["response"]["output"][0]["content"][0]["text"].strip() for end in ends] == [KNOWN] * 3

    talk(server, test)


def test_a_stored_response_goes_on_from_any_socket_and_one_that_is_not_does_not(server: Server) -> None:
    async def main() -> None:
        ids = []
        async with connected(server) as socket:
            for store in (True, False):
                ids.append((await socket.ask(input=TELL, store=store))["response"]["id"])
        async with connected(server) as socket:
            stored = await socket.ask(input=ASK, previous_response_id=ids[0])
            assert stored["response"]["output"][0]["content"][0]["text"].strip() == KNOWN
            lost = await socket.ask(input=ASK, previous_response_id=ids[1])
            assert lost == {
                "type": "error", "status": 400,
                "error": {"message": f"Previous response with id '{ids[1]}' not found.", "type": "invalid_request_error",
                          "param": "previous_response_id", "code": "previous_response_not_found"},
            }  # fmt: skip
            assert (await socket.ask(input=TELL))["type"] == "response.completed"

    asyncio.run(main())


@pytest.mark.parametrize("is_same_lane", [True, False])
def test_a_failed_continuation_evicts_its_parent_on_its_own_lane_only(server: Server, is_same_lane: bool) -> None:
    async def test(socket: Socket) -> None:
        id = (await socket.ask(input=TELL, stream_id="a"))["response"]["id"]
        orphan = {"type": "function_call_output", "call_id": "call_nope", "output": "x"}
        lane = "a" if is_same_lane else "b"
        failed = await socket.ask(input=[orphan], previous_response_id=id, stream_id=lane)
        assert failed["type"] == "error" and failed["status"] == 400 and failed["stream_id"] == lane
        again = await socket.ask(input=ASK, previous_response_id=id, stream_id="a")
        if is_same_lane:
            assert again["error"]["code"] == "previous_response_not_found"
        else:
            assert again["type"] == "response.completed"

    talk(server, test)


def test_prefill_ahead(server: Server) -> None:
    async def test(socket: Socket) -> None:
        ahead = (await socket.ask(input="The house is red. " * 40, generate=False))["response"]
        assert ahead["status"] == "completed" and ahead["output"] == []
        response = (await socket.ask(input="hi", previous_response_id=ahead["id"]))["response"]
        cached = response["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached >= ahead["usage"]["input_tokens"] - 32

    talk(server, test)


@pytest.mark.parametrize("lane", ["", "a b", "ä", "x" * 257, 5, "a/b"])
def test_an_invalid_lane_name_is_refused(server: Server, lane: Any) -> None:
    async def test(socket: Socket) -> None:
        refused = await socket.ask(input="x", stream_id=lane)
        assert refused["error"]["code"] == "invalid_stream_id" and refused["error"]["param"] == "stream_id"
        assert "stream_id" not in refused and refused["status"] == 400

    talk(server, test)


def test_there_are_32_lanes_with_names_and_one_without(server: Server) -> None:
    async def test(socket: Socket) -> None:
        for number in range(MAX_LANES):
            await socket.send(input="hi", stream_id=f"l{number}", max_output_tokens=1)
        await socket.until_end(MAX_LANES)
        refused = await socket.ask(input="hi", stream_id="one_more")
        assert refused["error"]["code"] == "websocket_stream_limit_reached" and refused["stream_id"] == "one_more"
        assert (await socket.ask(input="hi", max_output_tokens=1))["type"] == "response.incomplete"
        assert (await socket.ask(input="hi", stream_id="l3", max_output_tokens=1))["type"] == "response.incomplete"

    talk(server, test)


BAD_FRAMES = [
    ("{", "invalid_json"), ("[]", "invalid_json"), ("5", "invalid_json"), ('{"a":1,"a":2}', "invalid_json"),
    ('{"a":NaN}', "invalid_json"), ('{"a":"\\ud800"}', "invalid_json"), ("[" * 100_000, "invalid_json"),
    ('{"a":' * 100_000, "invalid_json"), ('{"a":' + "9" * 10_000 + "}", "invalid_json"), ('{"a":1e999}', "invalid_json"),
    ("{}", "unknown_event_type"), ('{"type":"response.explode"}', "unknown_event_type"),
    ('{"type":5}', "unknown_event_type"), ('{"type":"response.create"}', "missing_required_parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "code"), BAD_FRAMES, ids=range(len(BAD_FRAMES)))
def test_a_bad_frame_is_answered_and_the_connection_goes_on(server: Server, frame: str, code: str) -> None:
    async def test(socket: Socket) -> None:
        await socket.socket.send(frame)
        refused = await socket.next()
        assert (refused["type"], refused["status"], refused["error"]["code"]) == ("error", 400, code)
        assert (await socket.ask(input="hi", max_output_tokens=1))["type"] == "response.incomplete"

    talk(server, test)


def test_a_binary_frame_is_refused_and_one_that_is_too_big_ends_the_connection(server: Server) -> None:
    async def test(socket: Socket) -> None:
        await socket.socket.send(b"\x00\xff")
        assert (await socket.next())["error"]["code"] == "invalid_json"
        with pytest.raises(websockets.ConnectionClosed) as e:
            await socket.socket.send(" " * (17 * 2**20))
            await socket.next()
        assert e.value.rcvd is not None and e.value.rcvd.code == 1009

    talk(server, test)


def test_a_queue_without_end_is_refused(server: Server) -> None:
    async def test(socket: Socket) -> None:
        await socket.send(input=LONG, max_output_tokens=1)
        for _ in range(MAX_QUEUED + 40):
            await socket.send(input="hi", max_output_tokens=1)
        while (event := await socket.next())["type"] != "error":
            pass
        assert (event["status"], event["error"]["code"]) == (429, "websocket_queue_full")

    talk(server, test)


def test_steering_ends_the_response_and_another_goes_on(server: Server) -> None:
    async def test(socket: Socket) -> None:
        await socket.send(input=TELL + ". " + LONG, max_output_tokens=90)
        id = (await socket.next())["response"]["id"]
        await socket.socket.send(json.dumps({"type": "response.steer", "previous_response_id": id, "input": ASK}))
        events = await socket.until_end(2)
        accepted = next(event for event in events if event["type"] == "response.steer.accepted")
        assert accepted["steer"]["previous_response_id"] == id and accepted["steer"]["id"]
        first, second = [event["response"] for event in events if event["type"] in ENDS]
        assert (first["status"], first["incomplete_details"]) == ("incomplete", {"reason": "steered"})
        assert second["previous_response_id"] == id

    talk(server, test)


@pytest.mark.parametrize("case", ["unknown", "finished", "invalid", "foreign"])
def test_steering_that_cannot_be_says_why(server: Server, case: str) -> None:
    async def test(socket: Socket) -> None:
        id, input, code = "resp_" + "0" * 32, "x", "response_not_found"
        if case == "finished":
            id, code = (
                (await socket.ask(input="hi", max_output_tokens=1))["response"]["id"],
                "response_already_completed",
            )
        if case == "invalid":
            await socket.send(input=LONG, max_output_tokens=1)
            id, code = (await socket.next())["response"]["id"], "invalid_input"
        given: Any = [{"role": "system", "content": "x"}] if case == "invalid" else input
        await socket.socket.send(json.dumps({"type": "response.steer", "previous_response_id": id, "input": given}))
        while (event := await socket.next())["type"] != "response.steer.failed":
            pass
        assert event["error"]["code"] == code and event["steer"]["input"] == given

    talk(server, test)


def test_closing_the_socket_ends_what_is_not_stored_and_lets_the_rest_finish(server: Server) -> None:
    async def main() -> None:
        async with connected(server) as socket:
            await socket.send(input=TELL, stream_id="kept", store=True)
            kept = (await socket.next())["response"]["id"]
            await socket.send(input=LONG, stream_id="lost")
        async with server.async_client() as client:
            response = await client.responses.retrieve(kept)
            while response.status == "in_progress":
                response = await client.responses.retrieve(kept)
            assert response.status == "completed"

    asyncio.run(main())


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_connection_has_an_end(server: Server, monkeypatch: pytest.MonkeyPatch, is_busy: bool) -> None:
    monkeypatch.setattr("holdfast.agent.server.responses.websocket.CONNECTION_S", 0.6)

    async def test(socket: Socket) -> None:
        assert (await socket.ask(input="hi", max_output_tokens=1))["type"] == "response.incomplete"
        if is_busy:
            await socket.send(input=LONG * 8)
        while (event := await socket.next())["type"] != "error":
            pass
        assert event == {
            "type": "error", "status": 400,
            "error": {"type": "invalid_request_error", "code": "websocket_connection_limit_reached", "param": None,
                      "message": "Responses websocket connection limit reached (0.01 minutes). Create a new websocket"
                      " connection to continue."},
        }  # fmt: skip
        with pytest.raises(websockets.ConnectionClosed) as e:
            await socket.next()
        assert e.value.rcvd is not None and e.value.rcvd.code == 1001

    talk(server, test)


def test_a_connection_forgets_its_oldest_responses_that_are_not_stored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.agent.server.responses.websocket.MAX_LOCAL", 2)

    async def test(socket: Socket) -> None:
        ids = [(await socket.ask(input="hi", max_output_tokens=1))["response"]["id"] for _ in range(3)]
        lost = await socket.ask(input="hi", previous_response_id=ids[0], max_output_tokens=1)
        assert lost["error"]["code"] == "previous_response_not_found"
        kept = await socket.ask(input="hi", previous_response_id=ids[2], max_output_tokens=1)
        assert kept["type"] == "response.incomplete"

    talk(server, test)


@pytest.mark.parametrize("is_clean", [True, False])
def test_what_is_not_stored_ends_with_its_connection(server: Server, is_clean: bool) -> None:
    async def main() -> None:
        async with connected(server) as socket:
            for lane in ("a", "b", "c"):
                await socket.send(input=LONG * 12, stream_id=lane)
            await socket.next()
            if not is_clean:
                socket.socket.transport.abort()
        ended = asyncio.get_running_loop().time() + 5
        while left := [response for response in server.running.service.cache.in_flight() if not response.is_stored]:
            assert asyncio.get_running_loop().time() < ended, left[0].response["status"]
            await asyncio.sleep(0.05)

    asyncio.run(main())


def test_no_token_no_socket(server: Server) -> None:
    async def main() -> None:
        with pytest.raises(websockets.InvalidStatus) as e:
            async with connected(server, "wrong"):
                pass
        assert e.value.response.status_code == 401

    asyncio.run(main())
