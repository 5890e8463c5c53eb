"""An engine with pocket on an event loop that stands between calls, and constrained requests on it."""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import holdfast.agent
from holdfast.engine import Constraint, Engine, EngineConfig, SamplingParams, Sequence

POCKET = Path(holdfast.agent.__file__).parent / "pocket" / "model"
TIMEOUT_S = 600  # a request that is never answered must fail, not hang


class Bench:
    """One engine and the event loop it belongs to."""

    def __init__(self, num_drafts: int = 3):
        self.runner = asyncio.Runner()
        config = EngineConfig(device="cpu", memory_bytes=2**26, threads=1, num_drafts=num_drafts)
        self.opened: AbstractAsyncContextManager[Engine] = Engine.open(POCKET, config)
        self.engine = self.runner.run(self.opened.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, TIMEOUT_S))

    def close(self) -> None:
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()

    def text(self, tokens: list[int]) -> str:
        return self.engine.tokenizer.decode(tokens)

    async def take(self, seq: Sequence, ids: list[int], constraint: Constraint | None, **params: Any) -> list[int]:
        params = {"max_tokens": 300} | params
        return [t async for t in self.engine.extend(seq, ids, SamplingParams(constraint=constraint, **params))]

    async def fresh(self, ids: list[int], constraint: Constraint | None, **params: Any) -> list[int]:
        """The tokens of a new sequence; constrained text that ends before max_tokens is complete."""
        seq = await self.engine.start()
        tokens = await self.take(seq, ids, constraint, **params)
        if constraint is not None and len(tokens) < params.get("max_tokens", 300):
            assert seq.is_complete
        await self.engine.release(seq)
        return tokens

    def sampled(self, constraint: Constraint, **params: Any) -> str:
        """Constrained text after the prompt."""
        tokens = self.run(self.fresh(prompt(self), constraint, **params))
        assert not self.engine.tokenizer.special_ids & set(tokens)
        return self.text(tokens)


def prompt(bench: Bench, text: str = "def open(self, path):\n    return self.files[path]\n") -> list[int]:
    tokenizer = bench.engine.tokenizer
    return [tokenizer.eos_id - 1, *tokenizer.encode(text)]


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


NAME = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": -3, "maximum": 1200}
