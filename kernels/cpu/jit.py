"""Compiles the CPU kernels with numba, where numba is there, and keeps the machine code for the next start.

The only module that imports and configures numba. Without numba `AVAILABLE` is False: the kernels stay plain Python and
are not called; the torch twins run. Nothing is compiled or written at import: a kernel is compiled by its first call.
numba's own cache would not notice a change in a function that a kernel calls, so `keep_machine_code` gives it a
directory named by all sources of this package.
"""

import functools
import grp
import hashlib
import os
import pwd
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar


@contextmanager
def _unconfigured() -> Iterator[None]:
    """Keep numba, which is imported in here, from the settings around it.

    It would obey `.numba_config.yaml` in the working directory, which may be a stranger's repository and can name code
    to run, and variables NUMBA_..., of which some stop every kernel. It reads the file only where yaml can be imported.
    """
    variables = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("NUMBA_")}
    modules = {"yaml": sys.modules["yaml"]} if "yaml" in sys.modules else {}
    sys.modules["yaml"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file is there, and yaml is not
            yield
    finally:
        del sys.modules["yaml"]
        sys.modules.update(modules)
        os.environ.update(variables)


try:
    with _unconfigured():
        import numba
        import platformdirs
        from llvmlite import ir
        from numba import types
        from numba.core import cgutils, event
        from numba.extending import intrinsic

    numba.core.config.reload_config = lambda: None  # called before every compilation: it reads both again
    AVAILABLE = True
except ImportError:
    AVAILABLE = False

__all__ = [
    "AVAILABLE",
    "cgutils",
    "inlined",
    "intrinsic",
    "ir",
    "keep_machine_code",
    "kernel",
    "num_kernels",
    "num_ready",
    "num_stored",
    "on_compile",
    "types",
]

Function = TypeVar("Function", bound=Callable[..., Any])
_kernels: list[Any] = []

if not AVAILABLE:
    cgutils = ir = types = None

    def intrinsic(function: Function) -> Function:
        return function


def kernel(function: Function) -> Function:
    """A function that Python calls: compiled by its first call, runs without the interpreter lock."""
    if not AVAILABLE:
        return function
    compiled = inlined(function)
    _kernels.append(compiled)
    if numba.config.CACHE_DIR:  # `keep_machine_code` came first
        _kernels[-1].enable_caching()
    return compiled


def inlined(function: Function) -> Function:
    """A function that only kernels call."""
    return numba.njit(nogil=True, error_model="numpy")(function) if AVAILABLE else function


def num_kernels() -> int:
    return len(_kernels)


def num_ready() -> int:
    """Kernels that this process can call at once: loaded, or compiled by it."""
    return sum(bool(compiled.signatures) for compiled in _kernels)


def num_stored() -> int:
    """Kernels whose machine code for this CPU `keep_machine_code` has found."""
    return 0 if keep_machine_code() else sum(map(_is_stored, _kernels))


@contextmanager
def on_compile(report: Callable[[], None]) -> Iterator[None]:
    """Call `report` before a kernel is compiled, and never for one whose machine code is loaded."""
    if not AVAILABLE:
        yield
        return

    class Listener(event.Listener):  # type: ignore[misc]  # numba has no types
        def on_start(self, started: Any) -> None:
            if started.data["dispatcher"] in _kernels:  # others are what a kernel calls
                report()

        def on_end(self, ended: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


@functools.cache
def keep_machine_code() -> str:
    """Let kernels load and store their machine code in the user's cache directory.

    Returns why that is not possible (then every start compiles again), or "". Files there are executed without a check,
    so the directory must be writable by this user alone.
    """
    sources = hashlib.sha256(numba.__version__.encode())
    here = Path(__file__).parent
    # numba itself adds the CPU's name and features
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        sources.update(path.read_bytes())
    directory = Path(platformdirs.user_cache_dir("holdfast")).absolute() / f"cpu-kernels-{sources.hexdigest()[:16]}"
    try:
        _make_private(directory)
        if problem := _why_not_trusted(directory):
            return problem
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as e:
        return f"{directory} cannot be used ({e.strerror}): set XDG_CACHE_HOME to a directory of yours"
    numba.config.CACHE_DIR = str(directory)
    for compiled in _kernels:
        compiled.enable_caching()
    return ""


def _is_stored(compiled: Any) -> bool:
    here = compiled.targetctx.codegen().magic_tuple()  # the CPU
    return any(cpu == here for _, cpu, _ in compiled._cache._cache_file._load_index())


def _make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone, independent of the umask."""
    for path in reversed([directory, *directory.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)  # another process may have been faster
            path.chmod(0o700)


def _why_not_trusted(directory: Path) -> str:
    """How another user could have put code into the directory or in its place, or ""."""
    if directory.is_symlink():
        return f"{directory} is a link: remove it"
    real = directory.resolve()
    for path in sorted({*directory.parents, *real.parents, real}):
        info = path.stat()
        if info.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to another user: remove it, or set XDG_CACHE_HOME to a directory of yours"
        is_sticky = info.st_mode & stat.S_ISVTX and path != real
        if not is_sticky and (
            info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not _is_own(info.st_gid))
        ):
            return f"{path} can be written by others: chmod go-w it and remove what is in it"
    for path in real.rglob("*"):
        info = path.lstat()
        if info.st_uid not in (0, os.geteuid()) or not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            return f"{path} is a link, or belongs to another user: remove {directory}"
    return ""


def _is_own(gid: int) -> bool:
    """Whether a group is the user's alone, as many systems make them."""
    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and not set(group.gr_mem) - {user}
