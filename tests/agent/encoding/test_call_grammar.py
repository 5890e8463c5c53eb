"""Calls of pocket under their grammar parse, and their arguments fit their schemas."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.agent.encoding.call_grammar import NotPossible, begins_calls, calls_constraint, only_in_calls
from holdfast.agent.encoding.deltas import ToolCallParsed
from holdfast.agent.encoding.encode import EOS
from holdfast.agent.encoding.parse import StreamParser, parse_completion
from tests.engine.constrained import SMALL, Bench, closed, prompt


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


TEXT = {"type": "string"}
OPTIONAL = {"type": "object", "properties": {"a": SMALL, "b": {"type": "boolean"}}}
POINT = closed(x=SMALL, y=SMALL)
DRAWS: list[dict[str, Any]] = [{}, *({"temperature": t, "seed": seed} for seed, t in enumerate((1.0, 3.0, 30.0)))]


def function(name: str, parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def calls(bench: Bench, *functions: dict[str, Any], many: bool = False, **params: Any) -> list[tuple[str, Any]]:
    """Names and arguments, by the parser that takes nothing but the format to the letter."""
    constraint = calls_constraint(bench.engine.tokenizer, functions, "", many)
    text = bench.text(bench.run(bench.fresh(prompt(bench), constraint, **params)))
    found = parse_completion(text + EOS, "chat")["tool_calls"]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


@pytest.mark.parametrize("params", DRAWS, ids=str)
def test_a_call_has_a_name_of_the_list_and_arguments_of_its_schema(bench: Bench, params: dict[str, Any]) -> None:
    functions = [
        function("put", closed(at=POINT, kind={"enum": ["a b", '"c"', "</d>", ""]})),
        function("get.it", OPTIONAL),
    ]
    [(name, arguments)] = calls(bench, *functions, **params)
    assert name in ("put", "get.it")
    if name == "put":
        assert arguments.keys() == {"at", "kind"} and arguments["at"].keys() == {"x", "y"}
        assert arguments["kind"] in ("a b", '"c"', "</d>", "")
    else:
        assert arguments.keys() <= {"a", "b"} and -3 <= arguments.get("a", 0) <= 1200


@pytest.mark.parametrize(
    ("schema", "is_right"),
    [
        ({"enum": ["x", None, 3]}, lambda value: value in ("x", None, 3)),
        ({"const": "x y"}, lambda value: value == "x y"),
        ({"type": ["integer", "null"], "minimum": 1, "maximum": 9}, lambda value: value is None or 1 <= value <= 9),
        ({"type": "string", "pattern": "^[0-9]{4}$"}, lambda value: len(value) == 4 and value.isdigit()),
        ({"type": "string", "minLength": 2, "maxLength": 3}, lambda value: 2 <= len(value) <= 3),
        ({"$ref": "#/$defs/point"}, lambda value: value.keys() == {"x", "y"}),
        ({"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2}, lambda value: len(value) <= 2),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_argument_fits_its_schema(bench: Bench, schema: dict[str, Any], is_right: Any) -> None:
    parameters = {**closed(value=schema), "$defs": {"point": POINT}}
    for params in DRAWS:
        [(_, arguments)] = calls(bench, function("f", parameters), **params)
        assert is_right(arguments["value"]), arguments


@pytest.mark.parametrize(
    "schema",
    [TEXT, True, {"anyOf": [TEXT, {"type": "null"}]}, {"type": ["string", "null"]}, {"$ref": "#/$defs/name"}],
    ids=str,
)
def test_a_text_stands_as_it_is(bench: Bench, schema: Any) -> None:
    """Markup that does not close it, quotes and new lines may be in it."""
    value = 'a "b"\n</｜DSML｜invoke> <｜DSML｜x> <think> 数'
    text = (
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="v" string="true">'
        f"{value}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    )
    assert takes(bench, function("f", {**closed(v=schema), "$defs": {"name": TEXT}}), text)


def takes(bench: Bench, wanted: dict[str, Any], text: str) -> bool:
    """Whether the grammar goes along with a whole block."""
    tokenizer = bench.engine.tokenizer
    matcher = bench.engine._compiler.submit(calls_constraint(tokenizer, [wanted], ""), frozenset()).result()
    start, _, rest = text.partition('string="')
    value, end, after = rest.partition("</｜DSML｜parameter>")
    for token in [
        *tokenizer.encode_protocol(f'{start}string="'),
        *tokenizer.encode(value),
        *tokenizer.encode_protocol(end + after),
    ]:
        if matcher.is_over or token not in matcher.allowed():
            return False
        matcher.accept(token)
    return matcher.is_over


def test_what_a_parser_takes_for_the_end_of_a_text_is_not_in_one(bench: Bench) -> None:
    for broken in (EOS, "<｜User｜>", '\n<｜DSML｜parameter name="', '\n<｜DSML｜invoke name="'):
        text = (
            '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="v" string="true">'
            f"a{broken}b</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        )
        assert not takes(bench, function("f", closed(v=TEXT)), text)


def test_several_calls_come_only_where_they_may(bench: Bench) -> None:
    functions = [function("f", closed(a={"type": "boolean"}))]
    numbers = [len(calls(bench, *functions, many=True, temperature=30.0, seed=seed)) for seed in range(12)]
    assert max(numbers) > 1
    assert {len(calls(bench, *functions, temperature=30.0, seed=seed)) for seed in range(12)} == {1}


@pytest.mark.parametrize("parameters", [{}, {"type": "object"}, {"type": "object", "properties": {}}], ids=str)
def test_a_function_without_parameters_gets_none(bench: Bench, parameters: dict[str, Any]) -> None:
    assert calls(bench, function("f", parameters), temperature=30.0, seed=1) == [("f", {})]


def test_arguments_that_are_any_have_any_names(bench: Bench) -> None:
    for parameters in (None, {"type": "object", "additionalProperties": SMALL}):
        found = [
            calls(bench, function("f", parameters), temperature=2.0, seed=seed, max_tokens=2000) for seed in range(3)
        ]
        assert all(name == "f" for [(name, _)] in found)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"anyOf": [closed(a=SMALL), closed(b=SMALL)]}, "anyOf"),
        ({**closed(a=SMALL), "patternProperties": {}}, "patternProperties"),
        (closed(**{'a"b': SMALL}), 'a"b'),
        ({**closed(a=SMALL), "required": ["z"]}, "'z'"),
        (closed(a={"$ref": "#"}), "$ref"),
        (closed(a={"$ref": "#/$defs/none"}), "none"),
        (closed(a={"enum": ["</｜DSML｜parameter>"]}), "tag"),
        ({"type": "array"}, "object"),
    ],
    ids=str,
)
def test_what_cannot_be_expressed_is_refused(bench: Bench, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(NotPossible) as error:
        calls_constraint(bench.engine.tokenizer, [function("f", parameters)])
    assert said in str(error.value)


def test_a_block_in_the_midst_of_text_goes_on_from_the_token_that_begins_it(bench: Bench) -> None:
    tokenizer = bench.engine.tokenizer
    spelled = {tokenizer.decode([token]) for token in begins_calls(tokenizer)}
    assert "｜DSML｜" in spelled and not begins_calls(tokenizer) & only_in_calls(tokenizer)
    constraint = calls_constraint(tokenizer, [function("f", closed(a=SMALL))])
    for token in begins_calls(tokenizer):
        matcher = bench.engine._compiler.submit(constraint, frozenset(), begins_calls(tokenizer)).result()
        for before in tokenizer.encode("so I look\n\n<"):
            matcher.accept(before)
        assert matcher.is_free
        matcher.accept(token)
        assert not matcher.is_free and len(matcher.allowed()) and matcher.error is None


def test_the_parser_reads_what_the_grammar_allows_as_whole_calls(bench: Bench) -> None:
    parser = StreamParser(thinking=False)
    constraint = calls_constraint(bench.engine.tokenizer, [function("f", closed(a=TEXT))], "")
    deltas = parser.feed(bench.text(bench.run(bench.fresh(prompt(bench), constraint, max_tokens=2000))))
    assert [delta.malformed for delta in deltas if isinstance(delta, ToolCallParsed)] == [None]
