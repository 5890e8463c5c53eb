"""`holdfast doctor`: this machine, this installation and this data directory, a line for each thing.

Changes nothing, except that an older database gets this build's schema. Must not fail where the machine does: what has
to be loaded before it can be asked (torch, the kernels) is asked in a child process, so that a crash costs one line.
"""

import asyncio
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from holdfast.agent import VERSION
from holdfast.agent.attach.discovery import find_server
from holdfast.agent.config import POCKET_DIR, UsageError, disk_budget
from holdfast.memory import BlobStore, Database, SessionStore, SnapshotStore, StoreError, owner_of
from holdfast.tools.sandbox.choose import choose
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import SandboxError

OK, NOTE, FAIL = "ok", "note", "FAIL"
Finding = tuple[str, str, str]  # one of these, what, how it is
ROOT = Path(__file__).parents[2]
ASK_ENGINE = """
import json, torch
from holdfast.kernels.dispatch import jit
found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": None, "kernels": None}
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    found["gpu"] = f"{torch.cuda.get_device_name()}, {total / 1e9:.0f} GB, {free / 1e9:.0f} GB free"
if jit.AVAILABLE:
    problem = jit.keep_machine_code()
    found["kernels"] = [jit.num_stored(), problem, jit.numba.config.CACHE_DIR]
print(json.dumps(found))
"""
VECTORS = ("avx512f", "avx2", "asimd")
SAFE_SQLITE = (3, 51, 3)


def findings(home: Path) -> Iterator[Finding]:
    """Everything holdfast needs or can use."""
    yield OK, "holdfast", f"{VERSION} in {ROOT}"
    system = f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}"
    yield (OK if sys.version_info >= (3, 11) else FAIL), "python", system
    yield OK, "cpu", _cpu()
    yield OK, "memory", _memory()
    yield from _engine()
    yield _package("triton", "only a GPU needs it")
    yield _package("tree-sitter", "install holdfast again: symbols need it")
    is_there = (POCKET_DIR / "config.json").is_file()
    if is_there:
        yield OK, "model", f"pocket, the embedded one, in {POCKET_DIR}"
    else:
        yield FAIL, "model", "the embedded one is missing: use --model DIR"
    yield _sqlite()
    yield _disk(home)
    yield from _stored(home)
    yield _server(home)
    yield _sandbox(home)


def _cpu() -> str:
    words = _fields(Path("/proc/cpuinfo"))
    name = words.get("model name") or platform.processor() or platform.machine()
    flags = (words.get("flags") or words.get("Features") or "").split()
    found = next((flag for flag in VECTORS if flag in flags), None)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {usable} of {os.cpu_count()} cores" + (f", {found}" if found else "")


def _memory() -> str:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _fields(Path("/proc/meminfo")).get("MemAvailable", "").split()
    return f"{total / 1e9:.1f} GB" + (f", {int(available[0]) * 1024 / 1e9:.1f} GB available" if available else "")


def _fields(path: Path) -> dict[str, str]:
    """The first value of each `name: value` of a file of /proc; nothing where there is no such file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}


def _engine() -> Iterator[Finding]:
    # from our directory: nothing that lies in the user's is imported
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ASK_ENGINE], cwd=ROOT, env=env, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield FAIL, "torch", f"cannot be loaded ({last}): install holdfast again"
        return
    yield OK, "torch", found["torch"]
    yield OK, "device", found["gpu"] or "the CPU: torch sees no CUDA GPU"
    yield OK, "threads", f"{found['threads']}"
    if found["kernels"] is None:
        yield NOTE, "kernels", "numba is not installed: the torch code runs instead, slower"
        return
    num_stored, problem, cache = found["kernels"]
    if problem:
        yield NOTE, "kernels", f"compiled at every start, for about a minute: {problem}"
        return
    state = f"{num_stored} compiled" if num_stored else "not compiled yet: the first start does it, for about a minute"
    yield (OK if num_stored else NOTE), "kernels", f"{state}, in {cache}"


def _package(name: str, otherwise: str) -> Finding:
    try:
        return OK, name, version(name)
    except PackageNotFoundError:
        return (NOTE if name == "triton" else FAIL), name, f"not installed: {otherwise}"


def _sqlite() -> Finding:
    if sqlite3.sqlite_version_info >= SAFE_SQLITE:
        return OK, "sqlite", sqlite3.sqlite_version
    return (
        NOTE,
        "sqlite",
        f"{sqlite3.sqlite_version}: before {'.'.join(map(str, SAFE_SQLITE))} SQLite can lose a commit when one process"
        " writes while another makes a checkpoint (its WAL-reset bug)."
        " holdfast's processes do both one at a time, so they"
        " are safe from it; let no other program write to holdfast.db",
    )


def _disk(home: Path) -> Finding:
    """Whether the data directory can be written, and the room on its disk. It is not made here."""
    there = next(path for path in (home, *home.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return FAIL, "data", f"{home} cannot be written ({there} does not let us): set HOLDFAST_HOME"
    made = "" if there == home else ", made by the first start"
    return OK, "data", f"{home}{made}, {shutil.disk_usage(there).free / 1e9:.1f} GB free there"


def _stored(home: Path) -> Iterator[Finding]:
    if not (home / "holdfast.db").exists():
        return
    try:
        with (
            closing(Database(home)) as database,
            closing(SnapshotStore(database, BlobStore(home), disk_budget())) as snapshots,
        ):
            sessions = [session for session in SessionStore(database).all() if owner_of(session) is None]
            usage = snapshots.usage()
    except (StoreError, UsageError, OSError) as e:
        yield FAIL, "sessions", str(e)
        return
    size = (home / "holdfast.db").stat().st_size
    stored = f"stored state {usage.bytes / 1e6:,.1f} MB of at most {usage.budget / 1e9:,.1f} GB"
    yield OK, "sessions", f"{len(sessions):,}, in {size / 1e6:,.1f} MB; {stored}"


def _sandbox(home: Path) -> Finding:
    """Which one a command gets here, tried by running one in it."""
    with tempfile.TemporaryDirectory() as tmp, tempfile.TemporaryDirectory() as workspace:
        confinement = Confinement(Path(workspace), Path(tmp), hidden=(home,))
        try:
            sandbox = asyncio.run(choose("auto", confinement))
        except SandboxError as e:
            return FAIL, "sandbox", f"no command can be started: {e}"
    reason = f" ({sandbox.reason})" if sandbox.reason else ""
    if sandbox.name == "none":
        return NOTE, "sandbox", f"none: a command would have all rights of yours{reason}"
    return (OK if sandbox.level == "full" else NOTE), "sandbox", f"{sandbox.name}: {sandbox.level}{reason}"


def _server(home: Path) -> Finding:
    try:
        server = find_server(home)
    except UsageError as e:
        return FAIL, "server", str(e)
    if server is None:
        return OK, "server", "none runs on this data directory"
    return OK, "server", f"{server.url} (pid {server.pid}, model {server.model})"
