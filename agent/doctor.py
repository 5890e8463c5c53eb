"""`holdfast doctor`: what this machine can run, one line for each thing, without loading the engine.

Must not fail where the machine does: a broken torch is asked in a child process, so it costs a line and not the report.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from agent.config import POCKET_DIR

ASK_TORCH = (
    "import torch; cuda = torch.cuda.is_available();"
    "print(torch.__version__, torch.get_num_threads(), torch.cuda.get_device_name() if cuda else 'cpu', sep='\\n')"
)
LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
LANDLOCK_VERSION_FLAG = 1


def findings(home: Path) -> Iterator[tuple[bool, str, str]]:
    """(is it fine, what, how it is) for everything holdfast needs or can use."""
    yield (
        sys.version_info >= (3, 11),
        "python",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )
    yield from _torch()
    yield _package("triton", "the torch code runs instead")
    yield _package("tree-sitter", "install holdfast again: symbols need it")
    is_there = (POCKET_DIR / "config.json").is_file()
    yield is_there, "pocket", "the embedded model is here" if is_there else "missing here: use --model DIR"
    yield _home(home)
    yield True, "sandbox", _sandbox()


def _torch() -> Iterator[tuple[bool, str, str]]:
    done = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield False, "torch", f"cannot be loaded ({last}): install holdfast again"
        return
    torch_version, threads, device = done.stdout.splitlines()
    yield True, "torch", torch_version
    yield True, "device", device
    yield True, "threads", f"{threads} of {os.cpu_count()} cores"


def _package(name: str, otherwise: str) -> tuple[bool, str, str]:
    try:
        return True, name, version(name)
    except PackageNotFoundError:
        return name == "triton", name, f"not installed: {otherwise}"


def _home(home: Path) -> tuple[bool, str, str]:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            free = shutil.disk_usage(home).free
        return True, "data", f"{home} can be written, {free / 1e9:.1f} GB free"
    except OSError as e:
        return False, "data", f"{home} cannot be written ({e.strerror}): set HOLDFAST_HOME"


def _sandbox() -> str:
    bwrap = shutil.which("bwrap")
    if bwrap and not Path(bwrap).resolve().is_relative_to(Path.cwd()):  # one inside the workspace is not trusted
        return f"bubblewrap ({bwrap})"
    abi = ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION_FLAG)
    return f"Landlock (version {abi})" if abi > 0 else "none: install bubblewrap"
