"""Where a text stands in a file: the matching rule of `edit` and `search`. Owns what a whole identifier is, and that a line end is LF or CRLF.

All of it is linear in the file's length, whatever is looked for: the file and the text come from strangers.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from itertools import islice

MAX_COUNTED = 10_000  # matches: enough to say that they are too many
COUNTING_COST_CHARS = 2**22
MAX_HINTS = 20
HINT_COST_CHARS = 2**26  # that all tries for a hint may look at

IDENTIFIER = re.compile(r"[0-9A-Za-z_]+")
# Letters that go on an identifier: those of scripts that put spaces between words. A Chinese character beside a name is not part of it.
WORD = "0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f"


def whole_identifier(text: str) -> re.Pattern[str] | None:
    """What finds `text` where it is not a part of a longer identifier; None when it is no ASCII identifier."""
    return re.compile(rf"(?<![{WORD}]){text}(?![{WORD}])") if IDENTIFIER.fullmatch(text) else None


class Matches:
    """Occurrences of `old` in `text`."""

    def __init__(self, old: str, text: str):
        self._text, self._old = text, old.replace("\r\n", "\n")
        self._plain = text.replace("\r\n", "\n")  # what is looked for is found here, and then has its place in the file
        self._pattern = whole_identifier(self._old)

    def count(self) -> int:
        """How many there are, up to `most`, overlapping ones too: text that overlaps itself is as ambiguous as text found twice."""
        return sum(1 for _ in islice(self._starts(1), self.most))

    @property
    def most(self) -> int:
        """How many are counted. To look for a text once more costs its length once more."""
        return min(MAX_COUNTED, max(MAX_HINTS + 2, COUNTING_COST_CHARS // len(self._old)))

    def lines(self, limit: int) -> list[int]:
        """Numbers of the first lines on which one begins, overlapping ones too."""
        numbers: list[int] = []
        line, counted_to = 1, 0
        for start in islice(self._starts(1), self.most):
            line += self._plain.count("\n", counted_to, start)
            counted_to = start
            if numbers[-1:] != [line]:
                numbers.append(line)
            if len(numbers) == limit:
                break
        return numbers

    @property
    def first(self) -> int:
        """Where the first one begins."""
        return self._place(next(self._starts(1)))

    def num_apart(self) -> int:
        """How many there are, one after the other: what `replaced` replaces."""
        return sum(1 for _ in self._starts(len(self._old))) if self._pattern else self._plain.count(self._old)

    def places(self) -> Iterator[tuple[int, int]]:
        """Where each of them begins and ends in the file."""
        for start in self._starts(len(self._old)):
            yield self._place(start), self._place(start + len(self._old))

    def replaced(self, new: str) -> str:
        """The text with `new` in place of each."""
        if self._pattern is not None:
            return self._pattern.sub(lambda match: new, self._text)
        if not self._joined or not {"\r", "\n"} & set(self._old):
            return self._text.replace(self._old, new)
        pieces, end = [], 0
        for start in self._starts(len(self._old)):
            pieces.append(self._text[end : self._place(start)])
            end = self._place(start + len(self._old))
        return new.join([*pieces, self._text[end:]])

    def _starts(self, step: int) -> Iterator[int]:
        if self._pattern is not None:  # cannot overlap itself
            yield from (match.start() for match in self._pattern.finditer(self._plain))
            return
        start = self._plain.find(self._old)
        while start >= 0:
            yield start
            start = self._plain.find(self._old, start + step)

    @cached_property
    def _joined(self) -> "array[int]":
        """Where CRLFs are, as LF in the plain text."""
        crlfs = re.finditer("\r\n", self._text) if len(self._plain) < len(self._text) else ()
        return array("q", (crlf.start() - n for n, crlf in enumerate(crlfs)))

    def _place(self, position: int) -> int:
        return position + bisect_left(self._joined, position)


def nearest_line(old: str, text: str) -> tuple[int, str] | None:
    """Number and text of the first line with the longest line of `old` that exists in the file, spaces around it aside."""
    wanted = sorted({line.strip() for line in old.split("\n")} - {""}, key=lambda line: (-len(line), line))
    for part in wanted[: max(1, min(MAX_HINTS, HINT_COST_CHARS // (len(text) + 1)))]:
        if (at := text.find(part)) >= 0:
            start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
            return text.count("\n", 0, at) + 1, text[start : end if end >= 0 else None].removesuffix("\r")
    return None
