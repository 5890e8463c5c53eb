"""Content ids of pages and tails: the same id means the same state, bit for bit.

A page's id covers everything its rows depend on: the layout (weights, tokenizer, numerics, format), the tokens of the
page and, through the parent's id, all tokens before it, and every roll: what was dropped changes what later tokens saw.
An id that is not public also depends on the owner: else response times would reveal to one user what another has sent.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ID_BYTES = 16


@dataclass(frozen=True)
class Roll:
    """From `position` on, a sequence sees nothing before `first_kept` but its pinned prefix, moved there.

    `first_kept` is a multiple of the page; the prefix's `head_tokens` sit right before it.
    """

    position: int
    first_kept: int
    head_tokens: int

    @property
    def dropped_tokens(self) -> int:
        """The absolute position of the first token that is still seen: where the moved prefix begins."""
        return self.first_kept - self.head_tokens


def digest(*parts: bytes) -> bytes:
    """blake2b over parts whose boundaries count."""
    h = hashlib.blake2b(digest_size=ID_BYTES)
    for part in parts:
        h.update(len(part).to_bytes(8, "little") + part)
    return h.digest()


class Chain:
    """Page ids of a growing list of tokens. `page_ids[n]` covers the tokens below (n + 1) * page_tokens.

    Only a beginning of `public` has the same ids for all owners; an empty owner is the one that a directory has alone.
    """

    def __init__(self, layout: bytes, page_tokens: int, owner: str = "", public: tuple[int, ...] = ()):
        self.layout, self.page_tokens, self.owner, self.public = layout, page_tokens, owner, public
        self.page_ids: list[bytes] = []
        self.rolls: list[Roll] = []

    def extend(self, ids: Sequence[int], num_tokens: int) -> None:
        """Cover the full pages of the first `num_tokens` ids; what is covered already must not have changed."""
        for number in range(len(self.page_ids), num_tokens // self.page_tokens):
            start, end = number * self.page_tokens, (number + 1) * self.page_tokens
            self.page_ids.append(digest(self.parent(number), *self._content(ids, start, end, end)))

    def parent(self, number: int) -> bytes:
        return self.page_ids[number - 1] if number else self.layout

    def tail_id(self, ids: Sequence[int], position: int, is_rolled: bool = True) -> bytes:
        """Id of the state after `position` tokens; `is_rolled`: also after the rolls at exactly that position."""
        self.extend(ids, position)
        number = position // self.page_tokens
        end = position + 1 if is_rolled else position
        return digest(b"tail", self.parent(number), *self._content(ids, number * self.page_tokens, position, end))

    def moved_page_id(self, number: int, roll: Roll) -> bytes:
        """Id of prefix page `number` in the place where a roll moved it."""
        return digest(b"moved", self.page_ids[number], roll.dropped_tokens.to_bytes(8, "little"))

    def _content(self, ids: Sequence[int], start: int, end: int, rolls_before: int) -> list[bytes]:
        """Tokens of [start, end), the rolls at positions of [start, rolls_before), and whose they are."""
        rolls = [r for r in self.rolls if start <= r.position < rolls_before]
        marks = [f"{r.position} {r.first_kept} {r.head_tokens}".encode() for r in rolls]
        is_public = end <= len(self.public) and tuple(ids[:end]) == self.public[:end]
        owner = [b"owner", self.owner.encode()] if self.owner and not is_public else []
        return [np.asarray(ids[start:end], np.int64).tobytes(), *marks, *owner]
