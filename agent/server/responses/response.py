"""One response: what was asked, what the model has written so far, and where its conversation stands.

A response is what `previous_response_id` names. It is in memory while it runs and for a while after; with `store` it is
also a row of the database. Only this module writes its fields. Must not know how a response is made.
"""

import asyncio
import json
import secrets
import time
import zlib
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from holdfast.agent.events import Usage
from holdfast.agent.server.event_log import EventLog
from holdfast.agent.server.json import Json, dumps
from holdfast.agent.server.responses.items import Message, Opening
from holdfast.agent.server.responses.request import OWN_EVENTS, Create
from holdfast.agent.server.responses.response_object import response_object, usage_object
from holdfast.memory import StoredResponse

TERMINAL = ("completed", "incomplete", "failed", "cancelled")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class End:
    """How a response ends. `ids` is the token log after it, `digest` that of the conversation with its output; None
    keeps what the response has."""

    status: str
    ended_at: float = field(default_factory=time.time)
    reason: str | None = None  # why it is incomplete
    error: Json | None = None
    output: list[Json] = field(default_factory=list)
    usage: Usage | None = None
    reasoning_tokens: int = 0
    digest: bytes | None = None
    ids: "array[int] | None" = None
    calls: dict[str, str] = field(default_factory=dict)  # that wait for results: call_id -> name
    stopped_by: str | None = None  # the stop text at which it ended

    def failed(self, message: str) -> "End":
        """The same end, but as a failure of the server."""
        return replace(self, status="failed", error={"code": "server_error", "message": message})


@dataclass(eq=False, kw_only=True)
class Response:
    """`ids` is its token log; while it runs, that of `before`, the response that it goes on from. `digest` is of the
    opening and all messages, `opening` of the opening alone."""

    id: str
    owner: str
    session_id: int
    created_at: float
    object: Json  # as clients see it
    input: list[Json]
    opening: bytes
    digest: bytes
    before: "Response | None" = None  # None when it has ended
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    num_known_tokens: int = 0  # of `before`
    num_input_tokens: int = 0  # those known and those to be read
    branch: int = 0  # of its log, when it is stored
    calls: dict[str, str] = field(default_factory=dict)  # that wait for results: call_id -> name
    pending: list[Message] = field(default_factory=list)  # in the conversation, but not in its log yet: read ahead only
    system: list[str] = field(default_factory=list)  # system messages that the conversation began with
    stopped_by: str | None = None  # the stop text at which it ended
    wants_own_events: bool = False  # `holdfast:` events: some clients end at an event that they do not know
    is_cancelled: bool = False
    is_left: bool = False  # by the client that asked for it
    steering: list[Json] = field(default_factory=list)  # user messages that wait for the end of this response
    _events: EventLog = field(default_factory=EventLog)
    _packed: bytes = b""  # the body of its row, which has its events, when `_events` has them no more
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _task: "asyncio.Task[Any] | None" = None  # what makes it
    _on_steer: Callable[[], None] | None = None

    @property
    def status(self) -> str:
        return str(self.object["status"])

    @property
    def output(self) -> list[Json]:
        output: list[Json] = self.object["output"]
        return output

    @property
    def agent_turn(self) -> Json | None:
        """The session, branch and turn that made it, where it is one of the agent's: its log is there."""
        place = self.object.get("holdfast")
        return place if place and "session" in place else None

    @property
    def is_over(self) -> bool:
        """Whether its last event is published."""
        return self.status in TERMINAL

    @property
    def cancelled_status(self) -> str:
        """Its status after a cancel: `incomplete` if that was because the client has left."""
        return "incomplete" if self.is_left else "cancelled"

    @property
    def is_stored(self) -> bool:
        return bool(self.object["store"])

    @property
    def events(self) -> list[Json]:
        """Its events so far; none once they are only in its row."""
        return self._events.kept()

    def emit(self, type: str, fields: Json) -> None:
        """Publish an event."""
        self._events.append({"type": type, **fields, "sequence_number": self._events.num_events})

    def emit_object(self, type: str, **changes: str) -> None:
        """Publish an event that has the whole response object."""
        self.emit(type, {"response": {**self.object, **changes}})

    def emit_own(self, type: str, fields: Json) -> None:
        """Publish an event that the protocol does not have, if the client asked for such."""
        if self.wants_own_events:
            self.emit(f"holdfast:{type}", fields)

    async def follow(self, after: int = -1) -> AsyncIterator[Json]:
        """Its events with a sequence_number above `after`, future ones included, up to the last."""
        if self._packed:
            for event in (await asyncio.to_thread(_events_in, self._packed))[after + 1 :]:
                yield event
            return
        async with aclosing(self._events.follow(after + 1)) as events:
            async for _, event in events:
                yield event

    async def over(self) -> None:
        """Wait until it is over."""
        await self._over.wait()

    async def run(self, work: Coroutine[Any, Any, T], on_steer: Callable[[], None] | None = None) -> T:
        """Run the work that makes it as a task, which `cancel` cancels. `on_steer` is called when it is steered."""
        task = asyncio.create_task(work)
        self._task, self._on_steer = task, on_steer
        if self.is_cancelled:
            task.cancel()
        return await task

    def cancel(self) -> None:
        """Cancel it; it is over a moment later."""
        self.is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def leave(self) -> None:
        """Cancel it because its client is gone, unless it runs in the background. It ends as incomplete."""
        if not self.object["background"]:
            self.is_left = True
            self.cancel()

    def steer(self, items: list[Json]) -> None:
        """Add user messages for a response that follows, and end this one early."""
        self.steering += items
        if self._on_steer is not None:
            self._on_steer()

    def row(self, end: End | None = None) -> StoredResponse:
        """Its row as it is now, or with an end that is not published yet."""
        object_, events, calls, digest = self.object, self.events, self.calls, self.digest
        if end is not None:
            object_, calls, digest = self._ended(end), end.calls, end.digest or digest
            events.append(self._last_event(object_))
        body: dict[str, Any] = {"response": object_, "input": self.input, "opening": self.opening.hex(), "calls": calls}
        body |= {"pending": self.pending, "system": self.system, "events": events}
        data = zlib.compress(dumps(body).encode(), 1)
        return StoredResponse(self.id, self.owner, self.session_id, self.branch, digest, self.created_at, data)

    def finish(self, end: End, stored: StoredResponse | None = None) -> None:
        """Publish the end. The events of a stored response are kept as the bytes of its row: dicts of all responses
        made garbage collection slow."""
        self.object = self._ended(end)
        self.calls, self.stopped_by, self.before = end.calls, end.stopped_by, None
        self.digest = end.digest or self.digest
        self.ids = self.ids if end.ids is None else end.ids
        self._events.append(self._last_event(self.object))
        self._events.close()
        self._over.set()
        if stored is not None:
            self.branch, self._packed, self._events = stored.branch_id, stored.body, EventLog()

    def restore(self, events: list[Json], body: bytes) -> None:
        """Restore its events from the body of its row. If the server ended before it was over, it has failed."""
        if self.is_over:
            self._packed = body
            self._over.set()
            return
        for event in events:
            self._events.append(event)
        self.finish(End(status="").failed("the server ended before this response did: ask again"))

    def forget_events(self) -> None:
        """Drop its events: no client follows it any more."""
        self._events.drop()

    def _ended(self, end: End) -> Json:
        details: Json = {"incomplete_details": {"reason": end.reason}} if end.status == "incomplete" else {}
        if end.error is not None:
            details = {"error": end.error}
        object_ = self.object
        if self.wants_own_events and end.usage is not None and end.usage.why is not None:
            object_ = {**object_, "holdfast": {**object_.get("holdfast", {}), "why": end.usage.why}}
        usage = usage_object(end.usage, end.reasoning_tokens) if end.usage is not None else None
        done_at = int(end.ended_at) if end.status == "completed" else None
        ended = {"status": end.status, "output": end.output, "usage": usage, "completed_at": done_at, **details}
        return {**object_, **ended}

    def _last_event(self, ended: Json) -> Json:
        kind = "incomplete" if ended["status"] == "cancelled" else ended["status"]
        return {"type": f"response.{kind}", "response": ended, "sequence_number": self._events.num_events}


def _events_in(body: bytes) -> list[Json]:
    events: list[Json] = json.loads(zlib.decompress(body))["events"]
    return events


def new_id() -> str:
    return f"resp_{secrets.token_hex(16)}"


def new_response(
    id: str,
    request: Create,
    opening: Opening,
    *,
    owner: str,
    session_id: int,
    input: list[Json],
    digest: bytes,
    temperature: float,
    before: Response | None = None,
    num_new_tokens: int = 0,
    agent_turn: Json | None = None,
    **more: Any,
) -> Response:
    """A response that begins now, with the log of `before`; `more` are fields of `Response`."""
    now = time.time()
    object_ = response_object(id, request, opening, now, temperature)
    if agent_turn is not None:
        object_["holdfast"] = agent_turn
    known = before.ids[:] if before else array("i")
    return Response(
        id=id,
        owner=owner,
        session_id=session_id,
        created_at=now,
        object=object_,
        input=input,
        opening=opening.digest(),
        digest=digest,
        before=before,
        ids=known,
        num_known_tokens=len(known),
        num_input_tokens=len(known) + num_new_tokens,
        wants_own_events=OWN_EVENTS in request.include,
        **more,
    )


def response_of(row: StoredResponse, ids: "array[int]") -> Response:
    """A response from its row and its log."""
    body = json.loads(zlib.decompress(row.body))
    response = Response(
        id=row.id,
        owner=row.owner,
        session_id=row.session_id,
        created_at=row.created_at,
        object=body["response"],
        input=body["input"],
        opening=bytes.fromhex(body["opening"]),
        digest=row.fingerprint,
        ids=ids,
        branch=row.branch_id,
        calls=body["calls"],
        pending=body["pending"],
        system=body["system"],
    )
    response.restore(body["events"], row.body)
    return response
