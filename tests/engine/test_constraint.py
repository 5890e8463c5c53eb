"""Constrained sampling with pocket: whatever it would rather say, the text is what the constraint allows."""

import asyncio
import json
import random
import re
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

import agent
from engine import Constraint, Engine, EngineConfig, EngineError, SamplingParams, Sequence

POCKET = Path(agent.__file__).parent / "pocket" / "model"
TIMEOUT_S = 60  # a request that is never answered must fail, not hang


class Bench:
    """One engine and the event loop it belongs to."""

    def __init__(self, num_drafts: int = 3):
        self.runner = asyncio.Runner()
        config = EngineConfig(device="cpu", memory_bytes=2**26, threads=1, num_drafts=num_drafts)
        self.opened: AbstractAsyncContextManager[Engine] = Engine.open(POCKET, config)
        self.engine = self.runner.run(self.opened.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, TIMEOUT_S))

    def close(self) -> None:
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()

    def text(self, tokens: list[int]) -> str:
        return self.engine.tokenizer.decode(tokens)

    async def take(self, seq: Sequence, ids: list[int], constraint: Constraint | None, **params: Any) -> list[int]:
        params = {"max_tokens": 300} | params
        return [t async for t in self.engine.extend(seq, ids, SamplingParams(constraint=constraint, **params))]

    async def fresh(self, ids: list[int], constraint: Constraint | None, **params: Any) -> list[int]:
        """The tokens of a sequence of its own; constrained text that ends before max_tokens is complete."""
        seq = await self.engine.start()
        tokens = await self.take(seq, ids, constraint, **params)
        if constraint is not None and len(tokens) < params.get("max_tokens", 300):
            assert seq.is_complete
        await self.engine.release(seq)
        return tokens

    def sampled(self, constraint: Constraint, **params: Any) -> str:
        """Constrained text after the prompt."""
        tokens = self.run(self.fresh(prompt(self), constraint, **params))
        assert not self.engine.tokenizer.special_ids & set(tokens)
        return self.text(tokens)


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


def prompt(bench: Bench, text: str = "def open(self, path):\n    return self.files[path]\n") -> list[int]:
    tokenizer = bench.engine.tokenizer
    return [tokenizer.eos_id - 1, *tokenizer.encode(text)]


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


NAME = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": -3, "maximum": 1200}
SCHEMAS = {
    "flat": closed(path=NAME, line=SMALL, is_new={"type": "boolean"}, nothing={"type": "null"}),
    "enum": {"enum": ["read", "réad", "日本語 🙂", 'quo"te\\n', 17, None, [1, "a"]]},
    "nested": closed(
        rows={
            "type": "array", "minItems": 2, "maxItems": 3,
            "items": {"type": "array", "maxItems": 3, "items": {"anyOf": [SMALL, closed(deep=NAME)]}},
        },
        kind={"const": {"ü": ["\u2028", 1.5]}},
    ),
    "unicode": {"type": "string", "minLength": 4, "maxLength": 6, "pattern": "^[äöü日本🙂]+$"},
    "optional": {"type": "object", "properties": {"a": NAME, "b": SMALL}, "additionalProperties": False},
    "reference": {"$defs": {"pair": closed(x=SMALL, y=SMALL)}, **closed(a={"$ref": "#/$defs/pair"}, b={"$ref": "#/$defs/pair"})},
}  # fmt: skip
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


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "seed": 1}, {"temperature": 1.0, "seed": 2}], ids=str)
def test_drafts_change_no_token(bench: Bench, undrafted: Bench, params: dict[str, Any]) -> None:
    row = closed(path={"enum": ["engine/runner.py", "engine/cache.py"]}, line=SMALL)
    constraint = Constraint.json_schema({"type": "array", "items": row, "minItems": 6, "maxItems": 8})
    ids = prompt(bench, json.dumps([{"path": "engine/runner.py", "line": 10 * n} for n in range(3)]) + "\n")
    drafted: list[int] = []
    run = bench.engine._runner.run

    def watched(plan: Any) -> list[list[int]]:
        sampled = run(plan)
        drafted.extend(len(tokens) - 1 for tokens in sampled if len(tokens) > 1)
        return sampled

    bench.engine._runner.run = watched  # type: ignore[method-assign]
    try:
        tokens = bench.run(bench.fresh(ids, constraint, **params))
    finally:
        bench.engine._runner.run = run  # type: ignore[method-assign]
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


# What is refused, and what it costs.

REFUSED = [
    (Constraint.json_schema({"type": "string", "minLength": 5, "maxLength": 2}), "minLength (5) is greater"),
    (Constraint.json_schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "incompatible types"),
    (Constraint.json_schema({"enum": []}), "Unsatisfiable"),
    (Constraint.json_schema({"type": "strng"}), "Invalid type: strng"),
    (Constraint.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (Constraint.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    (Constraint.json_schema({"$ref": "file:///etc/passwd"}), "file:///etc/passwd"),
    (Constraint.json_schema({"$ref": "#"}), "no text satisfies it"),
    (Constraint.regex("(abc"), "unclosed group"),
    (Constraint.regex(""), "only the empty text"),
    (Constraint.regex(r"[^\s\S]"), "no text satisfies it"),
    (Constraint.grammar("start: other"), 'unknown name: "other"'),
    (Constraint.grammar('start: <[0-5]> "b"'), "no token of the model may follow"),
]


@pytest.mark.parametrize(("constraint", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_an_impossible_constraint_is_named_in_one_line_and_changes_nothing(
    bench: Bench, constraint: Constraint, said: str
) -> None:
    async def run() -> None:
        seq = await bench.engine.start()
        with pytest.raises(EngineError) as error:
            await bench.take(seq, prompt(bench), constraint)
        message = str(error.value)
        assert said in message and "\n" not in message and len(message) < 500, message
        assert seq.token_ids == []
        assert len(await bench.take(seq, prompt(bench), None, max_tokens=3)) == 3

    bench.run(run())


def test_a_control_token_that_a_grammar_names_is_never_sampled(bench: Bench) -> None:
    async def run() -> None:
        seq, tokens = await bench.engine.start(), []
        params = SamplingParams(constraint=Constraint.grammar('start: "ab" <｜User｜> "c"'))
        with pytest.raises(EngineError, match="no token of the model may follow"):
            async for token in bench.engine.extend(seq, prompt(bench), params):
                tokens.append(token)
        assert bench.text(tokens) == "ab" and not seq.is_complete

    bench.run(run())


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


TOO_LARGE = {
    "wide": lambda: Constraint.json_schema({"enum": [f"value {n}" for n in range(6000)]}),
    "deeper than Python": lambda: Constraint.json_schema(nested(20_000)),
    "deep": lambda: Constraint.json_schema(nested(150)),
    "patterns": lambda: Constraint.json_schema({"type": "array", "items": {"pattern": "a?" * 5000}}),
    "long pattern": lambda: Constraint.regex("a?" * 5000),
    "many groups": lambda: Constraint.regex("(a*b)*" * 1300),
    "repeats of repeats": lambda: Constraint.regex("(((a{100}){100}){100}){100}" * 2),
    "deep pattern": lambda: Constraint.regex("(" * 4000 + ")" * 4000),
    "deep grammar": lambda: Constraint.grammar("start: " + "(" * 8000),
    "multiples": lambda: Constraint.json_schema({"type": "integer", "multipleOf": 1_000_003}),
    "multiples of multiples": lambda: Constraint.json_schema({"allOf": [{"multipleOf": 997}, {"multipleOf": 0.991}]}),
    "multiples in a grammar": lambda: Constraint.grammar('start: %json {"type": "integer", "\\u006dultipleOf": 7e7}'),
    "choices of choices": lambda: Constraint.json_schema(
        {"allOf": [{"anyOf": [closed(**{f"a{n}": NAME}), closed(**{f"b{n}": SMALL})]} for n in range(12)]}
    ),
    "properties": lambda: Constraint.json_schema({"type": "object", "properties": {f"p{n}": NAME for n in range(1000)}}),
    "a late one": lambda: Constraint.regex("[a-z](((a{100}){100}){100}){100}"),
    "no end": lambda: Constraint.json_schema({"$defs": {"n": closed(c={"$ref": "#/$defs/n"})}, "$ref": "#/$defs/n"}),
    "half a surrogate": lambda: Constraint.json_schema({"const": "\ud800"}),
    "no JSON": lambda: Constraint.json_schema({"const": float("nan")}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_would_cost_too_much_is_refused_quickly(bench: Bench, name: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(EngineError) as error:
        bench.run(bench.fresh(prompt(bench), TOO_LARGE[name](), max_tokens=30, temperature=1.0, seed=1))
    assert time.perf_counter() - begun < 3
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def chain(length: int) -> Constraint:
    """A schema whose compiler recurses once for every reference."""
    definitions = {f"d{n}": {"properties": {"a": {"$ref": f"#/$defs/d{n + 1}"}}} for n in range(length)}
    return Constraint.json_schema({"$defs": {**definitions, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"})


def test_a_chain_of_a_thousand_references_does_not_end_the_process(bench: Bench) -> None:
    assert bench.run(bench.fresh(prompt(bench), chain(1000), max_tokens=4))


def test_others_decode_while_a_large_schema_is_compiled(bench: Bench) -> None:
    async def run() -> None:
        params = SamplingParams(max_tokens=2000, temperature=1.0, seed=random.randrange(1000))
        seq, arrived = await bench.engine.start(), 0
        async with aclosing(bench.engine.extend(seq, prompt(bench), params)) as stream:
            await anext(stream)
            large = asyncio.create_task(bench.fresh(prompt(bench), chain(900), max_tokens=1))
            while not large.done():
                await anext(stream)
                arrived += 1
        assert await large and arrived > 20
        await bench.engine.release(seq)

    bench.run(run())


def test_equal_constraints_are_equal_and_compiled_once(bench: Bench) -> None:
    one, two = (Constraint.json_schema(closed(**{"name": NAME})) for _ in range(2))
    assert one == two and len({SamplingParams(constraint=one), SamplingParams(constraint=two)}) == 1
    assert one != Constraint.regex(one.text)
    compiler = bench.engine._compiler
    for n in range(40):
        compiler.submit(one, frozenset()).result()
        kept = compiler._kept[one]
        compiler.submit(Constraint.regex(f"a{{{n + 1}}}"), frozenset()).result()
        assert compiler._kept[one] is kept
    assert len(compiler._kept) == 16
