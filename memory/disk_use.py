"""Disk use of a set of sessions: the bytes of their state, logs, answers and file versions.

Pages and contents that these sessions share are counted once. Pages shared with other sessions are counted in
full, so that one user's quota does not depend on another's use.
"""

from collections.abc import Sequence

from holdfast.memory.db import Database
from holdfast.memory.snapshot_rows import ID_BYTES, read_by_id

OWN = "WITH own (id) AS (SELECT id FROM branches WHERE session_id IN ({marks}))"
LOGS = OWN + " SELECT TOTAL(length(ids)) FROM own JOIN tokens ON tokens.branch_id = own.id"
ANSWERS = "SELECT TOTAL(length(body)) FROM responses WHERE session_id IN ({marks})"
EVENTS = OWN + " SELECT TOTAL(length(payload)) FROM own JOIN events ON events.branch_id = own.id"
VERSIONS = OWN + (
    ", versions AS (SELECT v.* FROM own JOIN change_sets c ON c.branch_id = own.id"
    " JOIN file_versions v ON v.change_id = c.id)"
    " SELECT TOTAL(bytes) FROM file_contents"
    " WHERE id IN (SELECT old_content FROM versions UNION SELECT new_content FROM versions)"
)
USED = OWN + (
    ", used (id, last_page, first_number, head, bytes) AS (SELECT DISTINCT t.id, last_page, first_number, head, bytes"
    " FROM own JOIN tail_uses ON tail_uses.branch_id = own.id JOIN tails t ON t.id = tail_id)"
)
TAILS = USED + " SELECT TOTAL(bytes) FROM used"
HEADS = USED + " SELECT DISTINCT head FROM used WHERE length(head) > 0"
PAGES = USED.replace("WITH", "WITH RECURSIVE", 1) + (
    ", chain (id, parent, number, bytes, least) AS ("
    "SELECT p.id, p.parent, p.number, p.bytes, first_number FROM used JOIN pages p ON p.id = last_page"
    " UNION SELECT p.id, p.parent, p.number, p.bytes, c.least FROM chain c JOIN pages p ON p.id = c.parent"
    " WHERE c.number > c.least)"
    " SELECT DISTINCT id, bytes FROM chain"
)


def bytes_needed(database: Database, session_ids: Sequence[int]) -> int:
    """Bytes that these sessions need. Reads rows, not files: some milliseconds for ten thousand pages."""
    marks = ", ".join("?" * len(session_ids))

    def total(sql: str) -> int:
        return int(database.rows(sql.format(marks=marks), session_ids)[0][0])

    with database.reading():
        pages = dict(map(tuple, database.rows(PAGES.format(marks=marks), session_ids)))
        heads = [row[0] for row in database.rows(HEADS.format(marks=marks), session_ids)]
        ids = {head[at : at + ID_BYTES] for head in heads for at in range(0, len(head), ID_BYTES)}
        pages.update(map(tuple, read_by_id(database, "id, bytes", "pages", ids.difference(pages))))
        return sum(pages.values()) + sum(map(total, (TAILS, LOGS, EVENTS, ANSWERS, VERSIONS)))
