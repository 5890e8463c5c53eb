"""Promises of forks and rewinds: a new branch is the old log up to a point, and nothing that was logged is changed."""

import copy
import random
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.memory import Database, SessionInfo, SessionLog, SessionStore, StoreError


@dataclass
class Model:
    """A branch as plain lists."""

    ids: list[int] = field(default_factory=list)
    events: list[tuple[int, int, int, str]] = field(default_factory=list)  # seq, turn, position, text
    turns: list[list] = field(default_factory=list)  # number, state, start, end

    def end_of(self, turn: int) -> "Model":
        found = copy.deepcopy(self)
        found.turns = found.turns[:turn]
        found.events = [event for event in found.events if event[1] <= turn]
        found.ids = found.ids[: found.turns[-1][3] if turn else 0]
        return found

    def cut_at(self, position: int) -> "Model":
        turn = max((t[0] for t in self.turns if t[2] < position), default=0)
        found = self.end_of(turn)
        if turn and (position < found.turns[-1][3] or found.turns[-1][1] == "open"):
            found.turns[-1][1] = "interrupted"
            found.turns[-1][3] = position
            found.events = [event for event in found.events if event[2] <= position]
            found.ids = found.ids[:position]
        return found

    @property
    def last_closed(self) -> int:
        return max((t[0] for t in self.turns if t[1] != "open"), default=0)


def grow(log: SessionLog, model: Model, rng: random.Random, leave_open: bool = False) -> None:
    def step(kind: str) -> None:
        entries = [("text", {"text": f"e{rng.random()}"}) for _ in range(rng.randrange(3))]
        ids = [rng.randrange(2**31) for _ in range(rng.choice([0, 1, 5]))] if kind != "end" else []
        if kind == "start":
            model.turns.append([len(model.turns) + 1, "open", len(model.ids), len(model.ids)])
            log.start_turn(entries, ids)
        elif kind == "append":
            log.append(entries, ids)
        else:
            model.turns[-1][1] = rng.choice(["done", "failed", "interrupted"])
            log.end_turn(model.turns[-1][1], entries)
        model.ids += ids
        model.turns[-1][3] = len(model.ids)
        for _, payload in entries:
            model.events.append((len(model.events) + 1, len(model.turns), len(model.ids), payload["text"]))

    step("append" if log.open_turn else "start")
    for _ in range(rng.randrange(4)):
        step("append")
    if not leave_open:
        step("end")


def check(store: SessionStore, session: SessionInfo, branch: int, model: Model) -> None:
    turns = store.turn_list(session, branch)
    assert [[t.number, t.state, t.start_position, t.end_position] for t in turns] == model.turns
    events = store.events(session, branch)
    assert [(e.seq, e.turn, e.position, e.payload["text"]) for e in events] == model.events
    for turn in turns:
        assert store.events(session, branch, turn.number) == [e for e in events if e.turn == turn.number]
    info = next(b for b in store.branches(session) if b.id == branch)
    assert (info.num_tokens, info.last_turn) == (len(model.ids), len(model.turns))


def check_log(log: SessionLog, model: Model, rng: random.Random) -> None:
    assert log.ids.tolist() == model.ids
    assert log.turns() == [(t[0], t[1]) for t in model.turns] and log.num_turns == len(model.turns)
    position = rng.randrange(len(model.ids) + 2)
    assert [e.seq for e in log.events(position)] == [e[0] for e in model.events if e[2] >= position]


@pytest.mark.parametrize("seed", range(8))
def test_branches_several_levels_deep_equal_plain_lists(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = SessionStore(Database(tmp_path))
    logs = {"s0": store.open(store.create("/w", "m", "s0"))}
    models = {("s0", logs["s0"].session.branch): Model()}
    for _ in range(40):
        name = rng.choice(list(logs))
        log = logs[name]
        model = models[name, log.session.branch]
        action = rng.choice(["grow", "grow", "open", "fork", "rewind", "switch", "reopen"])
        if action == "grow":
            grow(log, model, rng)
        elif action == "open":
            grow(log, model, rng, leave_open=True)
        elif action == "fork" and len(logs) < 8:
            branch = rng.choice([b for n, b in models if n == name])
            model = models[name, branch]
            turn, position = choose_point(model, rng)
            fork = store.fork(
                log.session, turn, position, f"s{len(logs)}", None if branch == log.session.branch else branch
            )
            logs[fork.name] = store.open(fork)
            models[fork.name, fork.branch] = at(model, turn, position)
        elif action == "rewind" and log.open_turn is None:
            turn, position = choose_point(model, rng)
            log.rewind(turn, position)
            models[name, log.session.branch] = at(model, turn, position)
        elif action == "switch" and log.open_turn is None:
            log.switch(rng.choice([b for n, b in models if n == name]))
        elif action == "reopen":
            log.close()
            found = store.find(name)
            assert found is not None and found.branch == log.session.branch
            logs[name] = store.open(found)
        check_log(logs[name], models[name, logs[name].session.branch], rng)
    for (name, branch), model in models.items():
        check(store, logs[name].session, branch, model)


def choose_point(model: Model, rng: random.Random) -> tuple[int | None, int | None]:
    if rng.random() < 0.2:
        return None, None
    if rng.random() < 0.5:
        return rng.randint(0, model.last_closed), None
    return None, rng.randint(0, len(model.ids))


def at(model: Model, turn: int | None, position: int | None) -> Model:
    if position is not None:
        return model.cut_at(position)
    return model.end_of(model.last_closed if turn is None else turn)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(Database(tmp_path))


def three_turns(store: SessionStore, name: str = "work") -> SessionLog:
    log = store.open(store.create("/w", "m", name))
    for turn in range(1, 4):
        log.start_turn([("user", {"text": f"ask {turn}"})], [turn] * 4)
        log.append([("text", {"text": f"answer {turn}"})], [turn * 10] * 6)
        log.end_turn("done", [("turn_done", {})])
    return log


def test_a_session_open_in_another_process_can_be_forked(store: SessionStore) -> None:
    log = three_turns(store)
    log.start_turn([("user", {"text": "ask 4"})], [4])
    fork = store.fork(log.session)
    log.append([("text", {})], [5])
    child = store.open(fork)
    assert (fork.workspace, fork.model) == ("/w", "m") and child.turns() == [(n, "done") for n in (1, 2, 3)]
    assert child.ids.tolist() == log.ids.tolist()[:30]
    assert child.start_turn([], []) == 4


def test_a_turn_cut_while_it_was_open_stays_interrupted(store: SessionStore) -> None:
    log = three_turns(store)
    log.start_turn([("user", {"text": "ask 4"})], [4])
    fork = store.fork(log.session, position=31)
    log.end_turn("done")
    assert [t.state for t in store.turn_list(fork)] == ["done", "done", "done", "interrupted"]
    assert store.turn_list(fork)[3].is_cut and not store.turn_list(fork)[2].is_cut


def test_a_fork_writes_little(store: SessionStore, tmp_path: Path) -> None:
    log = store.open(store.create("/w", "m"))
    log.start_turn([("text", {"text": "word " * 100_000})], range(100_000))
    log.end_turn("done")
    store._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    store.fork(log.session)
    assert (tmp_path / "holdfast.db-wal").stat().st_size < 64 * 1024


@pytest.mark.parametrize(
    ("turn", "position", "message"),
    [
        (4, None, "turn 4 of session work is no point to go on from: take one from 0 to 3"),
        (-1, None, "turn -1 of session work"),
        (None, 31, "session work has no token position 31: take one from 0 to 30"),
        (None, -1, "no token position -1"),
    ],
)
def test_a_point_that_does_not_exist_is_refused(
    store: SessionStore, turn: int | None, position: int | None, message: str
) -> None:
    log = three_turns(store)
    for attempt in (lambda: store.fork(log.session, turn, position), lambda: log.rewind(turn, position)):
        with pytest.raises(StoreError, match=message):
            attempt()
    assert len(store.all()) == len(store.branches(log.session)) == 1


def test_an_open_turn_has_no_end_to_fork_from(store: SessionStore) -> None:
    log = three_turns(store)
    log.start_turn([], [])
    with pytest.raises(StoreError, match=r"turn 4 .* take one from 0 to 3"):
        store.fork(log.session, turn=4)


def test_a_rewind_keeps_what_it_leaves(store: SessionStore) -> None:
    log = three_turns(store)
    first = log.session.branch
    log.rewind(turn=1)
    log.start_turn([("user", {"text": "other"})], [7])
    log.end_turn("done")
    second = log.session.branch
    assert log.turns() == [(1, "done"), (2, "done")] and log.ids.tolist() == [1] * 4 + [10] * 6 + [7]
    listed = [
        (b.id, b.parent_id, b.parent_turn, b.parent_position, b.num_turns, b.last_turn, b.num_tokens, b.is_current)
        for b in store.branches(log.session)
    ]
    assert listed == [(first, None, 0, 0, 3, 3, 30, False), (second, first, 1, 10, 1, 2, 11, True)]
    log.switch(first)
    assert log.num_turns == 3 and log.ids.tolist()[-1] == 30
    found = store.find("work")
    assert found is not None and found.branch == first
    with pytest.raises(StoreError, match=f"session work has no branch 99: take one of {first}, {second}"):
        log.switch(99)
    with pytest.raises(StoreError, match="has no branch 99"):
        store.turn_list(log.session, 99)
    with pytest.raises(StoreError, match="has no turn 4: take one from 1 to 3"):
        store.events(log.session, turn=4)


def test_a_removed_session_is_gone_and_its_fork_is_not(store: SessionStore) -> None:
    log = three_turns(store)
    fork = store.fork(log.session, turn=2)
    grandchild = store.fork(fork, position=15)
    with pytest.raises(StoreError, match="is open in another process"):
        store.remove(log.session)
    log.close()
    store.remove(log.session)
    assert store.find("work") is None
    with pytest.raises(StoreError, match="session work was removed"):
        store.open(log.session)
    child = store.open(fork)
    assert child.ids.tolist() == [1] * 4 + [10] * 6 + [2] * 4 + [20] * 6 and len(child.search("ask")) == 2
    child.close()
    store.remove(fork)
    assert store.open(grandchild).ids.tolist() == [1] * 4 + [10] * 6 + [2] * 4 + [20]
    assert three_turns(store).num_turns == 3  # the name is free again


def test_removed_sessions_stay_readable_for_a_fork_of_a_fork(store: SessionStore) -> None:
    log = three_turns(store)
    child = store.open(store.fork(log.session, turn=1))
    child.start_turn([("user", {"text": "of the fork"})], [7, 7])
    child.end_turn("done")
    grandchild = store.fork(child.session)
    for removed in (log, child):
        removed.close()
        store.remove(removed.session)
    assert store.open(grandchild).ids.tolist() == [1] * 4 + [10] * 6 + [7, 7]
    assert len(store.events(grandchild)) == 4


def test_the_last_one_leaves_no_rows(store: SessionStore) -> None:
    log = three_turns(store)
    log.rewind(turn=1)
    fork = store.fork(log.session)
    log.close()
    store.remove(log.session)
    store.remove(fork)
    for table in ("sessions", "branches", "turns", "events", "tokens", "tail_uses"):
        assert store._database.rows(f"SELECT * FROM {table}") == [], table
    assert store._database.rows("SELECT rowid FROM search WHERE search MATCH 'ask'") == []


def test_a_process_that_lost_its_lease_cannot_write(store: SessionStore, tmp_path: Path) -> None:
    log = three_turns(store)
    (tmp_path / "locks" / f"session-{log.session.id}").unlink()  # as a clean-up of old files might do
    other = SessionStore(Database(tmp_path)).open(log.session)
    other.start_turn([("user", {"text": "mine"})], [1])
    for attempt in (
        lambda: log.start_turn([], [2]),
        lambda: log.rewind(turn=1),
        lambda: log.switch(log.session.branch),
    ):
        with pytest.raises(StoreError, match="session work was opened or removed by another process"):
            attempt()
    other.append([], [3])
    assert other.ids.tolist()[-2:] == [1, 3] and log.num_turns == 3


FORKER = """
import sys
from pathlib import Path
from holdfast.memory import Database, SessionStore
store = SessionStore(Database(Path(sys.argv[1])))
for n in range(6):
    session = store.find("work")
    fork = store.fork(session)
    assert [t.state for t in store.turn_list(fork)] == ["done"] * len(store.turn_list(fork))
    assert len(store.events(session)) >= len(store.events(fork))
"""


def test_forks_and_readers_see_whole_turns_while_another_process_writes(store: SessionStore, tmp_path: Path) -> None:
    log = three_turns(store)
    forker = subprocess.Popen([sys.executable, "-c", FORKER, str(tmp_path)])
    turns = 0
    while forker.poll() is None and turns < 2000:
        log.start_turn([("user", {"text": "x"})], [1])
        log.append([("text", {"text": "y"})], [2])
        log.end_turn("done")
        turns += 1
        time.sleep(0.01)
    assert forker.wait(60) == 0 and turns > 3
    assert len(store.all()) == 7


@pytest.mark.parametrize("place", [{"turn": 0}, {"turn": 2}, {"position": 7}, {"position": 3}])
def test_a_rewind_reads_no_turn_and_gives_what_reading_would(tmp_path: Path, place: dict[str, int]) -> None:
    with closing(Database(tmp_path)) as database:
        store = SessionStore(database)
        log = store.open(store.create("/w", "m", "long"))
        for number in range(5):
            log.start_turn([("user", {"n": number})], [1, 2])
            log.append([("text", {"n": number})], [3])
            log.end_turn("done", [("turn_done", {})])
            if number == 3:
                log.rewind(turn=3)
        statements: list[str] = []
        database._connection.set_trace_callback(statements.append)
        log.rewind(**place)
        database._connection.set_trace_callback(None)
        assert not [s for s in statements if "FROM turns" in s or "FROM tokens" in s]
        seen = (log.ids.tolist(), log.turn_list(), log.events(), log.turns())
        log.close()
        again = store.open(log.session)
        assert (again.ids.tolist(), again.turn_list(), again.events(), again.turns()) == seen
        again.start_turn([("user", {})], [9])
        again.close()
        store.check(log.session)


def test_what_a_rewind_leaves_is_read_by_type_however_long_it_is(tmp_path: Path) -> None:
    steps, costs = [0], []
    with closing(Database(tmp_path)) as database:
        database._connection.execute("PRAGMA synchronous = OFF")
        store = SessionStore(database)
        for num_turns in (50, 500):
            log = store.open(store.create("/w", "m", f"of-{num_turns}"))
            for number in range(num_turns):
                calls = [("call", {"n": number})] if number in (5, 9) else []
                log.start_turn([("user", {"n": number}), *calls], [1])
                log.end_turn("done", [("text", {})])
            steps[0] = 0
            database._connection.set_progress_handler(lambda: steps.__setitem__(0, steps[0] + 1), 10)
            left = log.rewind(turn=7, types=("call", "result"))
            database._connection.set_progress_handler(None, 0)
            assert [(event.turn, event.type) for event in left] == [(10, "call")]
            costs.append(steps[0])
            log.close()
    assert costs[1] < 2 * costs[0]


def test_events_of_some_types_are_those_of_all(store: SessionStore) -> None:
    rng = random.Random(1)
    log = store.open(store.create("/w", "m", "mixed"))
    for _ in range(40):
        log.start_turn([(rng.choice("abc"), {"n": rng.random()}) for _ in range(rng.randrange(4))], [1, 2])
        log.append([(rng.choice("abc"), {"n": rng.random()}) for _ in range(rng.randrange(4))], [3])
        log.end_turn("done")
        everything, position = log.events(), rng.randrange(len(log.ids) + 1)
        for types in ("a", "bc"):
            assert log.events(0, types) == [event for event in everything if event.type in types]
            assert log.events(position, types) == [event for event in log.events(position) if event.type in types]
        if rng.random() < 0.3:
            left = log.rewind(position=position, types="b")
            assert left == [event for event in everything[len(log.events()) :] if event.type == "b"]


def test_a_damaged_event_of_a_type_that_is_asked_for_is_noticed(store: SessionStore) -> None:
    log = three_turns(store)
    with store._database.transaction() as connection:
        connection.execute("UPDATE events SET payload = '{}' WHERE seq = 1")
    with pytest.raises(StoreError, match="event 1 of its event log"):
        log.events(0, ("user",))
