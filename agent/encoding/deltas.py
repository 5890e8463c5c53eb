"""What a parser gives of a model's output, piece by piece: reasoning, text, and calls, whole or as they are written.

Owns how arguments of a call are JSON. Must not know how output is read.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class ToolCallParsed:
    """One call; `arguments_json` is always a JSON object. `malformed` says what is wrong with a call not to be run."""

    name: str
    arguments_json: str
    malformed: str | None = None


@dataclass(frozen=True)
class ToolCallBegun:
    """A call whose name is known. The pieces of its arguments follow, and then the whole call."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """A piece of `arguments_json`; all pieces joined give it."""

    text: str


Delta = ThinkingDelta | TextDelta | ToolCallBegun | ArgumentsDelta | ToolCallParsed


def json_object(items: Iterable[tuple[str, str]]) -> str:
    """A JSON object of keys and values that are JSON already: numbers keep the digits that the model wrote."""
    return "{" + ", ".join(f"{json_text(key)}: {value}" for key, value in items) + "}"


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
