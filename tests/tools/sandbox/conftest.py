import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.sandbox.place import Place, sandboxed


@pytest.fixture
def root() -> Iterator[Path]:
    """Not below /tmp, of which a command sees another one."""
    path = Path(tempfile.mkdtemp(prefix=".sandbox-", dir=Path(__file__).parent))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["bubblewrap", "landlock", "none"])
def place(request: pytest.FixtureRequest, root: Path) -> Place:
    return sandboxed(request.param, root)
