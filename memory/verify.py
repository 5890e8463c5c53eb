"""Checking sessions, answers, their logs, file versions and the indexes of the database, and rebuilding the indexes.

Must not know of files. A damaged log or answer is reported and never changed.
"""

from collections.abc import Iterator
from contextlib import suppress

from holdfast.memory.db import Database, StoreError
from holdfast.memory.file_versions import forget_damaged, problems
from holdfast.memory.log_check import LogCheck
from holdfast.memory.responses import ResponseStore
from holdfast.memory.search import rebuild_index
from holdfast.memory.sessions import SessionStore


def check_records(database: Database, sessions: SessionStore, responses: ResponseStore) -> Iterator[str]:
    """A line for each damaged session, answer and file version, their logs included."""
    yield from sessions.problems()
    logs = LogCheck(database)
    for session in sessions.all():
        if not session.workspace:
            continue  # its branches are those of answers
        try:
            sessions.check(session, logs)
            sessions.check_end(session)
        except StoreError as e:
            yield str(e)
    for id_ in responses.all_ids():
        try:
            responses.check(id_, logs)
        except StoreError as e:
            yield str(e)
    yield from problems(database)


def check_indexes(database: Database) -> list[str]:
    """A line for each fault of the file's b-trees and of the search index, which can be rebuilt from the rows."""
    found = [f"{database.path}: {row[0]}" for row in database.rows("PRAGMA integrity_check(20)") if row[0] != "ok"]
    if database.rows("SELECT 1 FROM sqlite_schema WHERE name = 'search'"):
        try:
            with database.transaction() as connection:
                connection.execute("INSERT INTO search (search) VALUES ('integrity-check')")
        except StoreError:
            found.append(f"the search index in {database.path} is damaged")
    return found


def repair_indexes(database: Database) -> None:
    """Rebuild every index from its rows, and forget file versions that are damaged."""
    with (
        suppress(StoreError),
        database.transaction() as connection,
    ):  # rows that break a rule of their table stay as they are
        connection.execute("REINDEX")
    rebuild_index(database)
    forget_damaged(database)
