"""Constrained sampling with pocket: the text is what the constraint allows."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from holdfast.engine import Constraint, SamplingParams
from tests.engine.constrained import NAME, SMALL, Bench, closed, prompt


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def undrafted() -> Iterator[Bench]:
    bench = Bench(num_drafts=0)
    yield bench
    bench.close()


SCHEMAS = {
    "flat": closed(path=NAME, line=SMALL, is_new={"type": "boolean"}, nothing={"type": "null"}),
    "enum": {"enum": ["read", "réad", "日本語 🙂", 'quo"te\\n', 17, None, [1, "a"]]},
    "nested": closed(
        rows={
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {"type": "array", "maxItems": 3, "items": {"anyOf": [SMALL, closed(deep=NAME)]}},
        },
        kind={"const": {"ü": ["\u2028", 1.5]}},
    ),
    "unicode": {"type": "string", "minLength": 4, "maxLength": 6, "pattern": "^[äöü日本🙂]+$"},
    "optional": {"type": "object", "properties": {"a": NAME, "b": SMALL}, "additionalProperties": False},
    "reference": {
        "$defs": {"pair": closed(x=SMALL, y=SMALL)},
        **closed(a={"$ref": "#/$defs/pair"}, b={"$ref": "#/$defs/pair"}),
    },
}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that SCHEMAS use."""
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        return any(is_valid(value, part, root) for part in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    if type(value) is not TYPES[schema["type"]]:
        return False
    if isinstance(value, dict):
        properties = schema["properties"]
        has_all = value.keys() >= set(schema.get("required", ())) and value.keys() <= properties.keys()
        return has_all and all(is_valid(part, properties[name], root) for name, part in value.items())
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        return fits and all(is_valid(part, schema["items"], root) for part in value)
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
        return fits and bool(re.search(schema.get("pattern", ""), value))
    return type(value) is not int or schema["minimum"] <= value <= schema["maximum"]


DRAWS = [{}, *({"temperature": t, "seed": seed} for seed, t in enumerate((0.7, 1.0, 1.5, 4.0)))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_sampled_json_is_what_the_schema_allows(bench: Bench, name: str) -> None:
    schema = SCHEMAS[name]
    for params in DRAWS:
        text = bench.sampled(Constraint.json_schema(schema), **params)
        assert is_valid(json.loads(text), schema, schema), text


@pytest.mark.parametrize("params", DRAWS, ids=str)
def test_any_json_object_is_an_object(bench: Bench, params: dict[str, Any]) -> None:
    async def run() -> None:
        seq = await bench.engine.start()
        text = bench.text(await bench.take(seq, prompt(bench), Constraint.json_object(), **params, max_tokens=120))
        assert text.startswith("{")
        if seq.is_complete:
            assert isinstance(json.loads(text), dict)
        await bench.engine.release(seq)

    bench.run(run())


def test_json_has_the_style_of_json_dumps(bench: Bench) -> None:
    constraint = Constraint.json_schema(
        closed(a=SMALL, b={"type": "array", "items": SMALL, "minItems": 2, "maxItems": 2})
    )
    text = bench.sampled(constraint)
    assert text == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    "pattern", ["[a-f]{3}-[0-9]{2,4}x", "(ja|nein|vielleicht)!", "^ä{2}🙂?.$", r"\d\d:\d\d(:\d\d)?z"]
)
def test_sampled_text_matches_the_pattern_as_a_whole(bench: Bench, pattern: str) -> None:
    for params in DRAWS:
        text = bench.sampled(Constraint.regex(pattern), **params)
        assert re.fullmatch(pattern, text), text


def test_a_grammar_counts_brackets(bench: Bench) -> None:
    constraint = Constraint.grammar('start: "(" inner ")"\ninner: "[" inner "]" | WORD\nWORD: /[a-z]{1,4}/')
    for params in DRAWS:
        text = bench.sampled(constraint, **params, max_tokens=60)
        depth = text.count("[")
        if text.endswith(")"):
            assert re.fullmatch(rf"\(\[{{{depth}}}[a-z]{{1,4}}\]{{{depth}}}\)", text), text


def test_greedy_takes_the_highest_allowed_logit(bench: Bench) -> None:
    constraint, ids = Constraint.json_schema(SCHEMAS["flat"]), prompt(bench)
    tokens = bench.run(bench.fresh(ids, constraint))
    scores = bench.run(bench.engine.score(ids + tokens))
    matcher = bench.engine._compiler.submit(constraint, frozenset()).result()
    for at, token in enumerate(tokens):
        allowed = matcher.allowed()
        row = scores[len(ids) - 1 + at]
        assert token == int(allowed[row[allowed].argmax()])
        matcher.accept(token)
    assert matcher.is_over


def test_a_constraint_that_allows_all_text_changes_nothing(bench: Bench) -> None:
    ids = prompt(bench, "for a in b:\n    print(a)\n" * 4)
    free = bench.run(bench.fresh(ids, None, max_tokens=40))
    held = bench.run(bench.fresh(ids, Constraint.regex("(?s:.)*"), max_tokens=40))
    special = bench.engine.tokenizer.special_ids
    same = next((at for at, token in enumerate(free) if token in special), len(free))
    assert same > 3 and held[:same] == free[:same]


# Where the text ends.


def test_a_stop_id_is_sampled_only_where_the_text_is_complete(bench: Bench) -> None:
    eos = bench.engine.tokenizer.eos_id
    pattern = "([a-c][0-9]{3})*"
    for seed in range(8):
        params = {"temperature": 50.0, "seed": seed, "stop_ids": frozenset({eos, 10**6}), "max_tokens": 400}
        tokens = bench.run(bench.fresh(prompt(bench), Constraint.regex(pattern), **params))
        assert tokens[-1] == eos and eos not in tokens[:-1]
        assert re.fullmatch(pattern, bench.text(tokens[:-1]))


def test_a_stop_id_that_is_text_ends_complete_text_alone(bench: Bench) -> None:
    [comma] = bench.engine.tokenizer.encode(",")
    params = {"temperature": 50.0, "seed": 1, "stop_ids": frozenset({comma})}
    tokens = bench.run(bench.fresh(prompt(bench), Constraint.regex("(a,?b)+"), **params))
    assert tokens[-1] == comma and re.fullmatch("(ab)+", bench.text(tokens[:-1]))


def test_text_that_may_end_but_need_not_goes_on_without_a_stop_id(bench: Bench) -> None:
    tokens = bench.run(bench.fresh(prompt(bench), Constraint.regex("[a-z]+"), max_tokens=50))
    assert len(tokens) == 50


def test_text_cut_at_max_tokens_is_not_complete(bench: Bench) -> None:
    async def run() -> None:
        constraint, ids = Constraint.json_schema(SCHEMAS["nested"]), prompt(bench)
        whole = await bench.fresh(ids, constraint)
        for most in (0, 1, 7, len(whole) - 1, len(whole)):
            seq = await bench.engine.start()
            assert await bench.take(seq, ids, constraint, max_tokens=most) == whole[:most]
            assert seq.is_complete == (most == len(whole))
            await bench.engine.release(seq)

    bench.run(run())


def test_a_sequence_goes_on_after_its_constrained_text(bench: Bench) -> None:
    async def run() -> None:
        flat, code, more = (
            Constraint.json_schema(SCHEMAS["flat"]),
            Constraint.regex("[0-9]{4}"),
            bench.engine.tokenizer.encode("\nid: "),
        )
        seq, ids = await bench.engine.start(), prompt(bench)
        first = await bench.take(seq, ids, flat)
        second = await bench.take(seq, more, code)
        third = await bench.take(seq, [], None, max_tokens=9)
        assert not seq.is_complete
        assert second == await bench.fresh(ids + first + more, code)
        assert third == await bench.fresh(ids + first + more + second, None, max_tokens=9)

    bench.run(run())


@pytest.mark.parametrize("taken", [1, 2, 6, 11, -2])
def test_a_cancelled_request_leaves_nothing_of_its_constraint(bench: Bench, taken: int) -> None:
    async def run() -> None:
        constraint, ids = Constraint.json_schema(SCHEMAS["nested"]), prompt(bench)
        seq, whole = await bench.engine.start(), await bench.fresh(ids, constraint)
        most, tokens = taken % len(whole), []
        async with aclosing(bench.engine.extend(seq, ids, SamplingParams(constraint=constraint))) as stream:
            async for token in stream:
                tokens.append(token)
                if len(tokens) == most:
                    await asyncio.sleep(0.02)  # it samples ahead meanwhile
                    break
        assert tokens == whole[:most] and seq.token_ids == ids + tokens and not seq.is_complete
        again = await bench.take(seq, [], constraint)
        assert again == await bench.fresh(ids + tokens, constraint)
        json.loads(bench.text(again))

    bench.run(run())


# Drafts, and other requests.


def test_text_is_free_until_a_token_with_which_the_constrained_text_begins(bench: Bench) -> None:
    free = bench.run(bench.fresh(prompt(bench), None, max_tokens=12))
    at = next(n for n, token in enumerate(free) if n > 2 and token not in free[:n])
    begin = bench.text([free[at]])
    constraint = Constraint.grammar(f"start: {json.dumps(begin)} /[0-9]{{4}}/")
    tokens = bench.run(bench.fresh(prompt(bench), constraint, begins=frozenset({free[at]}), max_tokens=40))
    assert tokens[: at + 1] == free[: at + 1] and re.fullmatch("[0-9]{4}", bench.text(tokens[at + 1 :]))


def test_text_that_is_free_to_its_end_is_as_without_a_constraint(bench: Bench) -> None:
    async def run(**params: Any) -> tuple[list[int], bool]:
        seq = await bench.engine.start()
        tokens = await bench.take(seq, prompt(bench), max_tokens=12, **params)
        complete = seq.is_complete
        await bench.engine.release(seq)
        return tokens, complete

    begins = frozenset({bench.engine.tokenizer.eos_id - 1})
    held = bench.run(run(constraint=Constraint.regex("[0-9]{400}"), begins=begins))
    assert held == bench.run(run(constraint=None)) and held[1] is False


def test_control_tokens_that_a_constraint_names_spell_its_text(bench: Bench) -> None:
    tokenizer = bench.engine.tokenizer
    tag = "<｜DSML｜tool_calls>"
    [token] = tokenizer.encode_protocol(tag)
    start = f"start: {json.dumps(tag)} /[0-9]{{2}}/"
    for control, is_one in ((frozenset({token}), True), (frozenset(), False)):
        tokens = bench.run(bench.fresh(prompt(bench), Constraint.grammar(start, control)))
        assert re.fullmatch(f"{tag}[0-9]{{2}}", bench.text(tokens)) and (tokens[0] == token) == is_one


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "seed": 1}, {"temperature": 1.0, "seed": 2}], ids=str)
def test_drafts_change_no_token(bench: Bench, undrafted: Bench, params: dict[str, Any]) -> None:
    row = closed(path={"enum": ["engine/runner.py", "engine/state/cache.py"]}, line=SMALL)
    constraint = Constraint.json_schema({"type": "array", "items": row, "minItems": 6, "maxItems": 8})
    ids = prompt(bench, json.dumps([{"path": "engine/runner.py", "line": 10 * n} for n in range(3)]) + "\n")
    drafted: list[int] = []
    run = bench.engine._worker.runner.run

    def watched(plan: Any) -> list[list[int]]:
        sampled = run(plan)
        drafted.extend(len(tokens) - 1 for tokens in sampled if len(tokens) > 1)
        return sampled

    bench.engine._worker.runner.run = watched  # type: ignore[method-assign]
    try:
        tokens = bench.run(bench.fresh(ids, constraint, **params))
    finally:
        bench.engine._worker.runner.run = run  # type: ignore[method-assign]
    assert sum(drafted) > len(tokens) / 8
    assert tokens == undrafted.run(undrafted.fresh(ids, constraint, **params))
    assert len(json.loads(bench.text(tokens))) >= 6


def test_requests_side_by_side_have_the_tokens_they_have_alone(bench: Bench) -> None:
    requests: list[tuple[Constraint | None, dict[str, Any]]] = [
        *((Constraint.json_schema(schema), params) for schema in SCHEMAS.values() for params in DRAWS[:2]),
        (Constraint.regex("[a-z]{4,8} [0-9]+!"), {"temperature": 2.0, "seed": 3, "max_tokens": 30}),
        *((None, {"temperature": t, "seed": 9, "max_tokens": 40}) for t in (0.0, 1.0)),
    ]

    async def run() -> None:
        alone = [await bench.fresh(prompt(bench), constraint, **params) for constraint, params in requests]
        together = await asyncio.gather(*(bench.fresh(prompt(bench), c, **params) for c, params in requests))
        assert together == alone

    bench.run(run())
