"""What sampled text may be: a JSON schema, a regular expression or a grammar, kept to token by token.

Owns llguidance, and the limits that keep a hostile schema from taking the process: its time, its memory, its stack.
Knows nothing of logits: a `Matcher` lists the token ids that may come next. The tokens are the model's own. Control
tokens are never among them but for those that a constraint names; stop ids are, exactly where the text is complete.
"""

import json
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from holdfast.engine.errors import EngineError
from holdfast.engine.property_names import without_property_names
from holdfast.engine.tokenizer import Tokenizer

# Compiling takes up to the square of these: half a second for the longest regular expression, a second for a schema.
MOST_CHARS = {"JSON schema": 65_536, "regular expression": 8_192, "grammar": 262_144}
MOST_PATTERN_CHARS = 8_192  # all regular expressions of a schema together
MOST_MULTIPLE = (
    100_000  # `multipleOf` makes an automaton of as many states, for all in an `allOf` their least common multiple
)
MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.\w]+)')
TOO_COMPLEX = re.compile(r"[Tt]oo many |too big|too large|max is \d|precomputation failed|recursion limit")
STACK_BYTES = (
    2**28
)  # the compiler recurses along references: 1,000 of them overflow the usual 8 MiB, which ends the process
KEPT = 16  # compiled constraints
LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,  # a step is on the engine's thread: this and the next are some milliseconds
    step_max_items=25_000,
    max_lexer_states=10_000,  # 1 to 2 kB each
    verbose_errors=False,
)
# One way to write JSON, that of Python's json.dumps: a model that may write white space anywhere may write it for ever.
JSON_STYLE: dict[str, Any] = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


@dataclass(frozen=True)
class Constraint:
    """What a request may sample. Cheap to make and to compare; compiled by the engine.

    `control` are the control tokens that may spell its text, beside ordinary ones.
    """

    kind: Literal["JSON schema", "regular expression", "grammar"]
    text: str
    control: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        most = MOST_CHARS[self.kind]
        if len(self.text) > most:
            raise EngineError(f"the {self.kind} has {len(self.text)} characters: {most} are possible")
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise EngineError(f"the {self.kind} has half of a surrogate pair, which is no text") from None
        _check_multiples(self)

    @classmethod
    def json_schema(cls, schema: dict[str, Any]) -> "Constraint":
        """A value that the schema allows, written as `json.dumps` does, properties in the schema's order.

        Keywords that cannot be kept to are errors. A schema is open: say `additionalProperties: false` to end it.
        """
        if not isinstance(schema, dict):
            raise EngineError(f"a JSON schema is an object, not {type(schema).__name__}")
        if "x-guidance" in schema:
            raise EngineError("x-guidance in a JSON schema is not possible: JSON is written in one way here")
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
            if '"propertyNames"' in text:
                schema = without_property_names(schema)
                text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except RecursionError:
            raise EngineError("the JSON schema is nested too deeply") from None
        except (TypeError, ValueError) as e:
            raise EngineError(f"the JSON schema is not JSON: {e}") from None
        constraint = cls("JSON schema", text)
        length = _pattern_chars(schema)
        if length > MOST_PATTERN_CHARS:
            raise EngineError(f"the JSON schema has patterns of {length} characters: {MOST_PATTERN_CHARS} are possible")
        return constraint

    @classmethod
    def json_object(cls) -> "Constraint":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """Text that the pattern matches as a whole; no look-around, no back-references."""
        return cls("regular expression", pattern)

    @classmethod
    def grammar(cls, lark: str, control: frozenset[int] = frozenset()) -> "Constraint":
        """A context-free grammar in llguidance's dialect of Lark, beginning with the rule `start`."""
        # where only one text is possible llguidance would force plain tokens, never a control token that spells it
        return cls("grammar", f'%llguidance {{"no_forcing": true}}\n{lark}' if control else lark, control)

    def as_rule(self) -> str:
        """The rule of a grammar that stands for a JSON schema."""
        assert self.kind == "JSON schema"
        styled = {"x-guidance": JSON_STYLE, **json.loads(self.text)}
        return f"%json {json.dumps(styled, ensure_ascii=False)}"


class Matcher:
    """Where one request stands in its constraint. Made by `Compiler`, used on the engine's thread.

    `is_free`: any text may come, until one of the tokens `begins`, with which the constrained text begins. `is_over`:
    the text is complete and nothing may follow it. `error`: it cannot go on, and is not complete.
    """

    def __init__(
        self, state: LLMatcher, is_text: np.ndarray, stop_ids: frozenset[int], begins: frozenset[int] = frozenset()
    ):
        self._state, self._is_text, self._stop_ids = state, is_text, stop_ids  # is_text: bool [V]
        self._begins = begins
        self.is_free = bool(begins)
        self.is_over = False
        self.error: EngineError | None = None

    def allowed(self) -> Tensor:
        """The ids that may be sampled next, int64, ascending. None: then `is_over` or `error` says why."""
        assert not self.is_free
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        can = np.unpackbits(bits, count=len(self._is_text), bitorder="little").view(np.bool_) & self._is_text
        if self._has_failed():
            return torch.zeros(0, dtype=torch.int64)
        is_accepting = self._state.is_accepting()
        for stop_id in self._stop_ids:
            if stop_id < len(can):
                can[stop_id] = is_accepting
        ids = np.flatnonzero(can)
        self.is_over = not len(ids) and is_accepting
        if not len(ids) and not is_accepting:
            self.error = EngineError("the constraint is at a point where no token of the model may follow")
        return torch.from_numpy(ids)

    def accept(self, token: int) -> None:
        """Go on over a token that was sampled, an allowed one unless the text is free."""
        if self.is_free and token not in self._begins:
            return
        self.is_free = False
        if token in self._stop_ids:
            self.is_over = True
            return
        self._state.consume_token(token)
        self.is_over = not self._has_failed() and self._state.is_stopped()

    def _has_failed(self) -> bool:
        if self._state.is_error():
            self.error = EngineError(f"the constraint cannot be kept to: {_one_line(self._state.get_error())}")
        return self.error is not None


class Compiler:
    """Compiles constraints one after the other on one thread with a deep stack, and caches the last ones."""

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._worker = ThreadPoolExecutor(1, "holdfast-constraint")
        self._is_started = False
        # the worker's own
        self._tokens: LLTokenizer | None = None
        self._is_text = np.zeros(0, np.bool_)
        self._kept: dict[Constraint, LLMatcher] = {}  # at their start, those used last at the end

    def submit(
        self, constraint: Constraint, stop_ids: frozenset[int], begins: frozenset[int] = frozenset()
    ) -> Future[Matcher]:
        """A matcher at the start of the constraint, or EngineError: one line with the reason."""
        if not self._is_started:
            usual = threading.stack_size(STACK_BYTES)
            self._worker.submit(int)  # starts the thread
            threading.stack_size(usual)
            self._is_started = True
        return self._worker.submit(self._matcher, constraint, stop_ids, begins)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _matcher(self, constraint: Constraint, stop_ids: frozenset[int], begins: frozenset[int]) -> Matcher:
        state = self._kept.pop(constraint, None) or self._compile(constraint)
        self._kept[constraint] = state
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return Matcher(state.deep_copy(), self._text_of(constraint), stop_ids, begins)

    def _text_of(self, constraint: Constraint) -> np.ndarray:
        """Which tokens may spell its text, bool [V]."""
        if not constraint.control:
            return self._is_text
        found = self._is_text.copy()
        found[[i for i in constraint.control if i < self._vocab_size]] = True
        return found

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokens is None:
            self._tokens = self._read_tokens()
        try:
            state = LLMatcher(self._tokens, _source(constraint), log_level=0, limits=LIMITS)
        except ValueError as e:  # the JSON itself; what is wrong in a schema or grammar is the matcher's state
            raise EngineError(f"the {constraint.kind} is not possible: {_one_line(str(e))}") from None
        first = Matcher(state, self._text_of(constraint), frozenset())
        if not state.is_error():
            first.allowed()  # the first steps are the most expensive, and find what no text satisfies
        if first.is_over:
            raise EngineError(f"the {constraint.kind} allows only the empty text")
        ahead = state.deep_copy()
        if not ahead.is_error() and ahead.consume_tokens(ahead.compute_ff_tokens()):
            ahead.compute_bitmask()
        if ahead.is_error():
            raise EngineError(f"the {constraint.kind} is not possible: {_one_line(ahead.get_error())}")
        if first.error is not None:
            raise first.error
        return state

    def _read_tokens(self) -> LLTokenizer:
        tokenizer = self._tokenizer()
        self._is_text = np.ones(self._vocab_size, np.bool_)
        self._is_text[[i for i in tokenizer.special_ids if i < self._vocab_size]] = False
        size = max(self._vocab_size, tokenizer.vocab_size)
        known = LLTokenizer(tokenizer.to_json(), n_vocab=size, eos_token=tokenizer.eos_id)
        return LLTokenizer(TokenizerWrapper(_Spelled(tokenizer, known)), n_vocab=size)


class _Spelled:
    """A tokenizer as llguidance takes it, in which control tokens are the text that they spell: to llguidance's own
    reader, text in angle brackets is no text."""

    def __init__(self, tokenizer: Tokenizer, known: LLTokenizer):
        self.tokens = [known.decode_bytes([token]) for token in range(known.vocab_size)]
        self.eos_token_id, self.special_token_ids = tokenizer.eos_id, [tokenizer.eos_id]
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # it is tried whether bytes would do
            raise TypeError("text is wanted")
        return self._tokenizer.encode(text)


def _source(constraint: Constraint) -> str:
    """What llguidance compiles; raises ValueError."""
    if constraint.kind == "JSON schema":
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_STYLE)  # type: ignore[arg-type]
    if constraint.kind == "regular expression":
        return LLMatcher.grammar_from_regex(constraint.text)
    return LLMatcher.grammar_from_lark(constraint.text)


def _check_multiples(constraint: Constraint) -> None:
    """Refuse `multipleOf` of which an automaton would be too large, in a grammar's %json too."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), constraint.text)
    if constraint.kind == "regular expression" or "multipleOf" not in text:
        return
    try:
        numbers = [Decimal(number).normalize() for number in MULTIPLE.findall(text)]
        finite = [number for number in numbers if number.is_finite() and number]
        exponents = [int(number.as_tuple().exponent) for number in finite]
        if any(abs(exponent) > 20 for exponent in exponents):
            raise EngineError("multipleOf in a JSON schema must have at most 20 digits")
        scale = Decimal(10) ** -min([*exponents, 0])
        least = math.lcm(*(abs(int(number * scale)) for number in finite))
    except InvalidOperation:
        raise EngineError("multipleOf in a JSON schema must be a number") from None
    if least > MOST_MULTIPLE:
        raise EngineError(f"multipleOf in a JSON schema: the least common multiple is {least}, at most {MOST_MULTIPLE}")


def _pattern_chars(schema: object) -> int:
    """The length of all regular expressions in a schema."""
    total, rest = 0, [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, list | tuple):
            rest += part
        elif isinstance(part, dict):
            rest += part.values()
            total += len(part["pattern"]) if isinstance(part.get("pattern"), str) else 0
            patterns = part.get("patternProperties")
            total += sum(map(len, map(str, patterns))) if isinstance(patterns, dict) else 0
    return total


def _one_line(message: str) -> str:
    """The message of llguidance, without its drawing of the position and its advice to raise limits."""
    if TOO_COMPLEX.search(message):
        return "it is too complex: make it smaller or shallower"
    lines = [line.strip() for line in message.replace("<non-verbose/>", "").strip().splitlines()]
    if lines == ["NoExtensionBias"]:
        return "no text satisfies it"
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return " ".join([lines[0][:200], *reasons])[:400]
