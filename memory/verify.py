"""A check of everything that the database holds beside stored state, and what of it can be put right.

Must not know of files. What was said is never put right by guessing: a damaged log or answer is named, and stays.
"""

from collections.abc import Iterator
from contextlib import suppress

from .db import Database, StoreError
from .log_check import LogCheck
from .responses import ResponseStore
from .search import rebuild_index
from .sessions import SessionStore


def check_records(database: Database, sessions: SessionStore, responses: ResponseStore) -> Iterator[str]:
    """A line for each thing that is not as it was written: sessions and their logs, answers and theirs."""
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


def check_indexes(database: Database) -> list[str]:
    """A line for each way in which the file's trees or the search index are wrong: both can be made anew from the rows."""
    found = [f"{database.path}: {row[0]}" for row in database.rows("PRAGMA integrity_check(20)") if row[0] != "ok"]
    if database.rows("SELECT 1 FROM sqlite_schema WHERE name = 'search'"):
        try:
            with database.transaction() as connection:
                connection.execute("INSERT INTO search (search) VALUES ('integrity-check')")
        except StoreError:
            found.append(f"the search index in {database.path} is damaged")
    return found


def repair_indexes(database: Database) -> None:
    """Make every index anew from its rows."""
    with (
        suppress(StoreError),
        database.transaction() as connection,
    ):  # rows that break a rule of their table stay as they are
        connection.execute("REINDEX")
    rebuild_index(database)
