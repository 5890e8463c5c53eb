"""What a process takes on before it becomes the command: limits, and what of the kernel's means its sandbox names.

Runs in the supervisor's child, between fork and exec. Imports the standard library alone: the supervisor is given this
source, not this package.
"""

import base64
import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 28, 47, 4
NOROOT_AND_LOCKED = 3
MAX_CAPABILITIES = 64
CAPABILITY_VERSION = 0x20080522
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LIKELY_OOM_VICTIM = "500"


def prctl(option: int, *values: int) -> None:
    """Of Linux; elsewhere nothing happens. Raises OSError."""
    if not sys.platform.startswith("linux"):
        return
    _checked(f"prctl {option}", _libc().prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4])))


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
    if "landlock" in confine:
        _drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in confine:
        _restrict_files(confine["landlock"])
    if "seccomp" in confine:  # last: it refuses some of the calls above
        _filter_calls(base64.b64decode(confine["seccomp"]))


def _drop_capabilities() -> None:
    """All, for good: root is then a user like any other, who owns root's files."""
    with contextlib.suppress(OSError):  # who is not root has none to drop
        prctl(PR_SET_SECUREBITS, NOROOT_AND_LOCKED)
        for capability in range(MAX_CAPABILITIES):
            prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, none = struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24)
    _checked("capset", _libc().capset(header, none))


def _restrict_files(ruleset: Mapping[str, Any]) -> None:
    scoped = ruleset["scoped"]
    attributes = struct.pack("=QQQ", ruleset["handled"], 0, scoped) if scoped else struct.pack("=Q", ruleset["handled"])
    rules = _call(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    for path, access in ruleset["rules"]:
        try:
            at = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone since, or not ours to see
            continue
        _call(LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", access, at), 0)
        os.close(at)
    _call(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _filter_calls(program: bytes) -> None:
    steps = ctypes.create_string_buffer(program)
    # struct sock_fprog; both buffers must live until the call
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(steps)))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))


def _call(number: int, *arguments: Any) -> int:
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(f"system call {number}", int(_libc().syscall(number, *passed)))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(name: str, result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


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
