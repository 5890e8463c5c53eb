"""Compiles the CPU kernels with numba, where numba is there, and keeps the machine code for the next start.

The only place that imports numba. Without it the kernels stay plain Python that nobody calls (`AVAILABLE`). Nothing is
compiled or written at import: a kernel is compiled by its first call. numba's own cache would not notice a change in a
function that a kernel calls, so `keep_machine_code` gives it a directory named by all sources of this package.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

try:
    import numba
    import platformdirs
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

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
