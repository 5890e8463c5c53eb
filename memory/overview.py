"""A session in a few numbers, read from a few rows, for lists of thousands of sessions.

Must not read logs: the cost of a list must not depend on how long its sessions are.
"""

from dataclasses import dataclass

from holdfast.memory.branch_rows import BRANCH_COLUMNS, TURN_COLUMNS, DamagedLog, checked_branch
from holdfast.memory.db import Database
from holdfast.memory.row_format import row_checksum
from holdfast.memory.session_log import SessionInfo

USED = "SELECT tail_id FROM branches JOIN tail_uses ON branch_id = branches.id WHERE session_id = ?"


@dataclass(frozen=True)
class Overview:
    """Turns and tokens of a session's current branch, its number of branches, and the bytes of the tails they use."""

    num_turns: int
    num_tokens: int
    num_branches: int
    tail_bytes: int


def overview(database: Database, session: SessionInfo) -> Overview:
    """Raises StoreError if one of the rows is damaged."""
    with database.reading():
        rows = database.rows(f"SELECT {BRANCH_COLUMNS} FROM branches WHERE id = ?", (session.branch,))
        branch = checked_branch(rows[0]) if rows else None
        if branch is None or (branch.id, branch.session_id) != (session.branch, session.id):
            raise DamagedLog(database, session.name, f"branch {session.branch}")
        num_tokens = branch.start.position
        if branch.last_turn > branch.start.turn:
            where = (branch.id, branch.last_turn)
            last = database.rows(f"SELECT {TURN_COLUMNS} FROM turns WHERE branch_id = ? AND number = ?", where)
            *values, checksum = last[0] if last else (*where, None)
            if checksum != row_checksum("turns", *values) or tuple(values[:2]) != where:
                raise DamagedLog(database, session.name, f"turn {branch.last_turn}")
            num_tokens = values[6]
        num_branches = database.rows("SELECT COUNT(*) FROM branches WHERE session_id = ?", (session.id,))[0][0]
        tail_bytes = database.rows(f"SELECT TOTAL(bytes) FROM tails WHERE id IN ({USED})", (session.id,))[0][0]
    return Overview(branch.last_turn, num_tokens, num_branches, int(tail_bytes))
