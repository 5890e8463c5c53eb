"""`holdfast-agent`, the agent behind the Responses API: a response is one turn of a durable session, with server tools.

Owns which session a request means, and how a turn's events become those of a response. Going on from a response that is
not the last turn of its session forks the session. Must not know HTTP, nor how responses are stored.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.agent.encoding.deltas import TextDelta, ThinkingDelta
from holdfast.agent.events import Usage
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.agent.server.responses.items import as_items, normal_items, opening_of
from holdfast.agent.server.responses.output import Output
from holdfast.agent.server.responses.request import Create
from holdfast.agent.server.responses.response import End, Response, new_id, new_response
from holdfast.agent.server.responses.transcript import Line, answer_of, digests, lines_of, num_known, prompt_of
from holdfast.agent.server.sessions.hub import OpenSession, SessionHub
from holdfast.agent.server.sessions.names import open_session, shown_name, start_session

AGENT_MODEL = "holdfast-agent"
SESSION, WORKSPACE, APPROVE = "holdfast:session", "holdfast:workspace", "holdfast:approve"  # keys of metadata
FORWARDED = ("prefill_progress", "approval_needed", "approval_done", "notice")

Find = Callable[[bytes], Awaitable[Response | None]]


@dataclass(frozen=True)
class Turn:
    """The turn of an open session that makes a response: its events come after the one with the id `after`."""

    opened: OpenSession
    after: str


@dataclass(frozen=True)
class AgentModel:
    """The agent as a model. `workspace` is the default workspace of the data directory's owner."""

    sessions: SessionHub
    workspace: Path

    async def begin(
        self, user: User, request: Create, history: list[Json], before: Response | None, cache: ResponseCache
    ) -> tuple[Response, Turn]:
        """Start the turn that a request asks for. `history` are the items of the conversation that it names. Raises
        ApiError."""
        policy = request.metadata.get(APPROVE, Policy.READ)
        if policy not in set(Policy):
            raise bad(f"metadata {APPROVE} must be one of {', '.join(Policy)}", "metadata")
        id = new_id()
        given = normal_items([*history, *as_items(request.input)], f"in_{id[5:]}_")
        _refuse_unusual(request)
        lines = lines_of(given)
        digest = digests(lines, *([before.digest] if before else []))[-1]
        session_id = await cache.session(user.name)
        opened, lines = await self._place(user, request, before, lines, lambda said: cache.find(user, session_id, said))
        told = [("system", request.instructions)] if request.instructions else []
        after = await opened.begin(prompt_of([*told, *lines]), Policy(policy))
        place = {"session": shown_name(opened.info), "branch": opened.info.branch, "turn": opened.turn}
        response = new_response(
            id,
            request,
            opening_of(request, []),
            owner=user.name,
            session_id=session_id,
            input=given[len(history) :],
            digest=digest,
            temperature=self.sessions.app.settings.temperature,
            agent_turn=place,
        )
        return response, Turn(opened, after)

    async def _place(
        self, user: User, request: Create, before: Response | None, lines: list[Line], find: Find
    ) -> tuple[OpenSession, list[Line]]:
        """The session for the turn, and the lines that are new to it. A whole conversation continues the session that
        had its longest beginning; if there is none, a new session gets all of it."""
        known = num_known(lines)
        if before is not None or SESSION in request.metadata:  # the session has the earlier lines
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
        """The session of the response before, or a fork of it if that response is not its last turn."""
        if before is None:
            name, workspace = request.metadata.get(SESSION), request.metadata.get(WORKSPACE)
            return await start_session(
                self.sessions, user, self.workspace, workspace=workspace, name=name, resume=name is not None
            )
        place = before.agent_turn
        if place is None:
            raise bad(f"the previous response is not {AGENT_MODEL}'s: go on with its own model", "previous_response_id")
        try:
            opened = await open_session(self.sessions, user, place["session"])
        except ApiError as e:
            if e.code != "session_not_found":
                raise
            text = f"The session of response '{before.id}' was deleted."
            raise ApiError(400, text, "previous_response_not_found", "previous_response_id") from None
        log = opened.session.log
        if (opened.info.branch, log.num_turns) == (place["branch"], place["turn"]) and not opened.is_running:
            return opened
        catalog = self.sessions.catalog
        fork = await asyncio.to_thread(catalog.fork, opened.info, place["turn"], None, None, place["branch"])
        return await self.sessions.open(fork)


def _refuse_unusual(request: Create) -> None:
    """Raises ApiError for fields that an agent with its own tools and sessions does not support."""
    if request.tools:
        raise unsupported(f"{AGENT_MODEL} has its own tools on the server: send none", "tools")
    if (request.text.get("format") or {}).get("type", "text") != "text":
        raise unsupported(f"{AGENT_MODEL} answers in plain text", "text.format")
    if not request.generate:
        raise unsupported(f"{AGENT_MODEL} cannot read ahead", "generate")


async def run(response: Response, turn: Turn) -> End:
    """Follow the turn to its end; a response that is cancelled or steered ends the turn."""
    response.emit_object("response.in_progress")
    output = Output(response.emit, response.id)
    last: Json
    try:
        last = await response.run(_follow(response, turn, output), on_steer=turn.opened.interrupt)
    except asyncio.CancelledError:
        await turn.opened.cancel()
        if not response.is_cancelled:
            raise
        last = {"type": "interrupted"}
    output.close(is_cut=last["type"] != "turn_done")
    output.abandon_calls()
    return _end(response, last, output)


async def _follow(response: Response, turn: Turn, output: Output) -> Json:
    """The last event of the turn."""
    log = turn.opened.events
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
                output.end_call(calls.pop(event["id"]), event["output"], is_ok=event["ok"])
            elif kind in ("turn_done", "error", "interrupted"):
                return event
    return {"type": "error", "message": "the session was closed"}


def _end(response: Response, last: Json, output: Output) -> End:
    usage = Usage.model_validate({k: v for k, v in last.get("usage", {}).items() if k != "input_tokens"})
    said = digests(answer_of(output.items), response.digest)
    end = End(status="completed", output=output.items, usage=usage, digest=said[-1] if said else None)
    if last["type"] == "turn_done":
        return end
    if last["type"] == "error":
        return end.failed(last["message"])
    if response.steering:
        return replace(end, status="incomplete", reason="steered")
    return replace(end, status=response.cancelled_status)
