"""Text to token ids and back, over a checkpoint's `tokenizer.json`.

Owns the rule that text is inert: `encode` never yields a control token, independent of the text, because it runs on a
copy of the tokenizer that has no added tokens. Only `encode_protocol`, for text the program itself wrote, knows them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from holdfast.engine.checkpoint.files import MAX_TOKENIZER_BYTES, read_file
from holdfast.engine.errors import EngineError

EOS_TEXT = "<｜end▁of▁sentence｜>"
PIECE_CHARS = 2**15  # of a long text encoded at a time: the interpreter is free meanwhile, and memory stays small
LONG_CHARS = 2**20  # a stretch without a place to cut: it is counted before it is encoded, if there is a limit
SLACK = 1.1  # a count of arbitrary pieces may be so much too high
# Where pre-tokenizers always cut, so that both sides can be encoded alone: before a line that begins with a letter, and
# between words. It is tried with `CUT_PROBES` whether that is so for a tokenizer.
CUT = re.compile(r"(?<=\n)(?=[^\W\d_])|(?<=[a-z])(?= [a-z])")
CUT_PROBES = [
    (left, right) for left in ("a", "ab", "Ab", "1a", "'a", "_a") for right in (" b", " ba b", " b.", " b1")
] + [
    (left, right)
    for left in ("\n", "a\n", "\n\n", " \n", "\n \n", ".\n", ");\r\n", "\t\n\n\n", "A\n", "1\n", "é\n", "字\n")
    for right in ("a", "A", "Ab", "é", "字", "ab c\n")
]


class TooManyTokens(EngineError):
    """A text has more tokens than are wanted; `num_tokens` is about how many."""

    def __init__(self, most: int, num_tokens: int):
        super().__init__(f"the text has about {num_tokens} tokens, and {most} are the most that fit")
        self.num_tokens = num_tokens


class Tokenizer:
    """Text to ids: `encode` is for text from outside, `encode_protocol` for the chat protocol's.

    `decode` inverts both.
    """

    def __init__(self, spec: dict[str, Any]):
        """`spec` is the parsed content of a tokenizer.json."""
        self._full = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._plain = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
        self.special_ids = frozenset(t["id"] for t in spec.get("added_tokens", []))
        self.vocab_size = self._full.get_vocab_size(with_added_tokens=True)
        self._can_cut = all(self._whole(a) + self._whole(b) == self._whole(a + b) for a, b in CUT_PROBES)

    @classmethod
    def from_dir(cls, directory: Path) -> "Tokenizer":
        """Read `directory/tokenizer.json`; raises EngineError when it is missing or unreadable."""
        path = directory / "tokenizer.json"
        try:
            return cls(json.loads(read_file(path, MAX_TOKENIZER_BYTES).decode()))
        except FileNotFoundError:
            raise EngineError(f"{directory} has no tokenizer.json: it can score ids but not text") from None
        except EngineError:
            raise
        except Exception as e:  # tokenizers raises plain Exception for a file it cannot use
            raise EngineError(f"{path} cannot be used: {e}") from None

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """Ids of plain text; spellings of control tokens in it stay ordinary text.

        Raises TooManyTokens above `most`, long before all of a long text is encoded.
        """
        ids: list[int] = []
        for start, end in self._pieces(text):
            piece = text[start:end]
            if most is not None and len(piece) > LONG_CHARS:
                self._count(piece, len(ids), most)
            ids += self._whole(piece)
            if most is not None and len(ids) > most:
                raise TooManyTokens(most, len(ids) * len(text) // end)
        return ids

    def encode_protocol(self, text: str) -> list[int]:
        """Ids of text written by the program: added tokens are recognised."""
        return self._full.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], most: int | None = None) -> list[int]:
        """Ids of (text, is_protocol) pieces, each tokenised on its own. Raises TooManyTokens above `most`."""
        ids: list[int] = []
        pieces = list(pieces)
        for number, (text, is_protocol) in enumerate(pieces):
            left = None if most is None else most - len(ids)
            try:
                ids += self.encode_protocol(text) if is_protocol else self.encode(text, left)
            except TooManyTokens as e:
                rest = sum(len(other) for other, _ in pieces[number + 1 :]) * e.num_tokens // max(len(text), 1)
                raise TooManyTokens(most or 0, len(ids) + e.num_tokens + rest) from None
        return ids

    def _whole(self, text: str) -> list[int]:
        # of a batch, even of one, the interpreter is free while it is encoded
        return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Where to cut a long text so that its pieces have the tokens of the whole."""
        start = at = 0
        while self._can_cut and len(text) - start > PIECE_CHARS and len(text) > at:
            at = max(at, start + PIECE_CHARS)
            cut = CUT.search(text, at, at + PIECE_CHARS)  # a search holds the interpreter: never for long
            at += PIECE_CHARS
            if cut is not None:
                yield start, cut.start()
                start = cut.start()
        yield start, len(text)

    def _count(self, text: str, num_before: int, most: int) -> None:
        """Raises TooManyTokens when a stretch has more for certain; cuts may split some of its tokens."""
        num_tokens = num_before
        for start in range(0, len(text), PIECE_CHARS):
            batch = self._plain.encode_batch_fast([text[start : start + PIECE_CHARS]], add_special_tokens=False)
            num_tokens += len(batch[0])
            if num_tokens > SLACK * most + 16:
                share = len(text) / min(start + PIECE_CHARS, len(text))
                raise TooManyTokens(most, num_before + int((num_tokens - num_before) * share))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens spelled out."""
        return self._full.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        """All of it, as a tokenizer.json."""
        return self._full.to_str()

    def token_id(self, text: str) -> int | None:
        """Id of one token by its exact spelling, or None."""
        return self._full.token_to_id(text)

    @property
    def eos_id(self) -> int:
        """End of sentence; raises EngineError when this vocabulary has none."""
        token = self.token_id(EOS_TEXT)
        if token is None:
            raise EngineError(f"tokenizer.json has no token {EOS_TEXT}")
        return token

    def stream(self) -> "TextStream":
        return TextStream(self._full)


class TextStream:
    """Decodes one token at a time; holds back bytes of a character that is not complete yet."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token: int) -> str:
        """Text that this token completes, possibly empty."""
        return self._stream.step(self._tokenizer, token) or ""
