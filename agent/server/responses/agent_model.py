"""`holdfast-agent`, the agent behind the Responses API: a response is one turn of a durable session, with tools on the server.

Owns which session a request means, and how a turn's events become those of a response. To go on from a response that its
session has left behind is a fork of the session. Must not know HTTP, nor how responses are kept.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from holdfast.agent.encoding.deltas import TextDelta, ThinkingDelta
from holdfast.agent.events import Usage
from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.responses.items import normal_items, opening_of
from holdfast.agent.server.responses.output import Output, ended, response_object, stopped, usage_object
from holdfast.agent.server.responses.request import OWN_EVENTS, Create
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.transcript import Line, digests, lines_of, num_known, prompt_of
from holdfast.agent.server.sessions.hub import OpenSession, SessionHub
from holdfast.agent.server.sessions.names import open_session, shown_name, start_session
from holdfast.agent.session.approvals import Policy

AGENT_MODEL = "holdfast-agent"
SESSION, WORKSPACE, APPROVE = "holdfast:session", "holdfast:workspace", "holdfast:approve"  # keys of metadata
FORWARDED = ("prefill_progress", "approval_needed", "approval_done", "notice")

Find = Callable[[bytes], Awaitable[Response | None]]


@dataclass(frozen=True)
class Turn:
    """Of a live session, for one response: its events come after `after`, on a branch."""

    live: OpenSession
    after: str


@dataclass(frozen=True)
class AgentModel:
    """`workspace` is where whoever has the data works unless they say otherwise."""

    sessions: SessionHub
    workspace: Path

    async def begin(
        self, user: User, request: Create, before: Response | None, session_id: int, find: Find
    ) -> tuple[Response, Turn]:
        """Start the turn that a request asks for; `session_id` is where the user's responses are kept, and `find` finds one
        by what was said up to it. Raises ApiError."""
        policy = request.metadata.get(APPROVE, Policy.READ)
        if policy not in set(Policy):
            raise bad(f"metadata {APPROVE} must be one of {', '.join(Policy)}", "metadata")
        id, now = f"resp_{secrets.token_hex(16)}", time.time()
        given = normal_items(request.input, f"in_{id[5:]}_")
        _refuse_unusual(request)
        lines = lines_of(given)
        digest = digests(lines, *([before.digest] if before else []))[-1]
        live, lines = await self._place(user, request, before, lines, find)
        told = [("system", request.instructions)] if request.instructions else []
        after = await live.begin(prompt_of([*told, *lines]), Policy(policy))
        opening = opening_of(request, [])
        shown = response_object(id, request, opening, now, self.sessions.app.settings.temperature)
        shown["holdfast"] = {"session": shown_name(live.info), "branch": live.info.branch, "turn": live.turn}
        response = Response(
            id, user.name, session_id, now, shown, given, opening.digest(), digest,
            wants_own_events=OWN_EVENTS in request.include,
        )  # fmt: skip
        return response, Turn(live, after)

    async def _place(
        self, user: User, request: Create, before: Response | None, lines: list[Line], find: Find
    ) -> tuple[OpenSession, list[Line]]:
        """Where the turn goes on, and what is new there. A conversation that comes whole goes on in the session that has
        held its beginning; where there is none, a new one is told all of it."""
        known = num_known(lines)
        if before is not None or SESSION in request.metadata:  # the session knows what was said
            return await self._session(user, request, before), lines[known:]
        found = digests(lines[:known])
        for at in range(known, 0, -1):
            if lines[at - 1][0] != "assistant" or (held := await find(found[at - 1])) is None or not held.is_over:
                continue
            try:
                return await self._session(user, request, held), lines[at:]
            except ApiError as e:
                if e.code != "previous_response_not_found":
                    raise
        return await self._session(user, request, None), lines

    async def _session(self, user: User, request: Create, before: Response | None) -> OpenSession:
        """Where the turn goes on: the session of the response before, or a fork of it where others went on already."""
        if before is None:
            name, workspace = request.metadata.get(SESSION), request.metadata.get(WORKSPACE)
            return await start_session(self.sessions, user, self.workspace, workspace, name, resume=name is not None)
        place = before.object.get("holdfast")
        if place is None:
            raise bad(f"the previous response is not {AGENT_MODEL}'s: go on with its own model", "previous_response_id")
        try:
            live = await open_session(self.sessions, user, place["session"])
        except ApiError as e:
            if e.code != "session_not_found":
                raise
            text = f"The session of response '{before.id}' was deleted."
            raise ApiError(400, text, "previous_response_not_found", "previous_response_id") from None
        log = live.session.log
        if (live.info.branch, log.num_turns) == (place["branch"], place["turn"]) and not live.is_running:
            return live
        catalog = self.sessions.catalog
        fork = await asyncio.to_thread(catalog.fork, live.info, place["turn"], None, None, place["branch"])
        return await self.sessions.open(fork)


def _refuse_unusual(request: Create) -> None:
    """Raises ApiError for what an agent with its own tools and sessions cannot do."""
    if request.tools:
        raise unsupported(f"{AGENT_MODEL} has its own tools on the server: send none", "tools")
    if (request.text.get("format") or {}).get("type", "text") != "text":
        raise unsupported(f"{AGENT_MODEL} answers in plain text", "text.format")
    if not request.generate:
        raise unsupported(f"{AGENT_MODEL} cannot read ahead", "generate")


async def run(response: Response, turn: Turn) -> tuple[Json, Usage]:
    """The response as it has ended, once its turn has; a response that is cancelled or steered ends the turn."""
    response.emit("response.in_progress", {"response": response.object})
    output = Output(response.emit, response.id)
    response.task = following = asyncio.create_task(_follow(response, turn, output))
    if response.is_cancelled:
        following.cancel()
    last: Json
    response.on_steer = turn.live.interrupt
    try:
        last = await following
    except asyncio.CancelledError:
        await turn.live.cancel()
        if not response.is_cancelled:
            raise
        last = {"type": "interrupted"}
    output.close(is_cut=last["type"] != "turn_done")
    output.abandon_calls()
    usage = Usage.model_validate({k: v for k, v in last.get("usage", {}).items() if k != "input_tokens"})
    return _end(response, last, output, usage), usage


async def _follow(response: Response, turn: Turn, output: Output) -> Json:
    """The last event of the turn."""
    log = turn.live.events
    calls: dict[str, int] = {}
    async with aclosing(log.follow(log.number_after(turn.after))) as events:
        async for _, event in events:
            kind = event["type"]
            if kind == "text":
                output.add(TextDelta(event["delta"]))
            elif kind == "thinking":
                output.add(ThinkingDelta(event["delta"]))
            elif kind in FORWARDED:
                fields = {key: value for key, value in event.items() if key != "type"}
                response.emit_own(kind.replace("_", "."), fields)
            elif kind == "tool_call":
                calls[event["id"]] = output.begin_call(event["name"], event["arguments"])
            elif kind == "tool_result" and event["id"] in calls:
                output.end_call(calls.pop(event["id"]), event["output"], event["ok"])
            elif kind in ("turn_done", "error", "interrupted"):
                return event
    return {"type": "error", "message": "the session was closed"}


def _end(response: Response, last: Json, output: Output, usage: Usage) -> Json:
    counted = usage_object(usage, 0)
    response.explain(usage.why)
    if last["type"] == "turn_done":
        return ended(response.object, "completed", output.items, counted, {})
    if last["type"] == "error":
        error = {"code": "server_error", "message": last["message"]}
        return ended(response.object, "failed", output.items, counted, {"error": error})
    if response.steering:
        response.is_steered = True
        details = {"incomplete_details": {"reason": "steered"}}
        return ended(response.object, "incomplete", output.items, counted, details)
    return stopped(response.object, response.is_left, output.items, counted)
