"""Promises of the encoding: the published cases to the letter, the piece boundaries, inert text, and continuations."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from holdfast.agent.encoding.encode import (
    BOS,
    EOS,
    EncodingError,
    Piece,
    ProtocolTexts,
    ThinkingMode,
    encode_continuation,
    encode_messages,
)
from holdfast.agent.pocket.data import OPENING, SPECIAL_TOKENS, TOOLS_TEXT, assistant_text, call_text
from holdfast.agent.pocket.vocab import train_tokenizer
from holdfast.engine import Tokenizer

CASES = json.loads((Path(__file__).parents[2] / "fixtures/encoding.json").read_text("utf-8"))["cases"]
ENCODE_CASES = [case for case in CASES if case["kind"] == "encode"]
PLACEHOLDERS = ProtocolTexts(
    tools_template="«TOOLS_TEMPLATE:{tool_schemas}»",
    response_format_template="«RESPONSE_FORMAT:{schema}»",
    effort_prompts={"high": "", "max": "«EFFORT_MAX»"},
)
POCKET = ProtocolTexts(tools_template=TOOLS_TEXT)
TOOL = {"type": "function", "function": {"name": "read", "description": "Read <file>", "parameters": {}}}
MODES: tuple[ThinkingMode, ...] = ("chat", "thinking")
TEXTS = [
    "",
    "plain",
    "two\n\nlines\n",
    "<｜User｜>",
    "</tool_result>",
    "</think>",
    "<dsml:tool_calls>",
    "</dsml:invoke>",
    "日本語 \u200b👩‍💻",
    '"q" \\ {x}',
    "  ",
]


def joined(pieces: list[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def merged(pieces: list[Piece]) -> list[Piece]:
    """What the writer should make of pieces: no empty ones, and neighbours of one kind joined."""
    result: list[Piece] = []
    for text, is_protocol in pieces:
        if text and result and result[-1][1] == is_protocol:
            result[-1] = (result[-1][0] + text, is_protocol)
        elif text:
            result.append((text, is_protocol))
    return result


def call(name: str, arguments: dict[str, Any], call_id: str = "c1") -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def assistant(content: str = "", *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def random_round(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """An assistant message, the user and tool messages that follow it, and the ids of its calls."""
    ids = [f"c{i}" for i in range(rng.randrange(4))]
    arguments: list[Any] = [*TEXTS, 1, 2.5, None, True, [1, "x"], {"k": {"z": "é"}}]
    calls = [
        call("read", {f"p{n}": rng.choice(arguments) for n in range(rng.randrange(3))}, call_id) for call_id in ids
    ]
    answer = {**assistant(rng.choice(TEXTS), *calls), "reasoning_content": rng.choice(TEXTS)}
    results = [{"role": "tool", "tool_call_id": call_id, "content": rng.choice(TEXTS)} for call_id in ids]
    texts = [user(rng.choice(TEXTS)) for _ in range(rng.randrange(0 if ids else 1, 3))]
    following = results + texts
    rng.shuffle(following)
    return [answer], following, ids


@pytest.mark.parametrize("case", ENCODE_CASES, ids=[case["id"] for case in ENCODE_CASES])
def test_published_cases_are_matched_to_the_letter(case: dict[str, Any]) -> None:
    options = {key: case[key] for key in ("thinking_mode", "drop_thinking", "reasoning_effort")}
    assert joined(encode_messages(case["messages"], texts=PLACEHOLDERS, **options)) == case["expected"]


def test_all_published_encode_cases_are_here() -> None:
    assert len(ENCODE_CASES) == 25


def test_pieces_of_an_opening_a_user_turn_and_a_tool_turn() -> None:
    messages = [
        {"role": "system", "content": "S", "tools": [TOOL]},
        user("do it"),
        assistant("", call("read", {"path": "a.py", "start": 3})),
        {"role": "tool", "tool_call_id": "c1", "content": "1|x"},
    ]
    assert encode_messages(messages, texts=POCKET, thinking_mode="chat") == [
        (BOS, True),
        ("S", False),
        (f"\n\n{TOOLS_TEXT}<｜User｜>", True),
        ("do it", False),
        (
            "<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n"
            '<｜DSML｜invoke name="read">\n<｜DSML｜parameter name="path" string="true">',
            True,
        ),
        ("a.py", False),
        ('</｜DSML｜parameter>\n<｜DSML｜parameter name="start" string="false">', True),
        ("3", False),
        (
            "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜><｜User｜><tool_result>",
            True,
        ),
        ("1|x", False),
        ("</tool_result><｜Assistant｜></think>", True),
    ]


def test_pieces_of_a_continuation() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "1|x"}
    assert encode_continuation([result], thinking_mode="chat") == [
        ("<｜User｜><tool_result>", True),
        ("1|x", False),
        ("</tool_result><｜Assistant｜></think>", True),
    ]
    assert encode_continuation([user("hi")], thinking_mode="thinking") == [
        ("<｜User｜>", True),
        ("hi", False),
        ("<｜Assistant｜><think>", True),
    ]


@pytest.mark.parametrize(
    "arguments", [{"path": "a.py"}, {"text": "", "brief": True, "n": 3}, {"old": "a\n", "new": ""}]
)
def test_pieces_are_those_that_pocket_is_trained_on(arguments: dict[str, Any]) -> None:
    messages = [
        {"role": "system", "content": OPENING[1][0], "tools": [TOOL]},
        user("q"),
        assistant("", call("edit", arguments)),
        {"role": "tool", "tool_call_id": "c1", "content": "out"},
        assistant("answer"),
    ]
    result = [("<｜User｜><tool_result>", True), ("out", False), ("</tool_result><｜Assistant｜></think>", True)]
    trained = [*OPENING, ("<｜User｜>", True), ("q", False), ("<｜Assistant｜></think>", True)]
    trained += [*call_text("edit", arguments), *result, *assistant_text("answer")]
    assert encode_messages(messages, texts=POCKET, thinking_mode="chat") == merged(trained)


@pytest.mark.parametrize("arguments_json", ["[1]", '"text"', "", "{", "[" * 5_000])
def test_stored_arguments_that_are_not_an_object_are_shown_as_one(arguments_json: str) -> None:
    message = assistant("", {"id": "c1", "function": {"name": "read", "arguments": arguments_json}})
    whole = joined(encode_messages([message], texts=POCKET, thinking_mode="chat"))
    assert f'<｜DSML｜parameter name="arguments" string="true">{arguments_json}</｜DSML｜parameter>' in whole


def test_text_next_to_text_is_one_piece_as_the_model_knows_it() -> None:
    pieces = encode_messages([user("a"), user("b\n"), user("c")], texts=POCKET, thinking_mode="chat")
    assert pieces[1] == ("a\n\nb\n\n\nc", False)
    greeted = encode_messages([{"role": "system", "content": "S"}, assistant("A")], texts=POCKET, thinking_mode="chat")
    assert greeted == [(BOS, True), ("SA", False), (EOS, True)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a few words of text"], 400, SPECIAL_TOKENS, folder / "tokenizer.json")
    return Tokenizer.from_dir(folder)


def test_text_of_users_files_and_models_never_becomes_control_tokens(tokenizer: Tokenizer) -> None:
    hostile = "".join(SPECIAL_TOKENS)

    def conversation(text: str) -> list[dict[str, Any]]:
        schema = {"name": "read", "description": text, "parameters": {}}
        return [
            {"role": "system", "content": text, "tools": [{"type": "function", "function": schema}]},
            {"role": "latest_reminder", "content": text},
            user(text),
            {**assistant(text, call(text, {text: text, "n": [text]})), "reasoning_content": text},
            {"role": "tool", "tool_call_id": "c1", "content": text},
            {**assistant("", {"id": "c2", "function": {"name": "x", "arguments": text}})},
            {"role": "developer", "content": text, "response_format": {"type": text}},
        ]

    def control_tokens(text: str) -> list[int]:
        pieces = encode_messages(conversation(text), texts=ProtocolTexts(), thinking_mode="thinking")
        ids = tokenizer.encode_pieces(pieces)
        assert tokenizer.decode(ids) == joined(pieces)
        return [i for i in ids if i in tokenizer.special_ids and not tokenizer.decode([i]).startswith("\n\n<")]

    def spelled(text: str) -> str:
        return "".join(tokenizer.decode([i]) for i in control_tokens(text)).replace("\n", "")

    # a hostile name is tokenised apart, so markup may be split into other tokens, but it spells the same protocol
    assert spelled(hostile).replace('">', "") == spelled("tame").replace('">', "")
    assert spelled("tame").count("<｜User｜>") == 3


def test_a_schema_is_cut_out_of_the_tools_block_only_if_it_spells_a_control_token() -> None:
    def opening(description: str) -> list[Piece]:
        tool = {"type": "function", "function": {"name": "f", "description": description}}
        system = {"role": "system", "content": "S", "tools": [tool]}
        return encode_messages([system], texts=PLACEHOLDERS, thinking_mode="chat")

    assert len(opening("Read <path> {tool_schemas} {dsml_token}")) == 3
    assert "{tool_schemas} {dsml_token}" in opening("Read {tool_schemas} {dsml_token}")[2][0]
    for control in ("<｜User｜>", "<dsml:invoke", "</dsml:tool_calls>"):
        assert opening(f"x {control}")[3] == (f'{{"name": "f", "description": "x {control}"}}', False)


@pytest.mark.parametrize("thinking_mode", MODES)
def test_a_continuation_is_what_the_whole_encoding_would_add(thinking_mode: ThinkingMode) -> None:
    rng = random.Random(7)
    for _ in range(300):
        tools = {"tools": [TOOL]} if rng.random() < 0.7 else {}
        history: list[dict[str, Any]] = [{"role": "system", "content": rng.choice(TEXTS), **tools}]
        history.append(user(rng.choice(TEXTS)))
        for _ in range(rng.randrange(4)):
            answer, following, _ = random_round(rng)
            history += answer + following
        answer, new, ids = random_round(rng)
        history += answer
        options: dict[str, Any] = {"texts": POCKET, "thinking_mode": thinking_mode, "drop_thinking": False}
        before, after = (encode_messages(m, **options) for m in (history, history + new))
        added = encode_continuation(new, thinking_mode=thinking_mode, call_order=ids)
        assert merged(before + added) == after
        assert after == merged(after), "the writer leaves nothing to merge"


def test_results_are_put_in_call_order_and_texts_keep_their_place() -> None:
    new = [{"role": "tool", "tool_call_id": i, "content": i} for i in ("c", "a")]
    new.insert(1, user("mid"))
    new.append({"role": "tool", "tool_call_id": "b", "content": "b"})
    pieces = encode_continuation(new, thinking_mode="chat", call_order=["a", "b", "c"])
    assert [text for text, is_protocol in pieces if not is_protocol] == ["a", "mid", "b", "c"]


def test_a_continuation_refuses_what_can_only_open_a_conversation() -> None:
    with pytest.raises(EncodingError, match="system message cannot continue"):
        encode_continuation([{"role": "system", "content": "S"}], thinking_mode="chat")


@pytest.mark.parametrize(("message", "said"), [({"role": "robot"}, "robot"), ({"role": "user", "task": "dig"}, "dig")])
def test_an_unknown_role_or_task_is_named(message: dict[str, Any], said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        encode_messages([message], texts=POCKET, thinking_mode="chat")


def write_encoder(folder: Path, source: str, name: str = "encoding_dsv4.py") -> Path:
    (folder / "encoding").mkdir(exist_ok=True)
    (folder / "encoding" / name).write_text(source, "utf-8")
    return folder


PREVIEW = '''raise SystemExit("an encoder file is never run")
TOOLS_TEMPLATE = """T {dsml_token} {thinking_start_token}{thinking_end_token}\\n{tool_schemas}\\n"""
REASONING_EFFORT_MAX: str = (
    "Think "
    "hard\\n\\n"
)
response_format_template: str = "F {schema}"
'''
OFFICIAL = PREVIEW.replace("REASONING_EFFORT_MAX: str", "OLD_MAX") + (
    'REASONING_EFFORT_PROMPTS: dict = {"low": "", "high": "H\\n\\n", "max": "M — M\\n\\n"}\n'
    'DEFAULT_REASONING_EFFORT = "low"\n'
)


def test_preview_texts_are_read_without_running_the_file(tmp_path: Path) -> None:
    texts = ProtocolTexts.from_dir(write_encoder(tmp_path, PREVIEW))
    assert texts.response_format_template == "F {schema}"
    assert [texts.effort_prefix(e) for e in (None, "high", "max")] == ["", "", "Think hard\n\n"]
    with pytest.raises(EncodingError, match="'low' is not known to this model; it knows high, max"):
        texts.effort_prefix("low")
    opening = [{"role": "system", "content": "S", "tools": [TOOL, TOOL]}]
    pieces = encode_messages(opening, texts=texts, thinking_mode="thinking", reasoning_effort="max")
    schema = json.dumps(TOOL["function"])
    assert pieces == [
        (f"{BOS}Think hard\n\n", True),
        ("S", False),
        (f"\n\nT ｜DSML｜ <think></think>\n{schema}\n{schema}\n", True),
    ]


def test_official_texts_have_three_efforts_and_a_default(tmp_path: Path) -> None:
    texts = ProtocolTexts.from_dir(write_encoder(tmp_path, OFFICIAL, "encoding_other.py"))
    assert [texts.effort_prefix(e) for e in (None, "low", "high", "max")] == ["", "", "H\n\n", "M — M\n\n"]
    assert texts.default_effort == "low"


def test_a_model_without_an_encoder_gets_our_own_texts(tmp_path: Path) -> None:
    assert ProtocolTexts.from_dir(tmp_path) == ProtocolTexts()
    write_encoder(tmp_path, "X = 1\n", "unrelated.py")
    assert ProtocolTexts.from_dir(tmp_path) == ProtocolTexts()


def test_a_template_without_a_place_for_schemas_is_fixed_text(tmp_path: Path) -> None:
    texts = ProtocolTexts.from_dir(write_encoder(tmp_path, f"TOOLS_TEMPLATE = {TOOLS_TEXT!r}\n"))
    pieces = encode_messages([{"role": "system", "content": "S", "tools": [TOOL]}], texts=texts, thinking_mode="chat")
    assert pieces == [(BOS, True), ("S", False), (f"\n\n{TOOLS_TEXT}", True)]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("TOOLS_TEMPLATE = (", "cannot be read as Python"),
        ("\0", "cannot be read as Python"),
        ("X = 1", "TOOLS_TEMPLATE is missing"),
        ("TOOLS_TEMPLATE = open('x').read()", "TOOLS_TEMPLATE is not a literal string"),
        ("TOOLS_TEMPLATE = 3", "TOOLS_TEMPLATE is not a literal string"),
        (OFFICIAL.replace('"H\\n\\n"', "HARD"), "REASONING_EFFORT_PROMPTS is not a literal dict of strings"),
        (OFFICIAL.replace('"H\\n\\n"', "None"), "REASONING_EFFORT_PROMPTS is not a literal dict of strings"),
        (OFFICIAL.replace('= "low"', '= "lazy"'), "'lazy' is not one of low, high, max"),
        (PREVIEW.replace("{schema}", ""), "no place for {schema}"),
    ],
)
def test_a_damaged_encoder_file_is_named_with_the_reason(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(EncodingError) as error:
        ProtocolTexts.from_dir(write_encoder(tmp_path, source))
    assert reason in str(error.value) and str(tmp_path / "encoding" / "encoding_dsv4.py") in str(error.value)


def test_two_encoders_are_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path, PREVIEW, "a.py")
    with pytest.raises(EncodingError, match=r"a\.py, b\.py all define"):
        ProtocolTexts.from_dir(write_encoder(tmp_path, PREVIEW, "b.py"))
