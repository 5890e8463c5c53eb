"""Which session a user means, and in which workspaces the user may work: only the user's own."""

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
    """The name of a session as its owner uses it."""
    return info.name.rpartition("/")[2]


async def find_session(sessions: SessionHub, user: User, name: str) -> SessionInfo:
    """The user's session of that name. Raises ApiError 404, also for another user's."""
    info = await asyncio.to_thread(sessions.app.store.find, full_name(user, name)) if NAME.fullmatch(name) else None
    if info is None or not info.workspace:
        raise ApiError(404, f"Session '{name[:100]}' not found.", "session_not_found", "name")
    return info


async def open_session(sessions: SessionHub, user: User, name: str) -> OpenSession:
    """As `find_session`, and open it. Raises ApiError, also if its workspace is no longer one of the user's."""
    info = await find_session(sessions, user, name)
    if not user.may_work_in(Path(info.workspace)):
        raise ApiError(403, f"{info.workspace} is none of your workspaces any more", "workspace_forbidden")
    if sessions.find(info) is None and is_gone(info):
        raise ApiError(409, gone(info), "workspace_gone")
    return await sessions.open(info)


def full_name(user: User, name: str) -> str:
    """The name of a user's session as it is stored."""
    return f"{user.session_owner}/{name}" if user.session_owner else name


def workspace_of(user: User, given: str | None, default: Path) -> Path:
    """The workspace of a new session. Raises ApiError if it does not exist or is not one of the user's."""
    if given is None:
        if user.workspaces == ():
            raise ApiError(403, "you have no workspace here: the server's users file lists them", "workspace_forbidden")
        return user.workspaces[0] if user.workspaces else default
    if len(given) > MAX_PATH_CHARS:
        raise bad(f"workspace has {len(given)} characters: no path is longer than {MAX_PATH_CHARS}", "workspace")
    forbidden = ApiError(403, f"{given[:200]} is none of your workspaces", "workspace_forbidden", "workspace")
    try:
        if not user.may_work_in(Path(os.path.realpath(given))):  # before an error tells whether it exists
            raise forbidden
        directory = workspace_directory(given)
    except (UsageError, OSError, ValueError) as e:
        raise bad(str(e), "workspace") from None
    if not user.may_work_in(directory):  # again: this path will be opened, without following links
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
    """The session for a client. Without `resume` it is new, with the given name or one made from `prompt`. With
    `resume` it is the named one or the latest of the workspace; if there is none, a new one, or ApiError if not
    `create`."""
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
