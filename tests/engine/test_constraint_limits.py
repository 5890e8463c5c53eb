"""Constraints that are refused, and what a hostile one may cost."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from holdfast.engine import Constraint, EngineError, SamplingParams
from tests.engine.constrained import NAME, SMALL, Bench, closed, prompt


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


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
        params = SamplingParams(constraint=Constraint.grammar('start: "ab" <[3]> "c"'))
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
    "properties": lambda: Constraint.json_schema(
        {"type": "object", "properties": {f"p{n}": NAME for n in range(1000)}}
    ),
    "a late one": lambda: Constraint.regex("[a-z](((a{100}){100}){100}){100}"),
    "no end": lambda: Constraint.json_schema({"$defs": {"n": closed(c={"$ref": "#/$defs/n"})}, "$ref": "#/$defs/n"}),
    "half a surrogate": lambda: Constraint.json_schema({"const": "\ud800"}),
    "no JSON": lambda: Constraint.json_schema({"const": float("nan")}),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_would_cost_too_much_is_refused_quickly(bench: Bench, name: str) -> None:
    begun = time.process_time()  # not what other processes take
    with pytest.raises(EngineError) as error:
        bench.run(bench.fresh(prompt(bench), TOO_LARGE[name](), max_tokens=30, temperature=1.0, seed=1))
    assert time.process_time() - begun < 20
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
