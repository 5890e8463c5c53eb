"""What a process takes on before it becomes the command: limits, and what of the kernel's means its sandbox names.

Runs in the supervisor's child, between fork and exec. Imports the standard library alone: the supervisor is given this
source, not this package.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LIKELY_OOM_VICTIM = "500"


def prctl(option: int, *values: int) -> None:
    """Of Linux; elsewhere nothing happens. Raises OSError."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4])):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def take_on(limits: Mapping[str, int], confine: Mapping[str, Any], parent: int) -> None:
    """Confine this process for good. Raises OSError where the kernel refuses."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the supervisor is gone")
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a command expects them
        signal.signal(ignored, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(LIKELY_OOM_VICTIM)
    _limit(limits)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def _limit(limits: Mapping[str, int]) -> None:
    # DATA, not AS: node, Java and sanitizers reserve far more addresses than they use
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_DATA: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["processes"] + _num_threads_of_user(),
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _num_threads_of_user() -> int:
    """The kernel counts all threads of a user against RLIMIT_NPROC, not only the command's."""
    num_threads = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                with open(f"/proc/{name}/stat", "rb") as file:
                    num_threads += int(file.read().rpartition(b")")[2].split()[17])
    return num_threads
