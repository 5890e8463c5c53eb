"""Which branches nothing needs any more once a session or an answer is gone, and removing them.

A branch is needed by the session that it belongs to, by an answer that ends it, and by every younger branch that goes
on from it. Must not know why the session or the answer was removed.
"""

from collections.abc import Collection

from holdfast.memory.branch_rows import BRANCH_COLUMNS, checked_branch
from holdfast.memory.db import Database
from holdfast.memory.file_versions import delete_one_of
from holdfast.memory.log_rows import delete_branch, delete_events

EVENTS_AT_ONCE = 16  # deleted in one transaction


def without_session(database: Database, session_ids: Collection[int]) -> list[int]:
    """Branches that neither belong to one of these sessions, which are all, nor are an ancestor of one that does;
    youngest first. None while a branch is damaged: it may be needed after all."""
    branch_ids: list[int] = []
    needed: set[int | None] = set()
    for row in database.rows(f"SELECT {BRANCH_COLUMNS} FROM branches ORDER BY id DESC"):
        branch = checked_branch(row)
        if branch is None:
            return []
        branch_ids.append(branch.id)
        if branch.session_id in session_ids or branch.id in needed:  # a parent is older than its children
            needed |= {branch.id, branch.parent_id}
    return [branch_id for branch_id in branch_ids if branch_id not in needed]


def without_answer(database: Database, branch_id: int) -> list[int]:
    """The branch of an answer that is gone and those before it, up to the first that another answer, a session's row or
    another branch needs; youngest first. Reads these branches alone, however many others there are."""
    gone: list[int] = []
    while branch_id:
        rows = database.rows("SELECT parent_id FROM branches WHERE id = ?", (branch_id,))
        needed = "SELECT (SELECT COUNT(*) FROM branches WHERE parent_id = ?1)" + "".join(
            f" + (SELECT COUNT(*) FROM {table} WHERE branch_id = ?1)" for table in ("responses", "sessions")
        )
        num_needing = database.rows(needed, (branch_id,))[0][0] - bool(gone)  # the child that goes now
        if not rows or num_needing:
            break
        gone.append(branch_id)
        branch_id = rows[0][0] or 0
    return gone


def remove_branch(database: Database, branch_id: int) -> None:
    """Delete a branch a few events, or one change set, at a time: a full disk has no room for a long log."""
    num_deleted = EVENTS_AT_ONCE
    while num_deleted == EVENTS_AT_ONCE:
        with database.transaction() as connection:
            num_deleted = delete_events(connection, branch_id, EVENTS_AT_ONCE)
    has_more = True
    while has_more:
        with database.transaction() as connection:
            has_more = delete_one_of(connection, branch_id)
    with database.transaction() as connection:
        delete_branch(connection, branch_id)
