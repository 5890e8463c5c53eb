"""Writing the rows of a log: branches, turns, events and tokens, each with its checksum, and deleting a branch.

Owns every statement that changes these tables. All of them run in the caller's transaction. Must not know which session
is open where, nor which branches are worth keeping.
"""

import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from holdfast.memory.branch_rows import Branch, Point, TurnInfo
from holdfast.memory.row_format import row_checksum, text_of, to_blob, token_checksum
from holdfast.memory.search import index_events, unindex_events

Entry = tuple[str, Mapping[str, Any]]  # type and JSON payload of an event


def insert_branch(
    connection: sqlite3.Connection, session_id: int, parent_id: int | None, start: Point, num_turns: int = 0
) -> int:
    """Add a branch of a session that goes on from a point of the parent's log; returns its id. The caller appends its
    turns."""
    point = (start.turn, start.seq, start.position, int(start.is_cut))
    values = (session_id, parent_id, *point, start.turn + num_turns, time.time())
    cursor = connection.execute(
        "INSERT INTO branches (session_id, parent_id, parent_turn, parent_seq, parent_position, parent_cut, last_turn,"
        " created_at, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, x'')",
        values,
    )
    assert cursor.lastrowid is not None
    checksum = row_checksum("branches", cursor.lastrowid, *values)
    connection.execute("UPDATE branches SET checksum = ? WHERE id = ?", (checksum, cursor.lastrowid))
    return cursor.lastrowid


def update_last_turn(connection: sqlite3.Connection, branch: Branch, number: int) -> None:
    """Set the number of a branch's last turn."""
    *_, last_turn, _, checksum = replace(branch, last_turn=number).values()
    connection.execute("UPDATE branches SET last_turn = ?, checksum = ? WHERE id = ?", (last_turn, checksum, branch.id))


def append_rows(
    connection: sqlite3.Connection, branch_id: int, turn: TurnInfo, ids: Sequence[int], entries: Iterable[Entry] = ()
) -> TurnInfo:
    """Add tokens and events at the end of a branch, and insert or update its last turn, which they belong to.

    `turn` ends where the log ends now. Returns it as stored, with its new ends.
    """
    start, entries = turn.end_position, list(entries)
    position = start + len(ids)
    rows = [
        (branch_id, seq, turn.number, position, type_, json.dumps(payload, ensure_ascii=False))
        for seq, (type_, payload) in enumerate(entries, start=turn.end_seq + 1)
    ]
    turn = replace(turn, end_position=position, end_seq=turn.end_seq + len(rows))
    _put_turn(connection, branch_id, turn)
    if ids:
        blob = to_blob(array("i", ids))
        values = (branch_id, start, blob, token_checksum(branch_id, start, blob))
        connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", values)
    connection.executemany(
        "INSERT INTO events (branch_id, seq, turn, position, type, payload, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(*row, row_checksum("events", *row)) for row in rows],
    )
    texts = [(row[1], text_of(payload)) for row, (_, payload) in zip(rows, entries, strict=True)]
    index_events(connection, branch_id, texts)
    return turn


def delete_events(connection: sqlite3.Connection, branch_id: int, limit: int) -> int:
    """Delete the last events of a branch, up to `limit`; returns how many that were."""
    some = "SELECT id FROM events WHERE branch_id = ? ORDER BY seq DESC LIMIT ?"
    ids = [row[0] for row in connection.execute(some, (branch_id, limit))]
    unindex_events(connection, ids)
    connection.executemany("DELETE FROM events WHERE id = ?", [(id_,) for id_ in ids])
    return len(ids)


def delete_branch(connection: sqlite3.Connection, branch_id: int) -> None:
    """Delete a branch that has no events any more."""
    for table, column in (("tokens", "branch_id"), ("turns", "branch_id"), ("branches", "id")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (branch_id,))


def _put_turn(connection: sqlite3.Connection, branch_id: int, turn: TurnInfo) -> None:
    ends = (turn.start_position, turn.end_position, turn.end_seq)
    values = (branch_id, turn.number, turn.state, turn.started_at, turn.ended_at, *ends)
    connection.execute(
        "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state,"
        " ended_at = excluded.ended_at, end_position = excluded.end_position, end_seq = excluded.end_seq,"
        " checksum = excluded.checksum",
        (*values, row_checksum("turns", *values)),
    )
