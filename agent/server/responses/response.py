"""One response: what was asked, what has been said so far, and where its conversation stands. Plain data and its row.

A response is what `previous_response_id` names. It is in memory while it runs and for a while after; with `store` it is a
row too, and comes back from there.
"""

import asyncio
import json
import zlib
from array import array
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from holdfast.agent.server.json import Json, dumps
from holdfast.agent.server.responses.items import Message
from holdfast.memory import StoredResponse

TERMINAL = ("completed", "incomplete", "failed", "cancelled")


@dataclass(eq=False)
class Response:
    """`ids` is the token log after it; its first `known` are those of the response it goes on from, branch `parent`.

    `calls` wait for results (call_id -> name). `pending` was said but is not in the log yet: read ahead only. `digest`
    is of the opening and of all messages, `opening` of the opening alone.
    """

    id: str
    owner: str
    session_id: int
    created_at: float
    object: Json  # as clients see it
    input: list[Json]
    opening: bytes
    digest: bytes
    before: "Response | None" = None  # while it runs: what it goes on from
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    known: int = 0
    parent: int = 0
    branch: int = 0
    calls: dict[str, str] = field(default_factory=dict)
    pending: list[Message] = field(default_factory=list)
    system: list[str] = field(default_factory=list)  # system messages that the conversation began with
    num_input_tokens: int = 0  # those known and those to be read
    stopped_by: str | None = None  # the stop text at which it ended
    events: list[Json] = field(default_factory=list)
    packed: bytes = b""  # the body of its row, events too, once these are here no more
    is_cancelled: bool = False
    is_left: bool = False  # by the client that asked for it
    steering: list[Json] = field(default_factory=list)  # user messages that wait for the end of this one
    is_steered: bool = False
    on_steer: Callable[[], None] | None = None  # of one that looks for steering only when it is told
    task: "asyncio.Task[Any] | None" = None  # ends when it is cancelled
    wants_own_events: bool = (
        False  # those that the protocol does not have: some clients end at an event they do not know
    )
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        """Whether its last event is published."""
        return self.object["status"] in TERMINAL

    @property
    def is_stored(self) -> bool:
        return bool(self.object["store"])

    def steer(self, items: list[Json]) -> None:
        """It is to end, and another to go on with these messages."""
        self.steering += items
        if self.on_steer is not None:
            self.on_steer()

    def emit(self, type: str, fields: Json) -> None:
        """Publish an event; whoever follows wakes up."""
        self.events.append({"type": type, **fields, "sequence_number": len(self.events)})
        self._changed.set()
        self._changed = asyncio.Event()

    def emit_own(self, type: str, fields: Json) -> None:
        """Publish an event that the protocol does not have, if the client asked for such."""
        if self.wants_own_events:
            self.emit(f"holdfast:{type}", fields)

    def explain(self, why: str | None) -> None:
        """Say why input was computed again, if the client asked for what the protocol does not have."""
        if self.wants_own_events and why is not None:
            self.object = {**self.object, "holdfast": {**self.object.get("holdfast", {}), "why": why}}

    async def follow(self, after: int = -1) -> AsyncIterator[Json]:
        """Its events with a sequence_number above `after`, those to come too, up to the last."""
        at = max(0, after + 1)
        events = await asyncio.to_thread(_events_in, self.packed) if self.packed else self.events
        while True:
            while at < len(events):
                yield events[at]
                at += 1
            if self.is_over:
                return
            await self._changed.wait()

    async def over(self) -> None:
        while not self.is_over:
            await self._changed.wait()

    def pack(self, body: bytes) -> None:
        """It is over and stored: what was said is kept as bytes. Dicts of all responses held the interpreter up whenever it
        looked for garbage. Whoever follows already has the list."""
        self.packed, self.events = body, []

    def row(self, response: Json, last_event: Json | None = None) -> StoredResponse:
        """As it is stored, with the response and the event that are about to be published."""
        events = [*self.events, last_event] if last_event else self.events
        body: dict[str, Any] = {
            "response": response, "input": self.input, "opening": self.opening.hex(), "calls": self.calls,
            "pending": self.pending, "system": self.system, "events": events,
        }  # fmt: skip
        data = zlib.compress(dumps(body).encode(), 1)
        return StoredResponse(self.id, self.owner, self.session_id, self.branch, self.digest, self.created_at, data)


def _events_in(body: bytes) -> list[Json]:
    events: list[Json] = json.loads(zlib.decompress(body))["events"]
    return events


def response_of(row: StoredResponse, ids: "array[int]") -> Response:
    """A response from its row and its log. One that did not end before its server did has failed."""
    body = json.loads(zlib.decompress(row.body))
    response = Response(
        row.id, row.owner, row.session_id, row.created_at, body["response"], body["input"],
        bytes.fromhex(body["opening"]), row.fingerprint, ids=ids, branch=row.branch_id, calls=body["calls"],
        pending=body["pending"], system=body["system"], events=body["events"],
    )  # fmt: skip
    if response.is_over:
        response.pack(row.body)
    else:
        error = {"code": "server_error", "message": "the server ended before this response did: ask again"}
        response.object = {**response.object, "status": "failed", "error": error}
        response.emit("response.failed", {"response": response.object})
    return response
