"""A response has one owner: its module. Its end is one value, published and stored alike."""

import ast
import asyncio
import json
import zlib
from array import array
from dataclasses import fields
from pathlib import Path

import pytest

from holdfast.agent.events import Usage
from holdfast.agent.server.json import Json
from holdfast.agent.server.responses import response as module
from holdfast.agent.server.responses.response import End, Response, response_of

FIELDS = {field.name for field in fields(Response)}
AGENT = Path(module.__file__).parents[2]


def a_response(**more: object) -> Response:
    shown = {"id": "resp_1", "status": "in_progress", "store": True, "background": False, "output": [], "usage": None}
    given = {"id": "resp_1", "owner": "ann", "session_id": 1, "created_at": 1.0, "object": shown, "input": []}
    return Response(**{**given, "opening": b"o", "digest": b"d", **more})  # type: ignore[arg-type]


def events_of(response: Response, after: int = -1) -> list[Json]:
    async def read() -> list[Json]:
        return [event async for event in response.follow(after)]

    return asyncio.run(asyncio.wait_for(read(), 60))


def fields_written(source: str) -> set[str]:
    """The fields of a response that code assigns to, of anything but itself."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    written = [node for node in nodes if isinstance(node.ctx, ast.Store)]
    return {node.attr for node in written if ast.unparse(node.value).endswith("response")} & FIELDS


def test_only_its_module_writes_the_fields_of_a_response() -> None:
    assert fields_written("response.digest, x = b'', 1\nself.response.ids += [1]\nself.ids = []") == {"digest", "ids"}
    for path in AGENT.rglob("*.py"):
        if path != Path(module.__file__):
            assert not fields_written(path.read_text()), path


def test_what_is_stored_is_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    response = a_response()
    response.emit_object("response.created")
    end = End(status="completed", usage=Usage(context_limit=9), digest=b"e", ids=array("i", [1, 2]))
    stored = response.row(end)
    monkeypatch.setattr(module.time, "time", lambda: end.ended_at + 60)  # the disk was slow
    live = asyncio.run(_followed_while_it_ends(response, end))
    again = response_of(stored, array("i", [1, 2]))
    assert live == json.loads(zlib.decompress(stored.body))["events"] == events_of(again)
    assert again.object == response.object and again.digest == response.digest == b"e"
    assert [event["sequence_number"] for event in live] == [0, 1] and events_of(again, 0) == live[1:]


async def _followed_while_it_ends(response: Response, end: End) -> list[Json]:
    async def read() -> list[Json]:
        return [event async for event in response.follow()]

    following = asyncio.create_task(read())
    await asyncio.sleep(0)
    response.finish(end)
    await response.over()
    return await following


def test_a_response_whose_server_ended_before_it_has_failed() -> None:
    response = a_response()
    response.emit_object("response.created")
    again = response_of(response.row(), array("i"))
    assert again.is_over and again.status == "failed" and again.digest == b"d"
    assert [event["type"] for event in events_of(again)] == ["response.created", "response.failed"]


def test_a_cancel_before_it_runs_counts() -> None:
    async def test() -> None:
        response = a_response()
        response.leave()
        with pytest.raises(asyncio.CancelledError):
            await response.run(asyncio.sleep(60))
        assert response.is_cancelled and response.cancelled_status == "incomplete"

    asyncio.run(asyncio.wait_for(test(), 60))
