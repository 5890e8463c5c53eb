"""Promises of the parsers: the published cases, every damaged shape, and that the cuts of a stream do not matter."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.encoding.deltas import (
    ArgumentsDelta,
    Delta,
    TextDelta,
    ThinkingDelta,
    ToolCallBegun,
    ToolCallParsed,
)
from holdfast.agent.encoding.encode import DSML, EOS, ProtocolTexts, ThinkingMode, encode_messages
from holdfast.agent.encoding.parse import Completion, ParseError, StreamParser, parse_completion

CASES = json.loads((Path(__file__).parents[2] / "fixtures/encoding.json").read_text("utf-8"))["cases"]
PARSE_CASES = [case for case in CASES if case["kind"] == "parse"]
SPECIALS = ("<｜", "｜>", DSML, "<think>", "</think>")
CONTROL_TOKENS = (
    EOS,
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    DSML,
    "<｜begin▁of▁sentence｜>",
    "<｜action｜>",
)

READ = ToolCallParsed("read", '{"path": "a.py", "start": 3}')
PATH = '<｜DSML｜parameter name="path" string="true">a.py</｜DSML｜parameter>\n'
START = '<｜DSML｜parameter name="start" string="false">3</｜DSML｜parameter>\n'
INVOKE = f'<｜DSML｜invoke name="read">\n{PATH}{START}</｜DSML｜invoke>\n'
BLOCK = f"\n\n<｜DSML｜tool_calls>\n{INVOKE}</｜DSML｜tool_calls>"
# reasoning, text and arguments without protocol markup, but with everything that is near to it
TEXTS = [
    "",
    "word",
    "a\n",
    "\n\n",
    "\n\n<",
    "x < y",
    "<User>",
    "｜",
    "<｜",
    "</",
    "DSML",
    "tool_calls>",
    '"q" \\ {x}',
    "żółć 👍",
]
VALUES: list[Any] = [*TEXTS, 0, -2.5, 1e30, None, True, [], [1, "x"], {"k": {"z": "é"}}]


def invoke(*parameters: str) -> str:
    call = f'<｜DSML｜invoke name="read">\n{"".join(parameters)}</｜DSML｜invoke>'
    return f"\n\n<｜DSML｜tool_calls>\n{call}\n</｜DSML｜tool_calls>"


def coalesced(deltas: list[Delta]) -> list[Delta]:
    result: list[Delta] = []
    for delta in deltas:
        last = result[-1] if result else None
        if isinstance(delta, ThinkingDelta | TextDelta) and isinstance(last, type(delta)):
            result[-1] = type(delta)(last.text + delta.text)
        else:
            result.append(delta)
    return result


def stream(pieces: list[str], thinking: bool) -> tuple[list[Delta], Completion]:
    parser = StreamParser(thinking)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    completion = parser.finish()
    return coalesced([*deltas, *completion.tail]), completion


def parse(text: str, thinking: bool = False) -> Completion:
    """Parse the text whole, by characters and in two halves; all must agree, and the deltas must add up."""
    deltas, completion = stream([text], thinking)
    assert stream(list(text), thinking) == (deltas, completion)
    assert stream([text[: len(text) // 2], "", text[len(text) // 2 :]], thinking) == (deltas, completion)
    assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == completion.reasoning
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == completion.text
    assert tuple(d for d in deltas if isinstance(d, ToolCallParsed)) == completion.calls
    return completion


def only_call(text: str, thinking: bool = False) -> ToolCallParsed:
    calls = parse(text, thinking).calls
    assert len(calls) == 1, calls
    return calls[0]


def random_message(rng: random.Random) -> dict[str, Any]:
    calls = []
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        arguments = {f"p{n}": rng.choice(VALUES) for n in range(rng.randrange(4))}
        function = {"name": "read", "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"type": "function", "function": function})
    content, reasoning = ("".join(rng.choices(TEXTS, k=2)) for _ in range(2))
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}


def assistant_text(message: dict[str, Any], thinking_mode: ThinkingMode) -> str:
    """What the model would have to write for this message."""
    user = {"role": "user", "content": "q"}
    tools = [{"type": "function", "function": {"name": "read"}}]
    texts = ProtocolTexts()
    before, after = (
        "".join(t for t, _ in encode_messages(m, texts=texts, thinking_mode=thinking_mode))
        for m in ([{**user, "tools": tools}], [{**user, "tools": tools}, message])
    )
    assert after.startswith(before)
    return after[len(before) :]


@pytest.mark.parametrize("case", PARSE_CASES, ids=[case["id"] for case in PARSE_CASES])
def test_published_cases(case: dict[str, Any]) -> None:
    if case["error"]:
        with pytest.raises(ParseError):
            parse_completion(case["text"], case["thinking_mode"])
    else:
        assert parse_completion(case["text"], case["thinking_mode"]) == case["expected"]


def test_all_published_parse_cases_are_here() -> None:
    assert [case["error"] for case in PARSE_CASES] == [False, False, True]


def test_the_worked_example_of_the_format() -> None:
    text = (
        "T</think>hello\n\n<｜DSML｜tool_calls>\n"
        '<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="s" string="true">x "q"</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜tool_calls><｜end▁of▁sentence｜>"
    )
    call = ToolCallParsed("add", r'{"a": 1, "s": "x \"q\""}')
    message = parse_completion(text, "thinking")
    assert message["reasoning_content"] == "T" and message["content"] == "hello"
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": call.arguments_json}}
    ]
    assert parse(text, thinking=True) == Completion("T", "hello", (call,), ())


@pytest.mark.parametrize(
    ("text", "thinking_mode"),
    [
        ("no end", "chat"),
        (f"no end of thinking{EOS}", "thinking"),
        (f"{BLOCK}</think>{EOS}", "thinking"),
        (f"after{EOS}more", "chat"),
        (f"a <think> b{EOS}", "chat"),
        (f"a <｜User｜> b{EOS}", "chat"),
        (f"{BLOCK}stray{EOS}", "chat"),
        (f"{BLOCK}{EOS}stray", "chat"),
        (BLOCK, "chat"),
        (f"\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>{EOS}", "chat"),
        (f"{invoke(PATH, PATH)}{EOS}", "chat"),
        (f"{invoke(START.replace('3', 'three'))}{EOS}", "chat"),
        (f"{invoke(START.replace('3', 'NaN'))}{EOS}", "chat"),
        (f"{invoke(PATH.replace('true', 'maybe'))}{EOS}", "chat"),
        (f"{BLOCK}{EOS}".replace("tool_calls", "toolcalls", 1), "chat"),
        (f"{BLOCK}{EOS}".replace("</｜DSML｜invoke>\n", ""), "chat"),
    ],
)
def test_the_strict_parser_refuses(text: str, thinking_mode: ThinkingMode) -> None:
    with pytest.raises(ParseError):
        parse_completion(text, thinking_mode)


def test_text_is_passed_on_as_soon_as_it_cannot_be_a_delimiter() -> None:
    parser = StreamParser(thinking=True)
    assert parser.feed("hm <") == [ThinkingDelta("hm ")]
    assert parser.feed("/thin") == []
    assert parser.feed("g") == [ThinkingDelta("</thing")]
    assert parser.feed("</think>a\n") == [TextDelta("a")]
    assert parser.feed("\n") == []
    assert parser.feed("b<｜end▁of") == [TextDelta("\n\nb")]
    assert parser.feed("▁sentence｜>junk") == [] and parser.ended
    assert parser.feed("more") == []
    assert parser.finish() == Completion("hm </thing", "a\n\nb", (), ())


def test_what_was_held_back_comes_out_at_the_end() -> None:
    parser = StreamParser(thinking=False)
    assert parser.feed("x \n\n<｜DS") == [TextDelta("x ")]
    assert parser.finish() == Completion("", "x \n\n<｜DS", (), (TextDelta("\n\n<｜DS"),))


def test_a_call_is_reported_when_its_own_end_has_come() -> None:
    parser = StreamParser(thinking=False)
    assert parser.feed(f"ok\n\n<｜DSML｜tool_calls>\n{INVOKE[:-2]}") == [TextDelta("ok")]
    assert parser.feed(">") == [READ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"hello{BLOCK}{EOS}", id="well-formed"),
        pytest.param(f"hello{BLOCK}", id="no end token"),
        pytest.param(f"hello{BLOCK}<｜User｜>more", id="next turn begun"),
        pytest.param(f"hello{BLOCK}\n\nI will wait.{EOS}", id="stray text after the block"),
        pytest.param(f"hello\n{BLOCK.lstrip()}{EOS}", id="one new line"),
        pytest.param(f"hello{BLOCK.lstrip()}{EOS}", id="no new lines"),
        pytest.param(f"hello{BLOCK.replace('tool_calls', 'toolcalls', 1)}{EOS}", id="toolcalls"),
        pytest.param(f"hello{BLOCK.replace('<｜DSML｜tool_calls', '｜DSML｜toolcalls', 1)}{EOS}", id="no bracket"),
        pytest.param(f"hello\n\n{INVOKE}{EOS}", id="no outer tag"),
        pytest.param(f"hello\n\n{INVOKE}</｜DSML｜tool_calls>{EOS}", id="only the outer closing tag"),
        pytest.param(f"hello\n\n<｜DSML｜tool_calls>\n{INVOKE}{EOS}", id="outer tag not closed"),
        pytest.param("hello" + BLOCK.replace("name=", 'id="7" name='), id="unknown attributes"),
        pytest.param("hello" + BLOCK.replace(' string="true"', ""), id="no string attribute means text"),
        pytest.param("hello" + BLOCK.replace("false", "False"), id="capital False"),
        pytest.param("hello" + BLOCK.replace("\n</｜DSML｜invoke", "</｜DSML｜invoke"), id="no inner new line"),
        pytest.param(f"<think>hel</think>lo{BLOCK}{EOS}", id="stray think tags"),
        pytest.param(f"he<｜Assistant｜>llo</｜DSML｜{BLOCK}{EOS}", id="stray tokens"),
    ],
)
def test_a_call_that_is_clear_enough_is_taken(text: str) -> None:
    completion = parse(text)
    assert completion.calls == (READ,) and completion.text == "hello" and completion.reasoning == ""


def test_a_block_inside_the_reasoning_ends_it() -> None:
    assert parse(f"I should read{BLOCK}{EOS}", thinking=True) == Completion("I should read", "", (READ,), ())
    assert parse(f"I should read{INVOKE}", thinking=True).calls == (READ,)


@pytest.mark.parametrize("name", ["arguments", "input"])
@pytest.mark.parametrize("is_text", ["true", "false"])
def test_arguments_wrapped_in_one_parameter_are_unwrapped(name: str, is_text: str) -> None:
    wrapped = f'<｜DSML｜parameter name="{name}" string="{is_text}">{READ.arguments_json}</｜DSML｜parameter>\n'
    assert only_call(invoke(wrapped)) == READ
    assert only_call(invoke(wrapped, PATH)).arguments_json.startswith(f'{{"{name}": ')


def test_one_parameter_named_input_that_is_no_object_stays() -> None:
    plain = '<｜DSML｜parameter name="input" string="true">ls {</｜DSML｜parameter>\n'
    assert only_call(invoke(plain)) == ToolCallParsed("read", '{"input": "ls {"}')


def test_a_value_may_hold_markup_that_does_not_close_it() -> None:
    value = "a</｜DSML｜invoke>\n</｜DSML｜tool_calls> <｜DSML｜invoke b"
    call = only_call(f"{invoke(PATH.replace('a.py', value))}{EOS}")
    assert call == ToolCallParsed("read", json.dumps({"path": value}, ensure_ascii=False))


@pytest.mark.parametrize(
    ("text", "arguments", "reason"),
    [
        (invoke(START.replace("3", "three")), {"start": "three"}, "'start' is not JSON"),
        (invoke(START.replace("3", "NaN")), {"start": "NaN"}, "'start' is not JSON"),
        (invoke(START.replace("3", "[" * 5_000)), {"start": "[" * 5_000}, "'start' is not JSON"),
        (invoke(PATH, PATH.replace("a.py", "b.py")), {"path": "a.py"}, "given twice, again as 'b.py'"),
        (invoke('{"path": "a.py"}\n'), {}, 'text outside a parameter: \'{"path": "a.py"}\''),
        (invoke(PATH.replace('name="path" ', "")), {"": "a.py"}, "a tag without a name"),
        (invoke(PATH, "</｜DSML｜parameter>"), {"path": "a.py"}, "without a parameter"),
        (invoke(PATH).replace(' name="read"', ""), {"path": "a.py"}, "a tag without a name"),
        (BLOCK[: BLOCK.index("</｜DSML｜invoke")], {"path": "a.py", "start": 3}, "ended inside the call"),
        (BLOCK[: BLOCK.index(".py")], {"path": "a"}, "'path' has no </｜DSML｜parameter>"),
        (BLOCK[: BLOCK.index("ad")], {}, "a tag without a name: 'name=\"re'"),
        (BLOCK.replace("</｜DSML｜invoke>\n", ""), {"path": "a.py", "start": 3}, "no </｜DSML｜invoke>"),
        (
            BLOCK.replace("a.py</｜DSML｜parameter>", "a.py"),
            {"path": "a.py\n" + START.split("</")[0]},
            "runs into the next tag",
        ),
    ],
)
@pytest.mark.parametrize("end", ["", EOS])
def test_a_damaged_call_is_reported_and_not_lost(text: str, arguments: dict[str, Any], reason: str, end: str) -> None:
    call = only_call(text + end)
    assert call.malformed is not None and reason in call.malformed
    assert json.loads(call.arguments_json) == arguments


@pytest.mark.parametrize("begun", ["", ">\n", ">\n<｜DSML｜inv", ">\n{}\n</｜DSML｜tool_calls>"])
def test_a_block_without_a_call_is_reported(begun: str) -> None:
    completion = parse(f"hello\n\n<｜DSML｜tool_calls{begun}{EOS}")
    assert completion.text == "hello" and completion.calls[0].name == ""
    assert completion.calls[0].malformed and json.loads(completion.calls[0].arguments_json) == {"text": begun}


def test_every_call_is_kept_when_one_is_damaged_or_a_second_block_follows() -> None:
    damaged = INVOKE.replace("</｜DSML｜invoke>\n", "")
    first, second = parse(f"\n\n<｜DSML｜tool_calls>\n{damaged}{INVOKE}").calls
    assert first.malformed and second == READ
    assert parse(f"{BLOCK}<tool_result>made up</tool_result>{BLOCK}{EOS}").calls == (READ, READ)
    assert [c.malformed is None for c in parse(f"{BLOCK}{BLOCK[:40]}").calls] == [True, False]


@pytest.mark.parametrize("thinking_mode", ["chat", "thinking"])
def test_what_is_encoded_is_parsed_back(thinking_mode: ThinkingMode) -> None:
    rng = random.Random(11)
    thinking = thinking_mode == "thinking"
    for _ in range(300):
        message = random_message(rng)
        text = assistant_text(message, thinking_mode)
        expected = {**message, "reasoning_content": message["reasoning_content"] if thinking else ""}
        assert parse_completion(text, thinking_mode) == expected
        calls = tuple(ToolCallParsed(**as_parsed(call)) for call in message["tool_calls"])
        pieces = random_cuts(text, rng)
        completion = Completion(expected["reasoning_content"], message["content"], calls, ())
        assert stream(pieces, thinking)[1] == completion == stream([text], thinking)[1]


def as_parsed(call: dict[str, Any]) -> dict[str, str]:
    return {"name": call["function"]["name"], "arguments_json": call["function"]["arguments"]}


def random_cuts(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def mutated(text: str, rng: random.Random) -> str:
    """A few damages: cut out, repeat or swap a stretch, or put in markup."""
    markup = ["<think>", "</think>", "<｜", "｜", ">", '"', "\n", "<", "</", DSML, f"<{DSML}invoke", f"</{DSML}invoke>"]
    markup += [f"</{DSML}parameter>", f'<{DSML}parameter name="x" string="false">', f"\n\n<{DSML}toolcalls>", EOS[:9]]
    markup += ["<｜User｜>", "<｜action｜>", EOS]
    for _ in range(rng.randrange(1, 4)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + 25)
        replacement = rng.choice(["", text[a:b] * 2, text[a:b][::-1], rng.choice(markup), rng.choice(markup)])
        text = text[:a] + replacement + text[b:]
    return text


def test_2000_damaged_outputs_never_raise_leak_or_depend_on_the_cuts() -> None:
    rng = random.Random(2026)
    num_strict = num_malformed = 0
    for _ in range(2000):
        thinking = rng.random() < 0.5
        mode: ThinkingMode = "thinking" if thinking else "chat"
        text = mutated(assistant_text(random_message(rng), mode), rng)
        deltas, completion = stream([text], thinking)
        assert stream(list(text), thinking) == (deltas, completion)
        assert stream(random_cuts(text, rng), thinking) == (deltas, completion)
        for delta in deltas:
            if isinstance(delta, ToolCallParsed):
                num_malformed += delta.malformed is not None
                assert isinstance(json.loads(delta.arguments_json), dict)
        for delta in StreamParser(thinking).feed(text):
            assert isinstance(delta, ToolCallParsed) or not any(token in delta.text for token in CONTROL_TOKENS)
        if f"<{DSML}invoke name" in text.split(EOS)[0].split("<｜User｜>")[0]:
            assert completion.calls
        num_strict += agrees_with_strict_parser(text, mode, completion)
    assert num_strict > 50 and num_malformed > 300, "the mutations must reach both kinds"


def in_pieces(pieces: list[str], thinking: bool, unwraps: bool) -> list[tuple[ToolCallParsed, str]]:
    """The calls, each with what its pieces add up to; its name must have come first."""
    parser = StreamParser(thinking, in_pieces=True, unwraps=unwraps)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    found: list[tuple[ToolCallParsed, str]] = []
    name, told = None, ""
    for delta in [*deltas, *parser.finish().tail]:
        if isinstance(delta, ToolCallBegun):
            assert name is None
            name, told = delta.name, ""
        elif isinstance(delta, ArgumentsDelta):
            assert name is not None and delta.text
            told += delta.text
        elif isinstance(delta, ToolCallParsed):
            assert name == delta.name
            found.append((delta, told))
            name = None
    return found


def test_the_pieces_of_2000_damaged_outputs_add_up_to_their_calls() -> None:
    rng = random.Random(2027)
    for _ in range(2000):
        text = assistant_text(random_message(rng), "chat")
        text = mutated(text, rng) if rng.random() < 0.7 else text
        whole = stream([text], False)[1].calls
        for cuts in ([text], list(text), random_cuts(text, rng)):
            assert in_pieces(cuts, False, True) == [(call, call.arguments_json) for call in whole]
            for call, told in in_pieces(cuts, False, False):
                assert told == call.arguments_json


def test_a_long_text_comes_as_it_is_written() -> None:
    parser = StreamParser(thinking=False, in_pieces=True)
    assert parser.feed('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="write">\n') == [ToolCallBegun("write")]
    assert parser.feed('<｜DSML｜parameter name="n" string="false">1') == []
    assert parser.feed("2</｜DSML｜parameter>\n") == [ArgumentsDelta('{"n": 12')]
    assert parser.feed('<｜DSML｜parameter name="text" string="true">a"\n') == [ArgumentsDelta(', "text": "a\\"\\n')]
    assert parser.feed("\U0001f642</｜DSML") == [ArgumentsDelta("\U0001f642")]
    assert parser.feed("｜x") == [ArgumentsDelta("</｜DSML｜x")]
    last = '{"n": 12, "text": "a\\"\\n\U0001f642</｜DSML｜x"}'
    end = parser.feed("</｜DSML｜parameter>\n</｜DSML｜invoke>\n")
    assert end == [ArgumentsDelta('"'), ArgumentsDelta("}"), ToolCallParsed("write", last)]


def test_a_parameter_that_a_tool_has_is_not_unwrapped() -> None:
    given = '<｜DSML｜parameter name="input" string="true">{"a": 1}</｜DSML｜parameter>\n'
    [(call, _)] = in_pieces([invoke(given)], False, False)
    assert call.arguments_json == json.dumps({"input": '{"a": 1}'})


def agrees_with_strict_parser(text: str, mode: ThinkingMode, completion: Completion) -> bool:
    """Whether both parsers take the text; if so, both must have found the same."""
    try:
        message = parse_completion(text, mode)
    except ParseError:
        return False
    if EOS in text.removesuffix(EOS) or "<｜User｜>" in text:
        return False  # a stop token inside a value, which only ends a stream
    if any(call.malformed for call in completion.calls):
        return False  # a value that swallowed the next tag, which only the streaming parser finds suspicious
    assert (completion.reasoning, completion.text) == (message["reasoning_content"], message["content"])
    for call, expected in zip(completion.calls, message["tool_calls"], strict=True):
        assert as_parsed(expected) == {"name": call.name, "arguments_json": call.arguments_json}
    return True
