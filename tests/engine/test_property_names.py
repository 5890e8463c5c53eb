"""`propertyNames` is kept to where other keywords can say it; where they cannot, the schema is refused."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.engine import Constraint, EngineError
from holdfast.engine.property_names import without_property_names
from tests.engine.constrained import Bench

DIGITS = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench(num_drafts=0)
    yield bench
    bench.close()


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ({"propertyNames": {"type": "string", "enum": ["left", "right"]}}, {"left", "right"}),
        ({"propertyNames": {"pattern": "^a$"}, "maxProperties": 2}, {"a"}),
    ],
    ids=["enum", "pattern"],
)
def test_sampled_names_are_those_that_are_allowed(bench: Bench, names: Any, allowed: set[str]) -> None:
    schema = {"type": "object", "additionalProperties": DIGITS, **names}
    for seed in range(3):
        value = json.loads(bench.sampled(Constraint.json_schema(schema), temperature=2.0, seed=seed))
        assert value.keys() <= allowed and all(number in range(10) for number in value.values())


def test_what_every_name_is_says_nothing() -> None:
    inner = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": DIGITS}
    plain = {"type": "object", "additionalProperties": DIGITS}
    for wrap in (
        lambda part: part,
        lambda part: {"anyOf": [part, {"type": "null"}]},
        lambda part: {"type": "object", "properties": {"propertyNames": part}},
        lambda part: {"$defs": {"a": part}, "type": "array", "items": part},
    ):
        assert without_property_names(wrap(inner)) == wrap(plain)


def test_data_that_looks_like_a_keyword_stays() -> None:
    for schema in ({"const": {"propertyNames": True}}, {"type": "object", "properties": {"propertyNames": True}}):
        assert without_property_names(schema) == schema


def test_what_cannot_be_said_otherwise_is_refused(bench: Bench) -> None:
    schema = {"type": "object", "propertyNames": {"minLength": 3}}
    with pytest.raises(EngineError, match="propertyNames"):
        bench.sampled(Constraint.json_schema(schema))
