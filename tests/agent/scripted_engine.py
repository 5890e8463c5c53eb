"""An engine that says what a test wrote: the API of `engine.Engine`, with a real tokenizer and no model.

A real model cannot be told to write a broken call, to stop in the middle or to fail; this one can. It also keeps what
it was fed. It has no state that could be stored. `python -m tests.agent.scripted_engine ARGS...` runs the real command
line on it, in a separate process.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import holdfast.agent.models.opened
from holdfast.agent.cli.main import main
from holdfast.agent.config import POCKET_DIR
from holdfast.agent.pocket.data import SPECIAL_TOKENS, TOOLS_TEXT, assistant_text, call_text
from holdfast.agent.pocket.vocab import train_tokenizer
from holdfast.engine import Chain, ContextFull, EngineConfig, EngineError, SamplingParams, Tokenizer

HANG, FAIL = -1, -2  # in a reply: wait until cancelled; raise EngineError
Reply = list[tuple[str, bool] | int]


def says(text: str) -> Reply:
    """An answer."""
    return list(assistant_text(text))


def calls(tool_name: str, **arguments: object) -> Reply:
    """A message that is one tool call."""
    return list(call_text(tool_name, arguments))


def raw(text: str, end: bool = True) -> Reply:
    """Protocol text as it stands, control tokens and all."""
    return [(text, True), *([("<｜end▁of▁sentence｜>", True)] if end else [])]


def make_model(directory: Path, replies: Sequence[Reply] = (), max_context: int = 4096) -> Path:
    """A model directory that `ScriptedEngine` opens: a real tokenizer, pocket's encoding and tools, and the script."""
    directory.mkdir(parents=True)
    train_tokenizer(
        ["the quick brown fox: def fox(x): return 1"] * 4, 320, SPECIAL_TOKENS, directory / "tokenizer.json"
    )
    (directory / "config.json").write_text("{}")
    (directory / "encoding").mkdir()
    (directory / "encoding" / "encoding_dsv4.py").write_text(f"TOOLS_TEMPLATE = {TOOLS_TEXT!r}\n")
    (directory / "tools.json").write_text((POCKET_DIR / "tools.json").read_text())  # the scripts are written for these
    (directory / "script.json").write_text(json.dumps({"replies": list(replies), "max_context": max_context}))
    return directory


@dataclass
class ScriptedSequence:
    token_ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    stored: None = None
    chain: Chain = field(default_factory=lambda: Chain(b"scripted", 256))
    dropped_tokens: int = 0
    is_released: bool = False


class ScriptedEngine:
    """`fed` has, for every request, the tokens whose state it had to compute."""

    def __init__(self, directory: Path):
        script = json.loads((directory / "script.json").read_text())
        self.replies: list[Any] = script["replies"]
        self.max_context: int = script["max_context"]
        self.tokenizer = Tokenizer.from_dir(directory)
        self.identity = "scripted"
        self.on_pressure: Any = None
        self.kernels_not_kept = ""
        self.config = EngineConfig()
        self.fed: list[list[int]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: Path, config: object = None, on_compile: object = None
    ) -> AsyncIterator["ScriptedEngine"]:
        yield cls(directory)

    def chain(self, rolls: Any = (), owner: str = "") -> Chain:
        return Chain(b"scripted", 256)

    async def start(self, stored: None = None, owner: str = "") -> ScriptedSequence:
        return ScriptedSequence()

    async def release(self, seq: ScriptedSequence) -> None:
        seq.token_ids, seq.is_released = [], True

    async def load(self, seq: ScriptedSequence) -> None:
        assert not seq.is_released

    async def snapshot(self, seq: ScriptedSequence, is_followed: bool = False) -> None:
        return None

    async def feed(self, seq: ScriptedSequence, ids: list[int], on_prefill: Any = None) -> None:
        seq.token_ids += ids
        self.fed.append(seq.token_ids[seq.num_tokens :])
        seq.num_tokens = len(seq.token_ids)

    async def extend(
        self, seq: ScriptedSequence, ids: list[int], params: SamplingParams, on_prefill: Any = None
    ) -> AsyncGenerator[int, None]:
        if len(seq.token_ids) + len(ids) + params.max_tokens > self.max_context:
            raise ContextFull("more tokens than max_context")
        seq.token_ids += ids
        self.fed.append(seq.token_ids[seq.num_tokens :])
        total = len(self.fed[-1])
        assert total, "nothing to feed"
        on_prefill(total // 2, total)
        await asyncio.sleep(0)
        seq.num_tokens = len(seq.token_ids)
        on_prefill(total, total)
        for token in self._tokens()[: params.max_tokens]:
            if token == HANG:
                await asyncio.Event().wait()
            if token == FAIL:
                raise EngineError("the engine stopped: out of memory")
            seq.num_tokens = len(seq.token_ids)
            seq.token_ids.append(token)
            yield token
            if token in params.stop_ids:
                return

    def _tokens(self) -> list[int]:
        """The next reply; without one, an answer that says so."""
        reply = self.replies.pop(0) if self.replies else says("nothing more in the script")
        ids: list[int] = []
        for piece in reply:
            ids += [piece] if isinstance(piece, int) else self.tokenizer.encode_pieces([(piece[0], piece[1])])
        return ids


if __name__ == "__main__":
    holdfast.agent.models.opened.Engine = ScriptedEngine  # type: ignore[misc,assignment]
    sys.exit(main())
