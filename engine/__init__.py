"""The DeepSeek-V4 engine. Other packages import only the names listed here."""

from engine.bench import run_bench
from engine.chain import Chain, Roll
from engine.checkpoint_writer import write_checkpoint
from engine.config import ModelConfig
from engine.constraint import Constraint
from engine.engine import Engine
from engine.errors import CheckpointError, ContextFull, EngineError, StateError
from engine.inspect import inspect_model
from engine.random_bench import run_random_bench
from engine.sampling import SamplingParams
from engine.sequence import Sequence, Stored
from engine.settings import EngineConfig
from engine.state import PageKey, Snapshot
from engine.tokenizer import TextStream, Tokenizer, TooManyTokens
from engine.vocab import train_tokenizer

__all__ = [
    "Chain",
    "CheckpointError",
    "Constraint",
    "ContextFull",
    "Engine",
    "EngineConfig",
    "EngineError",
    "ModelConfig",
    "PageKey",
    "Roll",
    "SamplingParams",
    "Sequence",
    "Snapshot",
    "StateError",
    "Stored",
    "TextStream",
    "Tokenizer",
    "TooManyTokens",
    "inspect_model",
    "run_bench",
    "run_random_bench",
    "train_tokenizer",
    "write_checkpoint",
]
