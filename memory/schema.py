"""The tables of `holdfast.db`, as migrations: small functions with names, in order and never edited.

Owns names, types and keys of columns, and how older files are brought forward. Must not know who reads them.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.memory.row_format import TOKEN_BYTES, row_checksum, text_of

Migration = Callable[[sqlite3.Connection], None]


def _sessions(connection: sqlite3.Connection) -> None:
    """Sessions, turns, events and tokens. `position` is the length of the token log at an event."""
    connection.execute(
        "CREATE TABLE sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,"
        " workspace TEXT NOT NULL, model TEXT NOT NULL, created_at REAL NOT NULL, used_at REAL NOT NULL) STRICT"
    )
    connection.execute("CREATE INDEX sessions_by_workspace ON sessions (workspace, used_at)")
    connection.execute(
        "CREATE TABLE turns (session_id INTEGER NOT NULL REFERENCES sessions, number INTEGER NOT NULL,"
        " state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'interrupted')), started_at REAL NOT NULL,"
        " ended_at REAL, PRIMARY KEY (session_id, number)) STRICT"
    )
    connection.execute(
        "CREATE TABLE events (session_id INTEGER NOT NULL, seq INTEGER NOT NULL, turn INTEGER NOT NULL,"
        " position INTEGER NOT NULL, type TEXT NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (session_id, seq),"
        " FOREIGN KEY (session_id, turn) REFERENCES turns (session_id, number)) STRICT"
    )
    connection.execute(
        "CREATE TABLE tokens (session_id INTEGER NOT NULL REFERENCES sessions, start INTEGER NOT NULL,"
        " ids BLOB NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (session_id, start)) STRICT"
    )


def _branches(connection: sqlite3.Connection) -> None:
    """Logs belong to branches, each a tree node that goes on from a point of its parent's log; every row has a
    checksum.

    An old session gets a root branch with the session's own id, so the checksums of its tokens stay as they are.
    `parent_cut`: the parent's turn `parent_turn` ends early in the branch. A turn's `end_seq` and `end_position` grow
    with every append, and `last_turn` with every turn: so lost rows at an end are noticed. Events and tokens refer to
    no other table, so one damaged session of an old file does not keep the others from moving.
    """
    for table in ("turns", "events", "tokens"):
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute(
        "CREATE TABLE branches (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id INTEGER NOT NULL,"
        " parent_id INTEGER REFERENCES branches, parent_turn INTEGER NOT NULL, parent_seq INTEGER NOT NULL,"
        " parent_position INTEGER NOT NULL, parent_cut INTEGER NOT NULL, last_turn INTEGER NOT NULL,"
        " created_at REAL NOT NULL, checksum BLOB NOT NULL) STRICT"
    )
    connection.execute("CREATE INDEX branches_by_session ON branches (session_id)")
    connection.execute(
        "CREATE TABLE turns (branch_id INTEGER NOT NULL REFERENCES branches, number INTEGER NOT NULL,"
        " state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'interrupted')), started_at REAL NOT NULL,"
        " ended_at REAL, start_position INTEGER NOT NULL, end_position INTEGER NOT NULL, end_seq INTEGER NOT NULL,"
        " checksum BLOB NOT NULL, PRIMARY KEY (branch_id, number)) STRICT"
    )
    connection.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, branch_id INTEGER NOT NULL, seq INTEGER NOT NULL,"
        " turn INTEGER NOT NULL, position INTEGER NOT NULL, type TEXT NOT NULL, payload TEXT NOT NULL,"
        " checksum BLOB NOT NULL, UNIQUE (branch_id, seq)) STRICT"
    )
    connection.execute(
        "CREATE TABLE tokens (branch_id INTEGER NOT NULL, start INTEGER NOT NULL,"
        " ids BLOB NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (branch_id, start)) STRICT"
    )
    connection.execute("DROP INDEX sessions_by_workspace")
    for column in ("branch_id INTEGER NOT NULL DEFAULT 0", "fence INTEGER NOT NULL DEFAULT 0"):
        connection.execute(f"ALTER TABLE sessions ADD COLUMN {column}")
    connection.execute("ALTER TABLE sessions ADD COLUMN checksum BLOB NOT NULL DEFAULT x''")
    for session in connection.execute(
        "SELECT id, name, workspace, model, created_at, used_at FROM sessions"
    ).fetchall():
        _move_to_root_branch(connection, session)
    rows = connection.execute("SELECT session_id, seq, turn, position, type, payload FROM old_events ORDER BY 1, 2")
    connection.executemany(
        "INSERT INTO events (branch_id, seq, turn, position, type, payload, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((*row, row_checksum("events", *row)) for row in rows),
    )
    connection.execute("INSERT INTO tokens SELECT session_id, start, ids, checksum FROM old_tokens")
    for table in ("old_events", "old_tokens", "old_turns"):
        connection.execute(f"DROP TABLE {table}")


def _move_to_root_branch(connection: sqlite3.Connection, session: sqlite3.Row) -> None:
    session_id = session["id"]
    turns = list(_turns_with_ends(connection, session_id))
    last_turn = max((turn[1] for turn in turns), default=0)
    branch = (session_id, session_id, None, 0, 0, 0, 0, last_turn, session["created_at"])
    connection.execute(
        "INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*branch, row_checksum("branches", *branch))
    )
    connection.execute(
        "UPDATE sessions SET branch_id = ?1, checksum = ?2 WHERE id = ?1",
        (session_id, row_checksum("sessions", *session, session_id)),
    )
    connection.executemany(
        "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((*turn, row_checksum("turns", *turn)) for turn in turns),
    )


def _turns_with_ends(connection: sqlite3.Connection, session_id: int) -> Iterator[tuple[Any, ...]]:
    """Where the turns of a version 1 session begin and end. A turn's first events were appended together with the
    tokens before them, so the turn begins where that chunk of tokens does."""
    select = f"SELECT start, start + length(ids) / {TOKEN_BYTES} FROM old_tokens WHERE session_id = ? ORDER BY start"
    start_of = {end: start for start, end in connection.execute(select, (session_id,))}
    num_tokens = max(start_of, default=0)
    turns = connection.execute(
        "SELECT t.number, t.state, t.started_at, t.ended_at, MIN(e.position), MAX(e.position), MAX(e.seq)"
        " FROM old_turns t LEFT JOIN old_events e ON e.session_id = t.session_id AND e.turn = t.number"
        " WHERE t.session_id = ? GROUP BY t.number ORDER BY t.number",
        (session_id,),
    ).fetchall()
    starts, reached = [], 0  # reached: the position of the last event so far
    for *_, first, last, _ in turns:
        starts.append(reached if first is None or first == reached else max(start_of.get(first, reached), reached))
        reached = reached if last is None else last
    ends, end_seq = [*starts, max(num_tokens, reached)][1:], 0
    for (number, state, started_at, ended_at, _, _, seq), start, end in zip(turns, starts, ends, strict=True):
        end_seq = end_seq if seq is None else seq
        yield session_id, number, state, started_at, ended_at, start, end, end_seq


def create_search(connection: sqlite3.Connection) -> None:
    """A full text index over the events, where this SQLite has FTS5. It keeps words, not texts: a text is always shown
    from its checked row. `branch` holds one word for the event's branch, so that a query need not look at others."""
    try:
        connection.execute("CREATE VIRTUAL TABLE search USING fts5 (text, branch, content = '')")
    except sqlite3.OperationalError:
        return  # a search reads the events then
    rows = connection.execute("SELECT id, payload, branch_id FROM events")
    connection.executemany(
        "INSERT INTO search (rowid, text, branch) VALUES (?, ?, ?)",
        ((id_, _searchable(payload), f"b{branch_id}") for id_, payload, branch_id in rows),
    )


def _searchable(payload: str) -> str:
    try:
        return text_of(json.loads(payload))
    except ValueError:  # damaged before rows had checksums: reading the event raises
        return ""


def create_snapshot_tables(connection: sqlite3.Connection) -> None:
    """What the files of blobs/ are: pages in chains, and tails that each go on at the end of one. `number` is a page's
    place in its chain. Rows without a rowid: a damaged index cannot lead from one id to the row of another."""
    connection.execute(
        "CREATE TABLE pages (id BLOB PRIMARY KEY NOT NULL, parent BLOB, number INTEGER NOT NULL,"
        " bytes INTEGER NOT NULL, checksum BLOB NOT NULL, row_checksum BLOB NOT NULL) STRICT, WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX pages_by_parent ON pages (parent)")
    connection.execute("CREATE INDEX pages_by_bytes ON pages (bytes)")  # for their sum without reading the rows
    connection.execute(
        "CREATE TABLE tails (id BLOB PRIMARY KEY NOT NULL, last_page BLOB, first_number INTEGER NOT NULL,"
        " head BLOB NOT NULL, position INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum BLOB NOT NULL,"
        " created_at REAL NOT NULL, row_checksum BLOB NOT NULL, used_at REAL NOT NULL) STRICT, WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX tails_by_last_page ON tails (last_page)")
    connection.execute("CREATE INDEX tails_by_bytes ON tails (bytes)")
    connection.execute(
        "CREATE TABLE tail_uses (tail_id BLOB NOT NULL REFERENCES tails ON DELETE CASCADE, branch_id INTEGER NOT NULL,"
        " PRIMARY KEY (tail_id, branch_id)) STRICT, WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX tail_uses_by_branch ON tail_uses (branch_id)")


def _responses(connection: sqlite3.Connection) -> None:
    """Answers by id, each the end of a branch. They are deleted with their session."""
    connection.execute(
        "CREATE TABLE responses (id TEXT PRIMARY KEY NOT NULL, owner TEXT NOT NULL,"
        " session_id INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE, branch_id INTEGER NOT NULL,"
        " fingerprint BLOB NOT NULL, created_at REAL NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL) STRICT"
    )
    connection.execute("CREATE INDEX responses_by_fingerprint ON responses (session_id, fingerprint)")
    connection.execute("CREATE INDEX responses_by_branch ON responses (branch_id)")
    connection.execute("CREATE INDEX branches_by_parent ON branches (parent_id)")


def _identity(connection: sqlite3.Connection) -> None:
    """The id of this database, which lock files name too. A restored copy gets another id, so that the lock files of
    the database before do not count for it."""
    connection.execute("CREATE TABLE identity (id TEXT NOT NULL) STRICT")
    connection.execute("INSERT INTO identity VALUES (lower(hex(randomblob(8))))")


def _uses(connection: sqlite3.Connection) -> None:
    """Sessions in the order of their use: `use_number` counts uses, independent of the clock. `inode` is that of the
    workspace's directory, to find it after a move; 0 if it is not known.

    A damaged row keeps its checksum, which is then wrong as before.
    """
    for column in ("use_number", "inode"):
        connection.execute(f"ALTER TABLE sessions ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    rows = connection.execute(
        "SELECT id, name, workspace, model, created_at, used_at, branch_id, checksum FROM sessions ORDER BY used_at, id"
    ).fetchall()
    for number, (*values, checksum) in enumerate(rows, start=1):
        is_sound = checksum == row_checksum("sessions", *values)
        connection.execute(
            "UPDATE sessions SET use_number = ?, checksum = ? WHERE id = ?",
            (number, row_checksum("sessions", *values, number, 0) if is_sound else checksum, values[0]),
        )


def _types(connection: sqlite3.Connection) -> None:
    """Events of a type without reading the others: a rewind of a long session needs a few of very many."""
    connection.execute("CREATE INDEX events_by_type ON events (branch_id, type, seq)")


def _file_versions(connection: sqlite3.Connection) -> None:
    """What tools changed on disk: change sets, versions of files before and after each, contents by digest.

    A set is `begun` before its first write and `done` with what the log says of it. `data` is compressed; NULL where
    the contents were given up for room.
    """
    connection.execute(
        "CREATE TABLE change_sets (id INTEGER PRIMARY KEY AUTOINCREMENT, branch_id INTEGER NOT NULL,"
        " turn INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL,"
        " state TEXT NOT NULL CHECK (state IN ('begun', 'done')), undone TEXT NOT NULL, redone TEXT NOT NULL,"
        " num_files INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT"
    )
    connection.execute("CREATE INDEX change_sets_by_branch ON change_sets (branch_id)")
    connection.execute(
        "CREATE TABLE file_versions (change_id INTEGER NOT NULL, number INTEGER NOT NULL, path TEXT NOT NULL,"
        " old_kind TEXT NOT NULL, old_mode INTEGER NOT NULL, old_content BLOB NOT NULL,"
        " new_kind TEXT NOT NULL, new_mode INTEGER NOT NULL, new_content BLOB NOT NULL, checksum BLOB NOT NULL,"
        " PRIMARY KEY (change_id, number)) STRICT, WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX file_versions_by_old ON file_versions (old_content)")
    connection.execute("CREATE INDEX file_versions_by_new ON file_versions (new_content)")
    connection.execute(
        "CREATE TABLE file_contents (id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, bytes INTEGER NOT NULL,"
        " data BLOB) STRICT"
    )
    connection.execute("CREATE INDEX file_contents_by_bytes ON file_contents (bytes)")


# The names are recorded in the file: a migration that gets another name is applied again.
MIGRATIONS: tuple[tuple[str, Migration], ...] = (
    ("sessions", _sessions),
    ("branches", _branches),
    ("search", create_search),
    ("snapshots", create_snapshot_tables),
    ("responses", _responses),
    ("identity", _identity),
    ("uses", _uses),
    ("types", _types),
    ("file_versions", _file_versions),
)
