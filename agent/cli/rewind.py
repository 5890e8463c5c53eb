"""`holdfast sessions rewind` in the session's directory: files go where the conversation goes.

Must not know how it is shown. It is loaded by that command alone, as it loads the tools.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from holdfast.agent.config import stored_home
from holdfast.agent.session.left_behind import CALLS, changed_files
from holdfast.agent.session.places import gone, is_gone
from holdfast.agent.session.restored import Part, Restored
from holdfast.agent.session.undo import FileHistory, rewind
from holdfast.memory import SessionInfo, SessionLog, StoreError
from holdfast.tools import ToolError, Workspace


def rewound(
    session: SessionInfo, log: SessionLog, place: tuple[int | None, int | None, int | None], part: Part
) -> Restored:
    """To a turn, token or branch. What a process that was killed left in the directory is put right first. Raises
    StoreError."""
    if is_gone(session):
        if part != "conversation":
            raise StoreError(f"{gone(session)}; --conversation rewinds what was said alone")
        turn, token, branch = place
        left = log.rewind(turn, token, CALLS) if branch is None else log.switch(branch, CALLS)
        return Restored(left=tuple(changed_files(left)))
    home = stored_home()
    try:
        workspace = Workspace(Path(session.workspace), own=(home,), backups=home / "backups")
    except ToolError as e:
        raise StoreError(str(e)) from None
    with closing(workspace):
        history = FileHistory(log, workspace)
        settled, _ = history.recover()
        log.settle(settled)
        restored, left = rewind(log, history, place, part, CALLS)
    return replace(restored, left=tuple(changed_files(left))) if part == "conversation" else restored
