"""The DeepSeek-V4 engine. Other packages import only the names listed here."""

from engine.errors import CheckpointError, ContextFull, EngineError
from engine.tokenizer import TextStream, Tokenizer
from engine.vocab import train_tokenizer

__all__ = [
    "CheckpointError",
    "ContextFull",
    "EngineError",
    "TextStream",
    "Tokenizer",
    "train_tokenizer",
]
