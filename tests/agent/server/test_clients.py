"""The wire is the protocol's own: clients that check what they get find nothing that it does not have, unless they ask
for it. The JavaScript ones live in a folder of their own, which the first run of their test makes.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from holdfast.agent.server.responses.agent_model import AGENT_MODEL
from holdfast.agent.server.responses.request import OWN_EVENTS
from tests.agent.server.serving import MODEL, SYSTEM_TEXT, TELL, WHERE, Server, agent_tools

ROOT = Path(__file__).parents[3]
PACKAGES = ROOT / ".js-clients"

LONG = "hi " * 300


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """A prompt that is read in several pieces need not be long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.agent.server.responses.generation.FEED_TOKENS", 64)
        yield


@pytest.fixture(scope="module")
def strict(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, which refuses what does not fit its types."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=server.token, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


ASKED = pytest.mark.parametrize(("model", "input"), [(MODEL, LONG), (AGENT_MODEL, TELL)], ids=["model", "agent"])


@ASKED
def test_a_client_that_checks_everything_gets_what_the_protocol_has(
    strict: openai.OpenAI, model: str, input: str
) -> None:
    assert strict.responses.create(model=model, input=input, max_output_tokens=4).output
    events = list(strict.responses.create(model=model, input=input, max_output_tokens=4, stream=True))
    assert all(event.type.startswith("response.") for event in events)
    details = events[-1].response.usage.input_tokens_details.to_dict()  # type: ignore[union-attr]
    assert all(isinstance(value, int) for value in details.values())


@ASKED
def test_events_of_our_own_come_on_request(client: openai.OpenAI, model: str, input: str) -> None:
    include: Any = [OWN_EVENTS]
    input = input.replace("hi", "yo")  # not read before, so there is progress to tell
    events = client.responses.create(model=model, input=input, max_output_tokens=4, include=include, stream=True)
    assert "holdfast:prefill.progress" in {event.type for event in events}


@pytest.fixture(scope="module")
def packages() -> Path:
    """Where the JavaScript clients are installed. Skips where they cannot be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    command = [ROOT / ".ci" / "js-clients", PACKAGES]
    made = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if made.returncode:
        reason = (made.stderr.strip() or "no reason").splitlines()[-1]
        pytest.skip(f"the JavaScript clients cannot be installed here: {reason}")
    return PACKAGES


def test_the_javascript_clients_work_unmodified(server: Server, workspace: Path, packages: Path) -> None:
    given = {
        "url": server.url, "token": server.token, "model": MODEL, "system": SYSTEM_TEXT,
        "tools": agent_tools(workspace), "prompt": WHERE, "long": LONG,
    }  # fmt: skip
    command = ["node", Path(__file__).with_name("clients.mjs"), packages]
    ran = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=240)
    cases = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0 and len(cases) == 6, ran.stderr
    problems = [f"{case['case']}:\n{case['problem']}" for case in cases if case["problem"]]
    assert not problems, "\n".join(problems)


CODEX = """
model = "{model}"
model_provider = "holdfast"
[model_providers.holdfast]
name = "holdfast"
base_url = "{url}/v1"
env_key = "HOLDFAST_TOKEN"
wire_api = "responses"
"""


def test_codex_runs_the_tool_that_the_model_calls(server: Server, tmp_path: Path, packages: Path) -> None:
    """As it comes: with its own instructions and tools, those in a namespace and hosted ones among them."""
    home, work = tmp_path / "codex", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (home / "config.toml").write_text(CODEX.format(model=MODEL, url=server.url))
    command = [str(packages / "node_modules" / ".bin" / "codex"), "exec", "--json", "--skip-git-repo-check", WHERE]
    env = {**os.environ, "CODEX_HOME": str(home), "HOLDFAST_TOKEN": server.token}
    ran = subprocess.run(
        command, cwd=work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    events = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert events and events[-1]["type"] == "turn.completed", ran.stdout + ran.stderr
    [kept] = (home / "sessions").rglob("*.jsonl")
    items = [
        line["payload"] for line in map(json.loads, kept.read_text().splitlines()) if line["type"] == "response_item"
    ]
    called = [item["call_id"] for item in items if item["type"] == "function_call"]
    assert called and called == [item["call_id"] for item in items if item["type"] == "function_call_output"]
