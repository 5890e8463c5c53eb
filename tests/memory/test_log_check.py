"""Promises of a check of logs: it finds what reading finds, and reads what branches share once."""

import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.memory import Database, ResponseStore, SessionStore, StoredResponse, StoreError, check_records
from holdfast.memory.branches import History
from holdfast.memory.log_check import LogCheck


def answers(home: Path, num: int) -> tuple[Database, SessionStore, ResponseStore]:
    """Each goes on from the one before."""
    database = Database(home)
    database._connection.execute("PRAGMA synchronous = OFF")
    sessions = SessionStore(database)
    responses = ResponseStore(database, sessions)
    session, branch_id, ids = responses.session("ann", "m"), 0, []
    for number in range(num):
        response = StoredResponse(f"r{number}", "ann", session.id, 0, b"", 1.0, b"body")
        branch_id = responses.put(response, [*ids, number], branch_id, len(ids)).branch_id
        ids.append(number)
    return database, sessions, responses


def test_a_check_of_answers_costs_as_much_as_there_are(tmp_path: Path) -> None:
    costs, steps = [], [0]
    for num in (40, 160):
        database, sessions, responses = answers(tmp_path / str(num), num)
        with closing(database):
            steps[0] = 0
            database._connection.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 10)
            assert list(check_records(database, sessions, responses)) == []
            costs.append(steps[0])
    assert costs[1] < 6 * costs[0]  # four times the answers; 16 times the work where each reads its ancestors


def test_damage_below_an_answer_is_named_for_each_that_goes_on_from_it(tmp_path: Path) -> None:
    database, sessions, responses = answers(tmp_path, 5)
    with database.transaction() as connection:
        connection.execute("UPDATE tokens SET ids = x'00000007' WHERE start = 2")
    found = list(check_records(database, sessions, responses))
    assert len(found) == 3 and all("damaged at token 2 of its token log" in line for line in found)


@pytest.mark.parametrize("seed", range(8))
def test_a_check_finds_what_reading_finds(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with closing(Database(tmp_path)) as database:
        store = SessionStore(database)
        log = store.open(store.create("/w", "m", "work"))
        for _ in range(12):
            log.start_turn([("user", {"n": rng.random()})], [1, 2])
            log.append([("text", {"n": rng.random()})], [3] * rng.randrange(3))
            log.end_turn("done")
            if rng.random() < 0.5:
                log.rewind(position=rng.randrange(len(log.ids) + 1))
        fork = store.fork(log.session)
        ids = [row[0] for row in database.rows("SELECT id FROM branches")]
        for table in ("branches", "turns", "events", "tokens"):
            keys = [row[0] for row in database.rows(f"SELECT rowid FROM {table}")]
            database.rows("PRAGMA foreign_keys = OFF")
            with database.transaction() as connection:
                connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rng.choice(keys),))
                logs = LogCheck(database)
                for branch_id in ids:
                    found, read = _damage(logs.check, "work", branch_id), _damage(_read, database, branch_id)
                    assert found == read
                connection.execute("ROLLBACK")
                connection.execute("BEGIN")
        store.check(fork)


def _read(database: Database, branch_id: int) -> None:
    history = History(database, "work", branch_id)
    history.events(1, history.end.seq)
    history.read_ids()


def _damage(check: Callable[..., None], *arguments: object) -> str:
    try:
        check(*arguments)
    except StoreError as e:
        return str(e)
    return ""
