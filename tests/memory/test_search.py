"""Promises of the search: it finds what was said on this branch, by any words, and shows only what was logged."""

import random
import sys
from pathlib import Path

import pytest

from holdfast.memory import Database, SessionLog, SessionStore

TEXTS = [
    "The lighthouse keeper counts ships",
    "def read_file(path): return path.read_text()",
    "ships and more ships at the harbour",
    "nothing of note",
    'an error: "no such file" in C:\\temp\\x.py (line 3) -- see https://example.org/?a=b&c=d',
    "grüße aus Köln, 你好 世界",
]


@pytest.fixture(params=["index", "reading"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SessionStore:
    """With FTS5's index, and as where SQLite is built without it."""
    database = Database(tmp_path)
    if request.param == "reading":
        database.rows("DROP TABLE search")
    return SessionStore(database)


@pytest.fixture
def log(store: SessionStore) -> SessionLog:
    log = store.open(store.create("/w", "m", "work"))
    for number, text in enumerate(TEXTS):
        log.start_turn(
            [("user", {"text": text, "n": 1, "more": [{"deep": f"deep{number}"}, None, True]})], [number] * 10
        )
        log.end_turn("done")
    return log


def seqs(log: SessionLog, query: str, **options: int) -> list[int]:
    return [found.seq for found in log.search(query, **options)]


def test_more_and_rarer_words_come_first(log: SessionLog) -> None:
    assert seqs(log, "lighthouse ships")[0] == 1 and set(seqs(log, "lighthouse ships")) == {1, 3}
    assert seqs(log, "deep3") == [4]
    assert seqs(log, "unheard") == []
    found = log.search("LIGHTHOUSE")[0]
    assert (found.seq, found.turn, found.position, found.type) == (1, 1, 10, "user")
    assert found.snippet.startswith("The lighthouse keeper")


def test_limit_and_position_bound_what_is_found(log: SessionLog) -> None:
    assert len(log.search("ships", limit=1)) == 1 and log.search("ships", limit=0) == []
    assert seqs(log, "ships", max_position=10) == [1]
    assert seqs(log, "ships", max_position=9) == []


@pytest.mark.parametrize(
    ("query", "seq"),
    [
        ("read_file", 2),
        ('"no such file"', 5),
        ("C:\\temp\\x.py", 5),
        ("(line 3) -- see", 5),
        ("text: NEAR(lighthouse) AND NOT *", 1),
        ("Köln", 6),
        ("你好", 6),
        ("a'; DROP TABLE search; -- harbour", 3),
    ],
)
def test_special_characters_are_words_like_others(log: SessionLog, query: str, seq: int) -> None:
    assert seq in seqs(log, query)


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        '"',
        "*",
        "()",
        "\0",
        "a\0b",
        "\udce9",
        "_",
        "^",
        "AND",
        "NEAR",
        "-x",
        ":",
        "'",
        "b1",
        "x" * 100_000,
        "w " * 50_000,
    ],
)
def test_no_query_fails(log: SessionLog, query: str) -> None:
    assert set(seqs(log, query)) <= {event.seq for event in log.events()}


def test_random_queries_never_fail(log: SessionLog) -> None:
    rng = random.Random(1)
    logged = {event.seq for event in log.events()}
    for _ in range(300):
        query = "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)])) for _ in range(rng.randrange(12)))
        assert set(seqs(log, query)) <= logged


def test_a_branch_finds_its_ancestors_words_and_no_others(store: SessionStore, log: SessionLog) -> None:
    fork = store.open(store.fork(log.session, turn=2))
    fork.start_turn([("user", {"text": "submarine"})], [1])
    fork.end_turn("done")
    assert seqs(fork, "lighthouse") == [1] and seqs(fork, "harbour") == [] and seqs(fork, "submarine") == [3]
    assert seqs(log, "submarine") == []
    log.rewind(turn=0)
    assert seqs(log, "lighthouse") == []


def test_a_snippet_is_one_short_line_around_the_word(log: SessionLog) -> None:
    log.start_turn([("text", {"text": "line\n" * 500 + "needle\n" + "line\n" * 500})], [])
    snippet = log.search("needle")[0].snippet
    assert "needle" in snippet and "\n" not in snippet and len(snippet) < 300
    assert snippet.startswith("…") and snippet.endswith("…")


def test_words_that_sqlite_cannot_keep_are_searched_for_anyway(log: SessionLog) -> None:
    log.start_turn([("text", {"text": "a\0b nul", "n": sys.maxsize})], [])
    assert seqs(log, "nul") == [7]
