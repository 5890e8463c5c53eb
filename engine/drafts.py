"""Guesses of what comes next, for one step to verify: text that repeats an earlier stretch of the sequence.

A coding agent copies names, paths and lines all the time. Looking up where the last tokens stood before costs nothing,
and a step over four rows costs less than two steps over one, so a guess that holds is a cheap token. A guess never
changes what is sampled: it is kept only where sampling gives that very token.
"""

REACH_TOKENS = 16_384  # how far back a repeat is looked for
NGRAMS = (3, 2)  # longest first


class Lookup:
    """Where each n-gram of a growing list of tokens ended last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the last occurrence of the last n-gram."""
        self._known = max(min(self._known, len(tokens)), len(tokens) - REACH_TOKENS)  # tokens may have been taken back
        guess: list[int] = []
        for n in NGRAMS:
            end = self._ends.get(tuple(tokens[-n:]), 0)
            if 0 < end < len(tokens) and tokens[end - n : end] == tokens[-n:]:
                guess = tokens[end : end + most]
                break
        if len(self._ends) > 4 * len(NGRAMS) * REACH_TOKENS:
            self._ends.clear()
            self._known = max(0, len(tokens) - REACH_TOKENS)
        for end in range(self._known + 1, len(tokens) + 1):
            for n in NGRAMS:
                if end >= n:
                    self._ends[tuple(tokens[end - n : end])] = end
        self._known = len(tokens)
        return guess
