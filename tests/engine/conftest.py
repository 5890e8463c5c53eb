"""The tiny model's directory, and that a test's engine leaves no thread behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.engine import write_checkpoint
from holdfast.engine.checkpoint.writer import random_weights
from tests.engine.tiny_engine import CONFIG, engine_threads


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, CONFIG, random_weights(CONFIG, seed=11))
    return path


@pytest.fixture
def no_thread_stays() -> Iterator[None]:
    before = engine_threads()  # of a server that other tests share
    yield
    assert engine_threads() == before
