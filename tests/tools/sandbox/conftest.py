from pathlib import Path

import pytest

from tests.tools.sandbox.place import Place


@pytest.fixture(params=["none"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)
