"""A call that is still being written, read as far as its arguments are certain.

Owns what may be told of a call before its end. Must not know what is done with a damaged one.
"""

import re
from collections.abc import Iterable

from holdfast.agent.encoding.deltas import ArgumentsDelta, Delta, ToolCallBegun, ToolCallParsed, is_json, json_text
from holdfast.agent.encoding.encode import DSML

PARAMETER_END = f"</{DSML}parameter>"
WRAPPERS = ("arguments", "input")
HEAD_OF_CALL = re.compile(rf'<?{DSML}invoke name="([^"\n｜>]*)">')
HEAD_OF_PARAMETER = re.compile(rf'\s*<{DSML}parameter name="([^"\n｜>]+)" string="(true|false)">')


class Delimiters:
    """Finds the first of several strings in a growing text; of those that start together, the longest."""

    def __init__(self, spellings: Iterable[str]):
        longest_first = sorted(spellings, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        self.max_chars = len(longest_first[0])
        self.prefixes = {s[:end] for s in longest_first for end in range(1, len(s))}

    def decided(self, text: str, at: int = 0) -> int:
        """Up to where more text cannot change what is found from `at` on: the rest may still become a delimiter."""
        first = max(at, len(text) - self.max_chars + 1)
        return next((i for i in range(first, len(text)) if text[i:] in self.prefixes), len(text))


VALUE_END = Delimiters([PARAMETER_END])


class CallAhead:
    """Reads a call that is still being written, as far as its arguments are certain. At anything unusual it waits for
    the end: what it has told is always the beginning of what the call turns out to be."""

    def __init__(self, unwraps: bool):
        self._unwraps = unwraps
        self._at = 0  # in the call's text: read up to here
        self._is_begun = self._is_inside = self._waits = False  # inside the value of a text; for the call's end
        self._keys: list[str] = []
        self._num_told = 0  # characters of the arguments

    def read(self, buffer: str, start: int) -> list[Delta]:
        """What is new of the call that begins at `start`."""
        if not self._is_begun:
            head = HEAD_OF_CALL.match(buffer, start)
            if head is None:
                return []
            self._is_begun, self._at = True, head.end() - start
            return [ToolCallBegun(head[1]), *self.read(buffer, start)]
        pieces: list[str] = []
        while not self._waits and (
            piece := self._value(buffer, start) if self._is_inside else self._key(buffer, start)
        ):
            pieces.append(piece)
        return self._told("".join(pieces))

    def rest(self, call: ToolCallParsed) -> list[Delta]:
        """What was not told yet, once the call is whole."""
        begun: list[Delta] = [] if self._is_begun else [ToolCallBegun(call.name)]
        return [*begun, *self._told(call.arguments_json[self._num_told :])]

    def _told(self, text: str) -> list[Delta]:
        self._num_told += len(text)
        return [ArgumentsDelta(text)] if text else []

    def _value(self, buffer: str, start: int) -> str:
        at = start + self._at
        end = buffer.find(PARAMETER_END, at)
        self._is_inside = end < 0
        until = VALUE_END.decided(buffer, at) if end < 0 else end
        self._at = until - start + (0 if end < 0 else len(PARAMETER_END))
        return json_text(buffer[at:until])[1:-1] + ("" if end < 0 else '"')

    def _key(self, buffer: str, start: int) -> str:
        head = HEAD_OF_PARAMETER.match(buffer, start + self._at)
        if head is None:
            return ""
        key, is_text = head[1], head[2] == "true"
        end = buffer.find(PARAMETER_END, head.end())
        self._waits = key in self._keys or (self._unwraps and not self._keys and key in WRAPPERS)
        if self._waits or (end < 0 and not is_text):
            return ""
        value = buffer[head.end() : end]
        if not is_text and not is_json(value):
            self._waits = True
            return ""
        before = f"{', ' if self._keys else '{'}{json_text(key)}: "
        self._keys.append(key)
        self._is_inside = is_text
        self._at = (head.end() if is_text else end + len(PARAMETER_END)) - start
        return before + ('"' if is_text else value)
