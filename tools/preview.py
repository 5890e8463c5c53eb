"""What an edit would change, as lines for the person who decides about it.

Owns the format. Must not know how places are found (matching), nor who is asked.
"""

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice

from holdfast.tools.workspace.workspace import split_lines

MAX_LINES = 200
MAX_LINE_CHARS = 500
MAX_CELLS = 40_000  # lines removed times lines added: above it a stretch is shown as all removed, then all added

Place = tuple[int, int, str]  # where a replaced stretch of the old text begins and ends, and what comes for it


def preview(old: str, places: Iterable[Place]) -> tuple[str, ...]:
    """Each line that goes as `{number} -{line}` and each that comes as `{number} +{line}`; at most 200, and what is cut is said."""
    lines = list(islice(_changes(old, places), MAX_LINES + 1))
    return (*lines[:MAX_LINES], *(["(more lines change)"] if len(lines) > MAX_LINES else []))


def _changes(old: str, places: Iterable[Place]) -> Iterator[str]:
    number, counted_to, num_added = 1, 0, 0
    for start, before, after in _stretches(old, places):
        number, counted_to = number + old.count("\n", counted_to, start), start
        gone, come = split_lines(before), split_lines(after)
        for gone_from, gone_to, come_from, come_to in _different(gone, come):
            yield from (f"{number + n} -{_cut(gone[n])}" for n in range(gone_from, gone_to))
            yield from (f"{number + num_added + n} +{_cut(come[n])}" for n in range(come_from, come_to))
        num_added += len(come) - len(gone)


def _stretches(old: str, places: Iterable[Place]) -> Iterator[tuple[int, str, str]]:
    """Whole lines with what is replaced in them: where they begin, and what they are before and after."""
    start = end = at = 0
    pieces: list[str] = []
    for place_start, place_end, new in places:
        if place_start >= end:
            if pieces:
                yield start, old[start:end], "".join([*pieces, old[at:end]])
            start = at = old.rfind("\n", 0, place_start) + 1
            pieces = []
        pieces += [old[at:place_start], new]
        at = place_end
        if place_end >= end:  # else it ends on the same line as the one before
            end = old.find("\n", place_end) + 1 or len(old)
    if pieces:
        yield start, old[start:end], "".join([*pieces, old[at:end]])


def _different(gone: list[str], come: list[str]) -> Iterator[tuple[int, int, int, int]]:
    if len(gone) * len(come) > MAX_CELLS:
        yield 0, len(gone), 0, len(come)
        return
    for tag, *ranges in difflib.SequenceMatcher(None, gone, come, autojunk=False).get_opcodes():
        if tag != "equal":
            yield ranges[0], ranges[1], ranges[2], ranges[3]


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " …(cut)"
