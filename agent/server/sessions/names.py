"""Which session a user means, and where they may work: their own sessions and workspaces, and nobody else's."""

import asyncio
import os
import re
from pathlib import Path

from holdfast.agent.config import UsageError, workspace_directory
from holdfast.agent.server.access import User
from holdfast.agent.server.json import ApiError, bad
from holdfast.agent.server.sessions.hub import OpenSession, SessionHub
from holdfast.agent.session.places import belongs_elsewhere, gone, is_gone, moved_here
from holdfast.memory import NAME_PATTERN, NAME_RULE, SessionInfo

MAX_PATH_CHARS = 4096
NAME = re.compile(NAME_PATTERN)


def shown_name(info: SessionInfo) -> str:
    """As its owner calls it."""
    return info.name.rpartition("/")[2]


async def find_session(sessions: SessionHub, user: User, name: str) -> SessionInfo:
    """The user's session of that name. Raises ApiError 404, also for one of another user."""
    info = await asyncio.to_thread(sessions.app.store.find, full_name(user, name)) if NAME.fullmatch(name) else None
    if info is None or not info.workspace:
        raise ApiError(404, f"Session '{name[:100]}' not found.", "session_not_found", "name")
    return info


async def open_session(sessions: SessionHub, user: User, name: str) -> OpenSession:
    """As `find_session`, and opened. Raises ApiError, also where the user may not work any more."""
    info = await find_session(sessions, user, name)
    if not user.may_work_in(Path(info.workspace)):
        raise ApiError(403, f"{info.workspace} is none of your workspaces any more", "workspace_forbidden")
    if sessions.find(info) is None and is_gone(info):
        raise ApiError(409, gone(info), "workspace_gone")
    return await sessions.open(info)


def full_name(user: User, name: str) -> str:
    """As it is stored."""
    return f"{user.session_owner}/{name}" if user.session_owner else name


def workspace_of(user: User, given: str | None, default: Path) -> Path:
    """Where a new session works. Raises ApiError for a directory that is not there or not the user's."""
    if given is None:
        if user.workspaces == ():
            raise ApiError(403, "you have no workspace here: the server's users file lists them", "workspace_forbidden")
        return user.workspaces[0] if user.workspaces else default
    if len(given) > MAX_PATH_CHARS:
        raise bad(f"workspace has {len(given)} characters: no path is longer than {MAX_PATH_CHARS}", "workspace")
    forbidden = ApiError(403, f"{given[:200]} is none of your workspaces", "workspace_forbidden", "workspace")
    try:
        if not user.may_work_in(Path(os.path.realpath(given))):  # before a word on whether it is there
            raise forbidden
        directory = workspace_directory(given)
    except (UsageError, OSError, ValueError) as e:
        raise bad(str(e), "workspace") from None
    if not user.may_work_in(directory):  # again: this is the path that will be opened, and opening follows no link
        raise forbidden
    return directory


async def start_session(
    sessions: SessionHub,
    user: User,
    default: Path,
    *,
    workspace: str | None,
    name: str | None,
    resume: bool,
    create: bool = True,
    prompt: str = "",
) -> OpenSession:
    """The session that a client wants to work in: a fresh one, named or named after its first prompt, or with `resume` the
    named one or the workspace's latest, if there is one. Raises ApiError, also when there is none and `create` is false."""
    if name is not None and not NAME.fullmatch(name):
        raise bad(f"name must be {NAME_RULE}", "name")
    store, owner, identity = sessions.app.store, user.session_owner, sessions.app.engine.identity
    info = await asyncio.to_thread(store.find, full_name(user, name)) if name else None
    wanted = workspace or (info.workspace if info and resume else None)
    directory = await asyncio.to_thread(workspace_of, user, wanted, default)
    if resume and name is None:
        info = await asyncio.to_thread(store.latest, str(directory), identity, owner)
    if info is None:
        if not create:
            moved = moved_here(await asyncio.to_thread(store.all), directory, owner)
            message = moved or f"there is no session of {directory} yet"
            raise ApiError(404, message, "session_moved" if moved else "no_session", "workspace")
        return await sessions.create(directory, owner, name, prompt)
    if not resume or not info.workspace:
        raise ApiError(409, f"a session {name} exists already: resume it, or choose another name", "session_exists")
    if info.workspace != str(directory):
        raise ApiError(409, belongs_elsewhere(info, directory), "session_of_other_workspace", "workspace")
    if info.model != identity:
        raise ApiError(409, f"session {name} was written by another model", "session_of_other_model", "name")
    return await sessions.open(info)
