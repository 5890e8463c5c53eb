"""The embedded model, end to end: the real command, the real engine, the real tools, on a small repository."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.agent.config import POCKET_DIR
from holdfast.agent.pocket.data import OPENING
from holdfast.agent.pocket.phrases import DECLINE_REPLY
from holdfast.agent.session.turn import SYSTEM_TEXT
from holdfast.engine import Engine, EngineConfig, SamplingParams
from tests.agent.real_session import SOURCE, make_workspace

ROOT = Path(__file__).parents[3]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "ws")


def run(workspace: Path, prompt: str, *options: str, home: Path | None = None, code: int = 0) -> list[dict[str, Any]]:
    """The events of one `holdfast run --json` in its own process; runs on a workspace share a data directory."""
    command = [sys.executable, "-m", "holdfast.agent", "run", prompt, "--workspace", str(workspace), "--json", *options]
    env = {**os.environ, "HOLDFAST_HOME": str(home or workspace.parent / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def answer(events: list[dict[str, Any]]) -> str:
    return next(e["text"] for e in events if e["type"] == "turn_done").strip()


def test_the_question_of_the_readme(tmp_path: Path) -> None:
    events = run(ROOT, "where is Session.turn defined?", "--new", home=tmp_path / "home")
    call = next(e for e in events if e["type"] == "tool_call")
    assert (call["name"], json.loads(call["arguments"])) == ("find_symbol", {"name": "Session.turn"})
    line = 1 + (ROOT / "agent" / "session" / "session.py").read_text().split("async def turn(")[0].count("\n")
    assert answer(events) == f"Session.turn is defined at agent/session/session.py:{line}."
    assert answer(events) in (ROOT / "README.md").read_text()


def test_a_fact_told_in_one_process_is_known_in_the_next(workspace: Path) -> None:
    run(workspace, "remember that the staging port is 4711")
    events = run(workspace, "what is the staging port?")
    assert answer(events) == "The staging port is 4711."
    usage = next(e["usage"] for e in events if e["type"] == "turn_done")
    assert usage["from_disk"] > 0 and usage["prefilled_again"] == 0


def test_a_rename_changes_the_file_only_when_it_is_allowed(workspace: Path) -> None:
    prompt = "rename load_page to fetch_page in net/fetcher.py"
    run(workspace, prompt, "--new", code=3)
    assert (workspace / "net" / "fetcher.py").read_text() == SOURCE
    events = run(workspace, prompt, "--new", "--approve", "edit")
    assert answer(events) == "Replaced load_page with fetch_page in net/fetcher.py: 1 replacement."
    assert (workspace / "net" / "fetcher.py").read_text() == SOURCE.replace("load_page", "fetch_page")


def test_what_it_cannot_do_it_says_in_one_sentence(workspace: Path) -> None:
    events = run(workspace, "write a poem", "--new")
    assert answer(events) == DECLINE_REPLY and not any(e["type"] == "tool_call" for e in events)


def test_it_is_trained_on_the_prompt_that_the_agent_sends() -> None:
    assert OPENING[1] == (SYSTEM_TEXT, False)


@pytest.mark.parametrize("numerics", ["plain", "compact"])
def test_bits_do_not_depend_on_chunks_drafts_or_neighbours(numerics: str) -> None:
    """Prefill = chunked prefill = any batch, bitwise; greedy tokens the same with and without drafts and neighbours."""

    async def measure(chunk: int, num_drafts: int, neighbours: int) -> tuple[torch.Tensor, list[int]]:
        config = EngineConfig(numerics=numerics, prefill_chunk=chunk, num_drafts=num_drafts, page_tokens=256)
        async with Engine.open(POCKET_DIR, config) as engine:
            ids = engine.tokenizer.encode(SOURCE * 4)[:400]

            async def decode(prompt: list[int]) -> list[int]:
                async with aclosing(
                    engine.extend(await engine.start(), prompt, SamplingParams(max_tokens=24))
                ) as tokens:
                    return [token async for token in tokens]

            others = [decode(ids[i : 60 * i + 40]) for i in range(neighbours)]
            scores, tokens, *_ = await asyncio.gather(engine.score(ids), decode(ids), *others)
            return scores, tokens

    expected = asyncio.run(measure(512, 0, 0))
    for chunk, num_drafts, neighbours in ((7, 0, 0), (64, 3, 0), (512, 3, 5), (100, 0, 5)):
        scores, tokens = asyncio.run(measure(chunk, num_drafts, neighbours))
        assert torch.equal(scores, expected[0]) and tokens == expected[1], (chunk, num_drafts, neighbours)
