"""Promises of stored answers: going on twice forks, deleting one keeps what others need, damage is noticed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.memory import Database, ResponseStore, SessionStore, StoredResponse, StoreError, owner_of


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    database = Database(tmp_path)
    return ResponseStore(database, SessionStore(database))


def put(store: ResponseStore, id: str, ids: list[int], parent: int = 0, known: int = 0) -> StoredResponse:
    session = store.session("owner", "m")
    return store.put(StoredResponse(id, "owner", session.id, 0, id.encode(), 1.0, b"body"), ids, parent, known)


def test_going_on_twice_from_an_answer_forks(store: ResponseStore) -> None:
    root = put(store, "a", [1, 2, 3])
    left = put(store, "b", [1, 2, 3, 4], root.branch_id, 3)
    right = put(store, "c", [1, 2, 3, 5, 6], root.branch_id, 3)
    assert [list(store.ids(r.branch_id)) for r in (root, left, right)] == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5, 6]]
    session = store._sessions.find("responses-owner-m")
    assert session is not None
    store._sessions.check(session)
    assert [b.num_tokens for b in store._sessions.branches(session)] == [0, 3, 4, 5]


def test_many_threads_that_need_the_session_first_get_the_same(store: ResponseStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: store.session("owner", "m").id, range(32)))
    assert len(set(found)) == 1


def test_an_answer_belongs_to_its_owner_and_is_found_by_content(store: ResponseStore) -> None:
    answer = put(store, "a", [1])
    assert store.get("a", "owner") == answer and store.get("a", "other") is None
    assert store.latest(answer.session_id, b"a") == answer and store.latest(answer.session_id, b"x") is None


def test_deleting_keeps_what_a_later_answer_needs(store: ResponseStore) -> None:
    root = put(store, "a", [1, 2])
    middle = put(store, "b", [1, 2, 3], root.branch_id, 2)
    last = put(store, "c", [1, 2, 3, 4], middle.branch_id, 3)
    with store._database.transaction() as connection:
        for tail, response in ((b"r", root), (b"m", middle), (b"l", last)):
            connection.execute("INSERT INTO tails VALUES (?, NULL, 0, x'', 1, 1, x'', 1.0, x'', 1.0)", (tail,))
            connection.execute("INSERT INTO tail_uses VALUES (?, ?)", (tail, response.branch_id))
    assert store.remove(root) == [] and store.remove(middle) == []
    assert list(store.ids(last.branch_id)) == [1, 2, 3, 4]
    assert store.remove(last) == [b"l", b"m", b"r"]
    for table in ("tail_uses", "tokens", "turns", "branches WHERE parent_id IS NOT NULL"):
        assert store._database.rows(f"SELECT * FROM {table}") == []


def test_whose_answers_a_session_holds(store: ResponseStore) -> None:
    put(store, "a", [1])
    others = [store.session(owner, "0123456789").id for owner in ("owner", "own-er", "owner-01234567", "own")]
    assert store.sessions_of("owner") == [store.session("owner", "m").id, others[0]]
    assert store.sessions_of("own-er") == others[1:2] and store.sessions_of("owner-01234567") == others[2:3]
    talk = store._sessions.create("/home/me/x", "m", "responses-owner-m2")
    assert owner_of(talk) is None and owner_of(store.session("own", "m")) == "own"
    assert store.count(store.session("owner", "m")) == 1 and store.count(talk) == 0


def test_a_body_without_log_and_content_is_no_answer(store: ResponseStore) -> None:
    session = store.session("owner", "m")
    put(store, "a", [1])
    store.put_body(StoredResponse("b", "owner", session.id, 0, b"found by", 1.0, b"body"))
    kept = StoredResponse("c", "owner", session.id, 0, b"", 1.0, b"body")
    store.put_body(kept)
    assert store.count(session) == 2 and store.get("c", "owner") == kept and store.get("c", "other") is None
    assert store.remove(kept) == [] and store.get("c", "owner") is None


def test_an_answer_whose_parent_is_gone_is_stored_whole(store: ResponseStore) -> None:
    root = put(store, "a", [1, 2])
    store.remove(root)
    orphan = put(store, "b", [1, 2, 3], root.branch_id, 2)
    assert list(store.ids(orphan.branch_id)) == [1, 2, 3]


def test_damage_is_noticed(store: ResponseStore) -> None:
    answer = put(store, "a", [1, 2])
    with store._database.transaction() as connection:
        connection.execute("UPDATE responses SET body = x'00'")
    with pytest.raises(StoreError, match="response a"):
        store.get("a", "owner")
    with store._database.transaction() as connection:
        connection.execute("UPDATE tokens SET ids = x'0000000000000000'")
    with pytest.raises(StoreError, match="damaged"):
        store.ids(answer.branch_id)


def test_answers_go_with_their_session(store: ResponseStore) -> None:
    answer = put(store, "a", [1])
    session = store._sessions.find("responses-owner-m")
    assert session is not None
    store._sessions.remove(session)
    assert store.get("a", "owner") is None
    with pytest.raises(StoreError, match="removed"):
        store.put(answer, [1], 0, 0)
