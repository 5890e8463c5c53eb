"""Make a byte-level BPE `tokenizer.json` for a small model. Used by the trainer of pocket, never at run time.

The pre-tokeniser splits text so that a word's tokens depend on the word alone: letters by camel case, digits one
by one, punctuation one by one, white space apart. A name then has the same tokens after a space, a quote or a dot,
which is what lets a small model copy it.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d|\n[ \t]*|[ \t]+|[^\sA-Za-z\d]"


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: list[str], path: Path) -> None:
    """Write `path` (tokenizer.json). Special tokens take the ids 0, 1, 2, ... in the order given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
