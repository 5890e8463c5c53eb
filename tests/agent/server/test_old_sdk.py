"""The unmodified `openai` package of February 2026 works with this server as the one of today does.

It lives in an environment of its own, as two versions of a package cannot be in one; the first run of this test makes it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.server.serving import MODEL, SYSTEM_TEXT, Server, agent_tools, chat_tools

ROOT = Path(__file__).parents[3]
ENVIRONMENT = ROOT / ".venv-openai-2.22"
LEAST_CASES = 30


def old_python() -> Path:
    """The interpreter that has the old package. Skips where it cannot be had."""
    command = [ROOT / ".ci" / "old-sdk", sys.executable, ENVIRONMENT]
    made = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if made.returncode:
        pytest.skip(f"openai 2.22.0 cannot be installed here: {(made.stderr.strip() or 'no reason').splitlines()[-1]}")
    return ENVIRONMENT / "bin" / "python"


def test_the_old_openai_package_works_unmodified(server: Server, workspace: Path) -> None:
    given = {
        "url": server.url, "token": server.token, "model": MODEL, "system": SYSTEM_TEXT,
        "tools": agent_tools(workspace), "chat_tools": chat_tools(workspace),
    }  # fmt: skip
    command = [old_python(), "-I", Path(__file__).with_name("old_sdk.py")]
    ran = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=240)
    cases = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0 and len(cases) >= LEAST_CASES, ran.stderr
    problems = [f"{case['case']}:\n{case['problem']}" for case in cases if case["problem"]]
    assert not problems, "\n".join(problems)
