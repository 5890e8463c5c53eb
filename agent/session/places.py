"""Where sessions work: what is said when a session belongs to another directory, and when its directory is gone."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from holdfast.agent.terminal.sanitize import exact
from holdfast.memory import SessionInfo


def is_gone(session: SessionInfo) -> bool:
    """Whether the session's directory is not there any more: removed, or moved."""
    return not Path(session.workspace).is_dir()


def move_command(session: SessionInfo, workspace: Path | str) -> str:
    """What lets the session go on in another directory."""
    return f"holdfast sessions move {session.name.rpartition('/')[2]} {shlex.quote(str(workspace))}"


def gone(session: SessionInfo) -> str:
    """What to say of a session whose directory is gone."""
    where = f"session {session.name.rpartition('/')[2]} works in {exact(session.workspace)}, which is gone"
    return f"{where}: if it was moved, {move_command(session, 'DIR')} lets it go on there"


def belongs_elsewhere(session: SessionInfo, workspace: Path) -> str:
    """Why a session cannot be opened in this workspace, and the way out."""
    name, old = session.name.rpartition("/")[2], exact(session.workspace)
    if is_gone(session):
        return (
            f"session {name} belongs to {old}, which is gone: if it was moved here, {move_command(session, workspace)}"
        )
    return f"session {name} belongs to {old}: open it with --workspace {shlex.quote(session.workspace)}"


def moved_here(sessions: Iterable[SessionInfo], workspace: Path, owner: str) -> str | None:
    """A notice for a new session when one of a vanished directory looks as if it were of this directory.

    It does by its inode or its name.
    """
    try:
        inode = workspace.stat().st_ino
    except OSError:
        return None
    for session in sessions:
        if session.owner != owner or not session.workspace or session.workspace == str(workspace):
            continue
        if inode != session.inode and Path(session.workspace).name != workspace.name:
            continue
        if is_gone(session):
            return (
                f"session {session.name.rpartition('/')[2]} was in {exact(session.workspace)},"
                f" which is gone; if that is now"
                f" this directory, `{move_command(session, workspace)}` lets it go on here"
            )
    return None
