"""What tests of turns need: asyncio, and a workspace with a scripted model."""

from pathlib import Path

import pytest

from tests.agent.session.world import World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)
