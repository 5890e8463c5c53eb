"""What a block of tool calls may be, as a grammar of DSML: names from a list, arguments by their schemas.

Owns the translation of schemas of arguments into rules. Must not know requests, nor how a grammar is kept to.

Parameters come in the order of their schema: required ones always, others at will, unknown ones never. A text stands as
it is up to the closing tag. Everything else is JSON, and so is a text that has a pattern, a format or a length.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.agent.encoding.encode import DSML, EOS, USER
from holdfast.engine import Constraint, EngineError, Tokenizer

BLOCK, BLOCK_END = f"<{DSML}tool_calls>\n", f"</{DSML}tool_calls>"
CALL, CALL_END = f'<{DSML}invoke name="', f"</{DSML}invoke>\n"
PARAMETER, PARAMETER_END = f'<{DSML}parameter name="', f"</{DSML}parameter>"
OPENING = f"\n\n{BLOCK}{CALL}"
# a parser takes these for the end of the output, or for the next tag after a value without an end
NO_TEXT = rf'{EOS}|{USER}|\n<{DSML}(invoke|parameter) name="'
NO_KEY = re.compile(r'["\n｜>]|^$')
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
DEFINITIONS = ("$defs", "definitions")
LOCAL = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")
OF_ARGUMENTS = {*ANNOTATIONS, *DEFINITIONS, "type", "properties", "required", "additionalProperties", "$schema", "$id"}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


NAME_END, EMPTY = _literal('">\n'), _literal("\n")
KEY_END = '" string="'
TRUE, FALSE, NEW_LINE, VALUE_END = map(_literal, ('true">', 'false">', "\n", f"{PARAMETER_END}\n"))


class NotPossible(ValueError):
    """A schema that the grammar cannot express; says why."""


def calls_constraint(
    tokenizer: Tokenizer,
    functions: Iterable[Mapping[str, Any]],
    before: str | None = None,
    may_be_many: bool = True,
    instead: Constraint | None = None,
) -> Constraint:
    """A block of calls of these functions: name, parameters. `before` comes first; None: the block may lack its new
    lines and its bracket, as far as they were written already. `instead`: JSON that may come in its place.

    Raises NotPossible for parameters that cannot be expressed; None stands for any.
    """
    rules = _Rules()
    called = " | ".join(rules.named(f"{_literal(f['name'])} {_arguments(rules, f['parameters'])}") for f in functions)
    opening = f'("\\n"? "\\n"? "<")? {_literal(BLOCK[1:])}' if before is None else _literal(f"{before}\n\n{BLOCK}")
    block = f"{opening} call{'+' if may_be_many else ''} {_literal(BLOCK_END)}"
    start = f"{block} | {instead.as_rule()}" if instead else block
    call = f"{_literal(CALL)} ({called}) {_literal(CALL_END)}"
    text = f"value[suffix={_literal(PARAMETER_END)}]: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*)({NO_TEXT})(?s:.*)/"
    lark = f'start: {start}\ncall: {call}\n{text}\nKEY: /[^"\\n｜>]+/\n{rules.text()}'
    return Constraint.grammar(lark, frozenset(_control(tokenizer)) | _spelled(tokenizer, before or ""))


@functools.lru_cache(maxsize=4)
def _control(tokenizer: Tokenizer) -> dict[int, str]:
    """The control tokens that spell calls."""
    spelled = {token: tokenizer.decode([token]) for token in tokenizer.special_ids}
    return {token: text for token, text in spelled.items() if DSML in text or '" string="' in text}


def _spelled(tokenizer: Tokenizer, text: str) -> frozenset[int]:
    return tokenizer.special_ids & set(tokenizer.encode_protocol(text))


def begins_calls(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens with which a block begins in the midst of text: where they are sampled the grammar takes over."""
    return frozenset(
        token for token, text in _control(tokenizer).items() if any(OPENING[at:].startswith(text) for at in range(4))
    )


def only_in_calls(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens of calls that begin no block."""
    return frozenset(_control(tokenizer)) - begins_calls(tokenizer)


class _Rules:
    """Rules of a grammar, those with the same body once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def named(self, body: str) -> str:
        return self._names.setdefault(body, f"r{len(self._names)}")

    def text(self) -> str:
        return "\n".join(f"{name}: {body}" for body, name in self._names.items())


def _arguments(rules: _Rules, schema: Mapping[str, Any] | None) -> str:
    """What stands between a call's name and its closing tag."""
    if schema is None:
        return _any_arguments(rules, True, {})
    root = schema
    if "$ref" in schema and schema.keys() <= {"$ref", *DEFINITIONS, *ANNOTATIONS, "$schema"}:
        root = {**schema, **_resolved(schema, schema)}
        del root["$ref"]
    if unknown := root.keys() - OF_ARGUMENTS:
        raise NotPossible(f"{min(unknown)} is not possible for the arguments themselves")
    properties, required, others = (
        root.get("properties", {}),
        root.get("required", []),
        root.get("additionalProperties"),
    )
    if root.get("type", "object") != "object" or not isinstance(properties, dict) or not isinstance(required, list):
        raise NotPossible("arguments are an object with properties")
    if not properties and others not in (None, False):
        return _any_arguments(rules, others, root)
    if missing := [key for key in required if key not in properties]:
        raise NotPossible(f"{missing[0]!a} is required, but it is not among the properties")
    parts = []
    for key, value in properties.items():
        if NO_KEY.search(key):
            raise NotPossible(f"a property cannot have the name {key[:60]!a}")
        part = rules.named(f"{_literal(PARAMETER + key + KEY_END)} ({_value(rules, value, root)})")
        parts.append(part if key in required else f"{part}?")
    given = " ".join(parts) if required else f"{EMPTY} | {' '.join(parts)}" if parts else EMPTY
    return f"{NAME_END} ({given})"


def _any_arguments(rules: _Rules, value: Any, root: Mapping[str, Any]) -> str:
    one = rules.named(f"{_literal(PARAMETER)} KEY {_literal(KEY_END)} ({_value(rules, value, root)})")
    return f"{NAME_END} ({EMPTY} | {one}+)"


def _value(rules: _Rules, schema: Any, root: Mapping[str, Any]) -> str:
    """What stands between a parameter's name and its end, whether it is text among it."""
    if _is_any_text(schema, root):
        ways = [f"{TRUE} value {NEW_LINE}"]
    else:
        texts = _texts(schema)
        if any(PARAMETER_END in text or re.search(NO_TEXT, text) for text in texts):
            raise NotPossible("a text has the spelling of a tag")
        ways = [f"{TRUE} ({' | '.join(map(_literal, texts))}) {VALUE_END}"] if texts else []
    if not _is_text_alone(schema):
        ways.append(f"{FALSE} {rules.named(_json_rule(schema, root))} {VALUE_END}")
    return " | ".join(ways)


def _is_any_text(schema: Any, root: Mapping[str, Any], depth: int = 8) -> bool:
    """Whether any text is a value."""
    if not isinstance(schema, dict) or not depth:
        return schema is True
    keys = schema.keys() - ANNOTATIONS
    if keys == {"$ref"}:
        return _is_any_text(_resolved(schema, root), root, depth - 1)
    if keys == {"anyOf"} and isinstance(schema["anyOf"], list):
        return any(_is_any_text(part, root, depth - 1) for part in schema["anyOf"])
    return not keys or (keys == {"type"} and "string" in _types(schema))


def _types(schema: Mapping[str, Any]) -> list[Any]:
    types = schema.get("type", "string")
    return types if isinstance(types, list) else [types]


def _texts(schema: Any) -> list[str]:
    """The texts of an enumeration."""
    if not isinstance(schema, dict) or "string" not in _types(schema):
        return []
    keys = schema.keys() - ANNOTATIONS - {"type"}
    values = schema["enum"] if keys == {"enum"} else [schema["const"]] if keys == {"const"} else []
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _is_text_alone(schema: Any) -> bool:
    """Whether no value is written as JSON."""
    if not isinstance(schema, dict):
        return False
    texts = _texts(schema)
    if texts:
        return len(texts) == len(schema.get("enum", texts))
    return schema.keys() - ANNOTATIONS == {"type"} and _types(schema) == ["string"]


def _json_rule(schema: Any, root: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(schema)
        if '"$ref"' in text:
            if "$ref" in LOCAL.sub("", text.replace('"$ref": "#', '"#')):
                raise NotPossible("$ref must be #/$defs/NAME")
            schema = {**{key: root[key] for key in DEFINITIONS if key in root}, **schema}
        return Constraint.json_schema({} if schema is True else schema).as_rule()
    except EngineError as e:
        raise NotPossible(str(e)) from None
    except RecursionError:
        raise NotPossible("it is nested too deeply") from None


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    found = LOCAL.fullmatch(str(schema["$ref"]))
    definitions = root.get(found[1]) if found else None
    if found is None or not isinstance(definitions, dict) or found[2] not in definitions:
        raise NotPossible(f"$ref {str(schema['$ref'])[:60]!a} is not among the definitions")
    return definitions[found[2]]
