"""Compiles the CPU kernels with numba, where numba is there, and keeps the machine code for the next start.

The only place that imports numba, and the only one that configures it. Without it the kernels stay plain Python that nobody calls
(`AVAILABLE`). Nothing is compiled or written at import: a kernel is compiled by its first call. numba's own cache would not
notice a change in a function that a kernel calls, so `keep_machine_code` gives it a directory named by all sources of this package.
"""

import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar


@contextmanager
def _unconfigured() -> Iterator[None]:
    """Import numba in here: it would obey `.numba_config.yaml` in the working directory, which may be a stranger's repository and can
    name code to run, and variables NUMBA_..., of which some stop every kernel. It reads the file only where yaml can be imported."""
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
        from numba.core import cgutils
        from numba.extending import intrinsic

    numba.core.config.reload_config = lambda: None  # called before every compilation: it reads both again
    AVAILABLE = True
except ImportError:
    AVAILABLE = False

__all__ = [
    "AVAILABLE",
    "cgutils",
    "has_machine_code",
    "inlined",
    "intrinsic",
    "ir",
    "keep_machine_code",
    "kernel",
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
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    _kernels.append(compiled)
    return compiled


def inlined(function: Function) -> Function:
    """A function that only kernels call."""
    return numba.njit(nogil=True, error_model="numpy")(function) if AVAILABLE else function


def has_machine_code() -> bool:
    """Whether kernels run at once: their machine code was found, or this process has compiled them."""
    return keep_machine_code() or any(compiled.signatures for compiled in _kernels)


@functools.cache
def keep_machine_code() -> bool:
    """Let kernels load and store their machine code in the user's cache directory; without one they compile each time.

    Returns whether some is there already.
    """
    sources = hashlib.sha256(numba.__version__.encode())
    here = Path(__file__).parent
    # numba itself adds the CPU's name and features
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        sources.update(path.read_bytes())
    directory = Path(platformdirs.user_cache_dir("holdfast")) / f"cpu-kernels-{sources.hexdigest()[:16]}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    is_known = any(directory.iterdir())
    numba.config.CACHE_DIR = str(directory)
    for compiled in _kernels:
        compiled.enable_caching()
    return is_known
