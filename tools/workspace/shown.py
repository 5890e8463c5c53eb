"""What the model was shown of files: a digest of each, and the lines that it saw whole.

Owns when a line number still means the line that the model saw. Must not know how a file is read.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

Lines = tuple[int, int]  # the first and the last of a stretch, counted from 1


@dataclass(frozen=True)
class Seen:
    """A file as it was shown last: a digest of its bytes, and the lines that were shown whole, in order and apart."""

    digest: int
    lines: tuple[Lines, ...] = ()

    def has(self, first: int, last: int) -> bool:
        """Whether all of these lines were shown; no line is (`last` before `first`)."""
        return last < first or any(start <= first and last <= end for start, end in self.lines)


class Shown:
    """By path. What is added since the last `take` is what has to outlive the process."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._newly: dict[str, Seen] = {}
        self._before: dict[str, Seen | None] = {}  # of the paths in `_newly`
        self._checksums: dict[str, array[int]] = {}  # of every line of a file as it was shown, in this process alone

    def get(self, path: str) -> Seen | None:
        return self._seen.get(path)

    def set(self, seen: Mapping[str, Seen]) -> None:
        """Begin from what was shown before: the sum of what `take` gave."""
        self._seen = dict(seen)
        self._newly.clear()
        self._before.clear()
        self._checksums.clear()

    def note(self, path: str, digest: int, text: str, lines: Iterable[Lines] = ()) -> None:
        """The file in this state was shown, and these lines of it whole."""
        old = self._seen.get(path)
        is_new = old is None or old.digest != digest
        known = () if old is None or is_new else old.lines
        seen = Seen(digest, joined([*known, *lines]))
        if is_new:
            self._checksums.pop(path, None)
        if seen.lines and path not in self._checksums:
            self._checksums[path] = _checksums(text)
        if seen != old:
            self._before.setdefault(path, old)
            self._seen[path] = self._newly[path] = seen

    def rename(self, path: str, to: str) -> None:
        """The file has another path now."""
        seen, checksums = self._seen.get(path), self._checksums.pop(path, None)
        if seen is not None:
            self._seen[to] = self._newly[to] = seen
            if checksums is not None:
                self._checksums[to] = checksums

    def take(self) -> dict[str, Seen]:
        """What was noted since the last time."""
        newly, self._newly = self._newly, {}
        self._before.clear()
        return newly

    def take_back(self) -> None:
        """What was noted since the last `take` was not shown after all."""
        for path, old in self._before.items():
            self._checksums.pop(path, None)
            self._seen.pop(path, None)
            if old is not None:
                self._seen[path] = old
        self._newly.clear()
        self._before.clear()

    def still_are(self, path: str, text: str, first: int, last: int) -> bool:
        """Whether lines of a file that changed since it was shown are the same lines under the same numbers: nothing up to them has
        changed, or nothing from them on, in a file with as many lines."""
        old = self._checksums.get(path)
        if old is None:
            return False
        new = _checksums(text)
        if _num_same(old, new) >= max(last, first):
            return True
        return len(old) == len(new) and _num_same(reversed(old), reversed(new)) >= len(new) - min(first, last) + 1


def joined(lines: Iterable[Lines]) -> tuple[Lines, ...]:
    """Stretches in order, those that touch as one."""
    result: list[Lines] = []
    for first, last in sorted(lines):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        elif first <= last:
            result.append((first, last))
    return tuple(result)


def moved(lines: Iterable[Lines], spans: Iterable[tuple[int, int, int]]) -> list[Lines]:
    """Stretches as they are numbered after a change. `spans` are the lines that went (first, last) and how many came for them, in
    order; what came is not among the result."""
    pieces, result = list(lines), []
    shift = 0
    for first, last, num_new in spans:
        rest = []
        for start, end in pieces:
            if start < first:
                result.append((start + shift, min(end, first - 1) + shift))
            if end > last:
                rest.append((max(start, last + 1), end))
        pieces, shift = rest, shift + num_new - (last - first + 1)
    return [*result, *((start + shift, end + shift) for start, end in pieces)]


def _checksums(text: str) -> "array[int]":
    return array("q", map(hash, text.split("\n")))


def _num_same(one: Iterable[int], other: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
