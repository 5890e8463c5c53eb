"""Promises of calls that come in pieces: each form that endpoints send gives the calls that were meant."""

import json
from typing import Any

import pytest

from holdfast.agent.models.remote.calls import StreamedCalls

A, B = {"path": "a.py"}, {"path": "b.py"}


def piece(id_: Any = None, index: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {key: value for key, value in (("id", id_), ("index", index)) if value is not None} | {"function": function}


def halves(value: dict[str, str]) -> tuple[str, str]:
    text = json.dumps(value)
    return text[:5], text[5:]


A1, A2 = halves(A)
B1, B2 = halves(B)
TWO = [("read", A), ("read", B)]
FORMS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, dict[str, str]]]]] = {
    "as documented": (
        [piece("a", 0, "read", A1), piece(None, 0, None, A2), piece("b", 1, "read", B1), piece(None, 1, None, B2)],
        TWO,
    ),
    "in turns": (
        [piece("a", 0, "read", A1), piece("b", 1, "read", B1), piece(None, 0, None, A2), piece(None, 1, None, B2)],
        TWO,
    ),
    "index 0 for all": (
        [piece("a", 0, "read", A1), piece(None, 0, None, A2), piece("b", 0, "read", B1), piece(None, 0, None, B2)],
        TWO,
    ),
    "no index": (
        [piece("a", None, "read", A1), piece(None, None, None, A2), piece("b", None, "read", B1 + B2)],
        TWO,
    ),
    "id in every piece": (
        [piece("a", 0, "read", A1), piece("a", 0, "read", A2), piece("b", 0, "", B1), piece("b", 0, "read", B2)],
        TWO,
    ),
    "no ids, whole calls": ([piece(None, 0, "read", A1 + A2), piece(None, 0, "read", B1 + B2)], TWO),
    "arguments as an object": ([piece("a", 0, "read", A)], TWO[:1]),
    "empty id": ([piece("a", 0, "read", ""), piece("", 0, "", A1), piece("", 0, "", A2)], TWO[:1]),
    "name in the second piece": ([piece("a", 0, None, None), piece(None, 0, "read", A1 + A2)], TWO[:1]),
    "no arguments": ([piece("a", 0, "list", "")], [("list", {})]),
    "null everywhere": ([{"id": "a", "index": 0, "function": {"name": "read", "arguments": None}},
                         {"id": None, "index": 0, "function": {"name": None, "arguments": A1 + A2}}], TWO[:1]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_calls_that_were_meant(form: str) -> None:
    pieces, meant = FORMS[form]
    streamed = StreamedCalls()
    for one in pieces:
        streamed.add([one])
    functions = [call.as_message()["function"] for call in streamed.calls]
    assert [(function["name"], json.loads(function["arguments"])) for function in functions] == meant


def test_what_is_no_piece_is_left_out() -> None:
    streamed = StreamedCalls()
    for odd in (None, "x", [None, 3, {"function": "x"}], {"a": 1}):
        streamed.add(odd)
    assert [call for call in streamed.calls if call.name] == []
