"""The installed command obeys nothing in a stranger's repository: no file configures a library or is run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.agent.config import POCKET_DIR

HOLDFAST = Path(sys.executable).with_name("holdfast")
pytestmark = pytest.mark.skipif(not HOLDFAST.exists(), reason="the command is not installed beside this Python")

# Modules that a start imports, or that Python itself would; torch names two of its files without a directory.
MODULES = (
    "holdfast",
    "torch",
    "numpy",
    "numba",
    "yaml",
    "json",
    "readline",
    "platformdirs",
    "safetensors",
    "sitecustomize",
    "usercustomize",
    "conftest",
    "test_app",
    "_ops",
    "_classes",
)
# `unittest.__main__` imports every test_*.py of the working directory.
FILES = {
    ".numba_config.yaml": "cache_locator_classes: unittest.__main__.x\ncache_dir: {here}/cache\n",
    ".env": "HOLDFAST_HOME={here}/home\nXDG_CACHE_HOME={here}/cache\nPYTHONPATH={here}\n",
    "pyvenv.cfg": "home = {here}\n",
    "python311._pth": "{here}\nimport site\n",
    "here.pth": "import test_app\n",
    "setup.cfg": "[options]\n",
    "pyproject.toml": "[tool.holdfast]\n",
    ".inputrc": 'set editing-mode vi\n"a": "b"\n',
    ".editrc": "bind -v\n",
    ".netrc": "default login a password b\n",
    ".pythonrc.py": "import test_app\n",
    ".git/config": "[core]\n\tfsmonitor = touch {here}/ran\n\tpager = touch {here}/ran\n\thooksPath = {here}\n",
    ".gitconfig": "[core]\n\tfsmonitor = touch {here}/ran\n",
}
COMMANDS = {
    "run": ["run", "hello"],
    "chat": ["chat"],
    "list": ["sessions", "list"],
    "doctor": ["doctor"],
    "inspect": ["model", "inspect", str(POCKET_DIR)],
    "bench": ["bench", "--context", "32"],
}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    """Such a repository. Nothing may be added to it."""
    here = tmp_path / "repository"
    here.joinpath(".git").mkdir(parents=True)
    for module in MODULES:
        here.joinpath(f"{module}.py").write_text(f"open({str(here / 'ran')!r}, 'a').write('{module} ')\n")
    for name, text in FILES.items():
        here.joinpath(name).write_text(text.format(here=here))
    before = sorted(here.rglob("*"))
    yield here
    assert not here.joinpath("ran").exists(), here.joinpath("ran").read_text()
    assert sorted(here.rglob("*")) == before


def environment(there: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    home = there.parent / "home"
    return kept | {"HOLDFAST_HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_of_the_working_directory_runs_or_configures(there: Path, name: str) -> None:
    done = subprocess.run(
        [HOLDFAST, *COMMANDS[name]],
        cwd=there,
        env=environment(there),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (2 if name == "list" else 0), done.stderr  # nothing is stored yet
    assert "Traceback" not in done.stderr and "numba" not in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("is_file", [True, False])
def test_numba_switched_off_for_others_compiles_for_us(there: Path, is_file: bool) -> None:
    there.joinpath(".numba_config.yaml").write_text("disable_jit: 1\n" if is_file else "disable_jit: [unfinished\n")
    variables = environment(there) | ({} if is_file else {"NUMBA_DISABLE_JIT": "1"})
    done = subprocess.run([HOLDFAST, "run", "hello"], cwd=there, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_of_the_working_directory_runs_in_a_server(there: Path) -> None:
    command = [HOLDFAST, "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=there, env=environment(there), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert "http://" in server.stdout.readline()
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
