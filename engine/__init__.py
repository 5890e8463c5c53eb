"""The DeepSeek-V4 engine. Other packages import only the names listed here."""

from holdfast.engine.bench.inspect import inspect_model
from holdfast.engine.bench.real_shapes import run_random_bench
from holdfast.engine.bench.speed import run_bench
from holdfast.engine.checkpoint.config import ModelConfig
from holdfast.engine.checkpoint.writer import write_checkpoint
from holdfast.engine.constraint import Constraint
from holdfast.engine.engine import Engine
from holdfast.engine.errors import CheckpointError, ContextFull, EngineError, StateError
from holdfast.engine.sampling import SamplingParams
from holdfast.engine.sequence import Sequence, Stored
from holdfast.engine.settings import EngineConfig
from holdfast.engine.snapshot import PageKey, Snapshot
from holdfast.engine.state.content_ids import Chain, Roll
from holdfast.engine.tokenizer import TextStream, Tokenizer, TooManyTokens

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
    "write_checkpoint",
]
