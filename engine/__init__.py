"""The DeepSeek-V4 engine. Other packages import only the names listed here."""

from engine.engine import Engine, EngineConfig
from engine.errors import CheckpointError, ContextFull, EngineError
from engine.sampling import SamplingParams
from engine.sequence import Sequence
from engine.tokenizer import TextStream, Tokenizer
from engine.vocab import train_tokenizer

__all__ = [
    "CheckpointError",
    "ContextFull",
    "Engine",
    "EngineConfig",
    "EngineError",
    "SamplingParams",
    "Sequence",
    "TextStream",
    "Tokenizer",
    "train_tokenizer",
]
