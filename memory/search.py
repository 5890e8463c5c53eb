"""Full-text search over the events of a branch: by an FTS5 index if the file has one, else by reading the events.

Owns what matches and how a match is shown. Its text comes from the checked event, so a damaged index can hide or
misplace a match but never show a text that was not logged.
"""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.memory.branch_rows import EVENT_COLUMNS, LoggedEvent, checked_event
from holdfast.memory.branches import History
from holdfast.memory.db import Database
from holdfast.memory.row_format import text_of
from holdfast.memory.schema import create_search

SNIPPET_CHARS = 240
MAX_WORDS = 64  # of a query: a pasted page would take seconds


@dataclass(frozen=True)
class Found:
    """An event that matches; `snippet` is its text around the first matching word."""

    seq: int
    turn: int
    position: int
    type: str
    snippet: str


def index_events(connection: sqlite3.Connection, branch_id: int, texts: Iterable[tuple[int, str]]) -> None:
    """Add the texts of a branch's events, given as (seq, text), in the transaction that inserted the events."""
    if _has_index(connection):
        connection.executemany(
            "INSERT INTO search (rowid, text, branch) SELECT id, ?, ? FROM events WHERE branch_id = ? AND seq = ?",
            [(text, f"b{branch_id}", branch_id, seq) for seq, text in texts if text],
        )


def unindex_events(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Remove events from the index, before their rows are deleted. FTS5 needs each text as it was added: the words of a
    damaged event stay in the index, and match no row."""
    if not _has_index(connection):
        return
    for id_ in ids:
        for row in connection.execute(f"SELECT {EVENT_COLUMNS} FROM events WHERE id = ?", (id_,)).fetchall():
            event = checked_event(row)
            if event and (text := text_of(event.payload)):
                connection.execute(
                    "INSERT INTO search (search, rowid, text, branch) VALUES ('delete', ?, ?, ?)",
                    (id_, text, f"b{row[0]}"),
                )


def rebuild_index(database: Database) -> None:
    """Drop the index and build it from the sound events. Does nothing if this SQLite has no FTS5."""
    with database.transaction() as connection:
        if not _has_index(connection):
            return
        connection.execute("DROP TABLE search")
        create_search(connection)


def search_events(
    database: Database, history: History, query: str, limit: int, max_position: int | None
) -> list[Found]:
    """Events of the branch with any of the query's words, those with more and rarer words first."""
    words = [word for word in re.findall(r"\w+", query) if word.strip("_")][:MAX_WORDS]
    if not words or limit <= 0:
        return []
    with database.reading():
        if database.rows("SELECT 1 FROM sqlite_schema WHERE name = 'search'"):
            events = _by_index(database, history, words, limit, max_position)
        else:
            events = _by_reading(history, words, max_position)
    return [Found(e.seq, e.turn, e.position, e.type, _snippet(text_of(e.payload), words)) for e in events[:limit]]


def _by_index(
    database: Database, history: History, words: list[str], limit: int, max_position: int | None
) -> list[LoggedEvent]:
    last_seq = history.branches()
    any_branch = " OR ".join(f'"b{branch_id}"' for branch_id in last_seq)
    any_word = " OR ".join(f'"{word}"' for word in words)
    ranked = database.rows(
        "SELECT e.branch_id, e.seq FROM search JOIN events e ON e.id = search.rowid"
        " WHERE search MATCH ? ORDER BY bm25(search, 1.0, 0.0)",
        (f"branch : ({any_branch}) AND text : ({any_word})",),
    )
    found: list[LoggedEvent] = []
    for branch_id, seq in ranked:
        if len(found) == limit:
            break
        if isinstance(seq, int) and seq <= last_seq.get(branch_id, 0):
            events = history.events(seq, seq)
            found += [event for event in events if max_position is None or event.position <= max_position]
    return found


def _by_reading(history: History, words: list[str], max_position: int | None) -> list[LoggedEvent]:
    ranked = []
    for event in history.events(1, history.end.seq):
        text = text_of(event.payload).casefold()
        num_words = sum(word.casefold() in text for word in words)
        if num_words and (max_position is None or event.position <= max_position):
            ranked.append((-num_words, event.seq, event))
    return [event for *_, event in sorted(ranked, key=lambda entry: entry[:2])]


def _snippet(text: str, words: list[str]) -> str:
    """The text around the first of the words, on one line."""
    text = " ".join(text.split())
    match = re.search("|".join(map(re.escape, words)), text, re.IGNORECASE)
    start = max(0, (match.start() if match else 0) - SNIPPET_CHARS // 3)
    end = start + SNIPPET_CHARS
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _has_index(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'search'").fetchone() is not None
