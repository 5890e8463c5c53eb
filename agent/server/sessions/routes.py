"""The routes of `/v1/sessions`: list, show, drive and watch agent sessions, fork and rewind, answer for their calls.

Owns paths, bodies and the objects that clients get; users see only their own sessions. Must not know how a turn runs.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import Field

from holdfast.agent.config import MAX_PROMPT_CHARS
from holdfast.agent.events import Answer
from holdfast.agent.models.rolling import rolls_of
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.server.access import OWNER
from holdfast.agent.server.http import SERVICE, USER, json_response, read_json, send_frames
from holdfast.agent.server.json import ApiError, Json, bad, dumps
from holdfast.agent.server.sessions.hub import OpenSession, SessionHub
from holdfast.agent.server.sessions.names import find_session, open_session, shown_name, start_session
from holdfast.agent.server.validation import Body, Kind, checked
from holdfast.agent.session.approvals import MAX_REASON_CHARS
from holdfast.agent.session.restored import Part
from holdfast.memory import SessionInfo, SessionInUse, StoreError

SESSIONS = web.AppKey("sessions", SessionHub)
WORKSPACE = web.AppKey("workspace", Path)  # the default of the data directory's owner
MAX_EVENT_ID_CHARS = 64


class NewSession(Body):
    workspace: str | None = None
    name: str | None = None
    resume: bool = False
    create: bool = True  # if there is none to resume
    prompt: str = Field(
        "", max_length=MAX_PROMPT_CHARS
    )  # the first one: the session is named after it, but it is not run


class NewTurn(Body):
    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    approve: str = Policy.ASK


class NewAnswer(Body):
    approve: bool
    always: bool = False  # and do what the call offers: write the rule for this workspace, or set the mode
    reason: str = Field("", max_length=MAX_REASON_CHARS)  # of a refusal, for the model


class Place(Body):
    """A place in a session: the end of a turn, or a token of its log; on its current branch or another."""

    turn: int | None = Field(None, ge=0, le=2**31)
    token: int | None = Field(None, ge=0, le=2**31)
    branch: int | None = Field(None, ge=1, le=2**31)
    name: str | None = None  # of the fork
    part: Part = "conversation"  # what a rewind brings there


async def body_of(request: web.Request, kind: type[Kind]) -> Kind:
    """The body of a request, checked. Raises ApiError that names the field."""
    return checked(kind, await read_json(request))


async def summary(sessions: SessionHub, info: SessionInfo) -> Json:
    """A session as clients see it."""
    opened = sessions.find(info)
    value = await asyncio.to_thread(sessions.catalog.summary, info)
    state = "closed" if opened is None else "running" if opened.is_running else "idle"
    shown = {"name": shown_name(info), "model": info.model, "created_at": info.created_at, "state": state}
    return {"id": shown["name"], "object": "holdfast:session", **value, **shown}


async def context(sessions: SessionHub, info: SessionInfo) -> Json:
    """How full the context window of a session is."""
    opened, store = sessions.find(info), sessions.catalog.sessions
    rolls = opened.session.window.rolls if opened else rolls_of(await asyncio.to_thread(store.events, info))
    branch = next(b for b in await asyncio.to_thread(store.branches, info) if b.is_current)
    used = branch.num_tokens - (rolls[-1].dropped_tokens if rolls else 0)
    return {"context_used": used, "context_limit": sessions.app.engine.max_context}


async def found(request: web.Request) -> SessionInfo:
    """The session that the path names."""
    return await find_session(request.app[SESSIONS], request[USER], request.match_info["name"])


async def open_named(request: web.Request) -> OpenSession:
    """As `found`, opened if it is not."""
    return await open_session(request.app[SESSIONS], request[USER], request.match_info["name"])


async def list_sessions(request: web.Request) -> web.StreamResponse:
    sessions, user, wanted = request.app[SESSIONS], request[USER], request.query.get("workspace")
    infos = [
        info
        for info in await asyncio.to_thread(sessions.app.store.all)
        if info.owner == user.session_owner and info.workspace and wanted in (None, info.workspace)
    ]
    return json_response({"object": "list", "data": [await summary(sessions, info) for info in infos]})


async def create_session(request: web.Request) -> web.StreamResponse:
    sessions, user, body = request.app[SESSIONS], request[USER], await body_of(request, NewSession)
    opened = await start_session(
        sessions,
        user,
        request.app[WORKSPACE],
        workspace=body.workspace,
        name=body.name,
        resume=body.resume,
        create=body.create,
        prompt=body.prompt,
    )
    return json_response(await summary(sessions, opened.info), 201)


async def show_session(request: web.Request) -> web.StreamResponse:
    sessions, info = request.app[SESSIONS], await found(request)
    branches = await asyncio.to_thread(sessions.catalog.tree, info)
    return json_response({**await summary(sessions, info), **await context(sessions, info), "branches": branches})


async def delete_session(request: web.Request) -> web.StreamResponse:
    sessions, info = request.app[SESSIONS], await found(request)
    if (opened := sessions.find(info)) is not None:
        if opened.is_running:
            raise ApiError(409, "a turn of this session is under way: cancel it first", "turn_running")
        opened.events.append({"type": "closed"})
        await sessions.close(info.name)
    try:
        freed = await asyncio.to_thread(sessions.catalog.remove, info)
    except SessionInUse as e:
        raise ApiError(409, str(e), "session_in_use") from None
    deleted: Json = {"id": shown_name(info), "object": "holdfast:session", "deleted": True}
    if request[USER].name == OWNER:  # how much others share of it is not for every user
        deleted["freed_bytes"] = freed.num_bytes
    return json_response(deleted)


async def events(request: web.Request) -> web.StreamResponse:
    """The logged events of a session, from the first turn on."""
    sessions, info = request.app[SESSIONS], await found(request)
    branch = request.query.get("branch")
    if branch is not None and not re.fullmatch(r"\d{1,9}", branch):
        raise bad("branch must be a whole number", "branch")

    def read() -> str:
        logged = sessions.catalog.sessions.events(info, int(branch) if branch else None)
        data = [{**event.payload, "type": event.type, "turn": event.turn} for event in logged if event.type != "shown"]
        return dumps({"object": "list", "data": data})

    try:
        text = await asyncio.to_thread(read)
    except StoreError as e:
        raise bad(str(e), "branch") if branch else e from None
    return web.Response(text=text, content_type="application/json")


async def begin_turn(request: web.Request) -> web.StreamResponse:
    body = await body_of(request, NewTurn)
    if body.approve not in set(Policy):
        raise bad(f"approve must be one of {', '.join(Policy)}", "approve")
    await request.app[SERVICE].quotas.check(request[USER])
    opened = await open_named(request)
    after = await opened.begin(body.prompt, Policy(body.approve))
    return json_response({"object": "holdfast:turn", "session": shown_name(opened.info), "after": after}, 202)


async def watch(request: web.Request) -> web.StreamResponse:
    """The events of a session as SSE: see `EventLog`."""
    after = request.query.get("after", request.headers.get("Last-Event-ID"))
    if after is not None and len(after) > MAX_EVENT_ID_CHARS:
        raise bad("after must be the id of an event", "after")
    opened, sessions = await open_named(request), request.app[SESSIONS]
    if after is None and not opened.is_running:
        after = opened.events.last_id

    async def frames() -> AsyncGenerator[str, None]:
        now = {**await summary(sessions, opened.info), **await context(sessions, opened.info), "turn": opened.turn}
        yield frame("", {"type": "session", **now})
        async for id, event in opened.events.follow(opened.events.number_after(after)):
            yield frame(id, event)

    return await send_frames(request, frames())


def frame(id: str, event: Json) -> str:
    """One event as SSE."""
    return f"id: {id}\nevent: {event['type']}\ndata: {dumps(event)}\n\n".removeprefix("id: \n")


async def answer(request: web.Request) -> web.StreamResponse:
    body, opened, call_id = await body_of(request, NewAnswer), await open_named(request), request.match_info["id"]
    opened.answer(call_id, Answer(approve=body.approve, always=body.always, reason=body.reason))
    return json_response({"id": call_id, "approved": body.approve})


async def cancel(request: web.Request) -> web.StreamResponse:
    opened = request.app[SESSIONS].find(await found(request))
    return json_response({"cancelled": opened is not None and await opened.cancel()})


async def fork(request: web.Request) -> web.StreamResponse:
    sessions, info, place = request.app[SESSIONS], await found(request), await body_of(request, Place)
    if place.turn is not None and place.token is not None:
        raise bad("name a turn or a token, not both", "token")
    await request.app[SERVICE].quotas.check(request[USER])
    try:
        new = await asyncio.to_thread(sessions.catalog.fork, info, place.turn, place.token, place.name, place.branch)
    except StoreError as e:
        raise bad(str(e)) from None
    return json_response(await summary(sessions, new), 201)


async def rewind(request: web.Request) -> web.StreamResponse:
    opened, place, sessions = await open_named(request), await body_of(request, Place), request.app[SESSIONS]
    if [place.turn, place.token, place.branch].count(None) != 2:
        raise bad("name one place: a turn, a token or a branch", "turn", "missing_required_parameter")
    restored = await opened.rewind(place.turn, place.token, place.branch, place.part, sessions.catalog)
    value = restored.value()
    shown = {"files_changed": value["files_changed"], "restored": value}
    return json_response({**await summary(sessions, opened.info), **shown})


async def undo(request: web.Request) -> web.StreamResponse:
    """Files of the last turn that changed any, as they were before it."""
    return json_response(
        {"object": "holdfast:restored", "restored": (await (await open_named(request)).restore(True)).value()}
    )


async def redo(request: web.Request) -> web.StreamResponse:
    """The last undo, taken back."""
    return json_response(
        {"object": "holdfast:restored", "restored": (await (await open_named(request)).restore(False)).value()}
    )


async def jobs(request: web.Request) -> web.StreamResponse:
    """Its commands in the background, a line each; a session that is not open has none."""
    live = request.app[SESSIONS].find(await found(request))
    return json_response({"object": "list", "data": await live.session.jobs() if live else []})


async def usage(request: web.Request) -> web.StreamResponse:
    """Where the tokens of a session are, and the counts since it was opened here."""
    sessions, info = request.app[SESSIONS], await found(request)
    opened = sessions.find(info)
    branch = await asyncio.to_thread(lambda: next(b for b in sessions.catalog.tree(info) if b["is_current"]))
    value: dict[str, Any] = {"object": "holdfast:usage", "tokens": branch["tokens"], **await context(sessions, info)}
    seq = opened.session.window.seq if opened else None
    value["resident_tokens"] = seq.num_tokens if seq and seq.slot >= 0 else 0
    value["disk_tokens"] = max(branch["stored_at"], default=0)
    return json_response({**value, **(opened.counts if opened else {})})


async def workspaces(request: web.Request) -> web.StreamResponse:
    """The workspaces of this user; the first is the default of new sessions."""
    sessions, user = request.app[SESSIONS], request[USER]
    if user.workspaces is not None:
        return json_response({"object": "list", "data": list(map(str, user.workspaces))})
    infos = await asyncio.to_thread(sessions.app.store.all)
    known = {str(request.app[WORKSPACE]): None}
    known |= {info.workspace: None for info in infos if info.workspace and info.owner == user.session_owner}
    return json_response({"object": "list", "data": list(known)})


def routes() -> list[web.RouteDef]:
    base = "/v1/sessions"
    one = f"{base}/{{name}}"
    return [
        web.get("/v1/workspaces", workspaces),
        web.get(base, list_sessions),
        web.post(base, create_session),
        web.get(one, show_session),
        web.delete(one, delete_session),
        web.get(f"{one}/events", events),
        web.post(f"{one}/turns", begin_turn),
        web.get(f"{one}/stream", watch, allow_head=False),
        web.post(f"{one}/approvals/{{id}}", answer),
        web.post(f"{one}/cancel", cancel),
        web.post(f"{one}/fork", fork),
        web.post(f"{one}/rewind", rewind),
        web.get(f"{one}/jobs", jobs),
        web.post(f"{one}/undo", undo),
        web.post(f"{one}/redo", redo),
        web.get(f"{one}/usage", usage),
    ]
