"""Text to token ids and back, over a checkpoint's `tokenizer.json`.

Owns the rule that text is inert: `encode` never yields a control token, whatever the text says, because it runs on a
copy of the tokenizer that has no added tokens. Only `encode_protocol`, for text the program itself wrote, knows them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers.decoders import DecodeStream

from engine.errors import EngineError
from engine.files import MAX_TOKENIZER_BYTES, read_file

EOS_TEXT = "<｜end▁of▁sentence｜>"


class Tokenizer:
    """`encode` is for anybody's text, `encode_protocol` for our own; both give ids that `decode` turns back."""

    def __init__(self, spec: dict):
        """`spec` is the parsed content of a tokenizer.json."""
        self._full = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._plain = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
        self.special_ids = frozenset(t["id"] for t in spec.get("added_tokens", []))
        self.vocab_size = self._full.get_vocab_size(with_added_tokens=True)

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

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; spellings of control tokens in it stay ordinary text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_protocol(self, text: str) -> list[int]:
        """Ids of text written by the program: added tokens are recognised."""
        return self._full.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of (text, is_protocol) pieces, each tokenised on its own."""
        ids: list[int] = []
        for text, is_protocol in pieces:
            ids += self.encode_protocol(text) if is_protocol else self.encode(text)
        return ids

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
