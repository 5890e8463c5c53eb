"""Landlock: a command opens only files that a rule allows; a filter of system calls keeps it from the network.

Owns which rules, by the version of the kernel's interface (its ABI). Must not know how the process is started.
"""

import base64
import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.tools.sandbox import seccomp
from holdfast.tools.sandbox.confine import LANDLOCK_CREATE_RULESET
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import Launch, SandboxError
from holdfast.tools.sandbox.repositories import Repositories, find_repositories

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
MAKE_CHAR, MAKE_BLOCK, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (6, 11, 13, 14, 15))
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rest is of directories
HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
SCOPES_ABI, SCOPES = 6, 3  # abstract sockets and signals stay inside
TRUNCATE_ABI = 3
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
OTHERS = ("/dev", "/tmp", "/var/tmp")  # where files of other programs and devices are
GAPS = (
    "other processes can be seen",
    "names of hidden files too",
    "modes, owners and times of the user's files can be changed everywhere",
    "git's hooks and configuration are put back after a command, not locked",
)
SIGNALS = "other processes of the user can be sent signals"


class Landlock:
    name = "landlock"

    def __init__(self) -> None:
        """Raises SandboxError where the kernel or the processor has none."""
        self.abi = kernel_abi()
        if self.abi < 1:
            raise SandboxError("the kernel has no Landlock")
        if not seccomp.available():
            raise SandboxError(
                "Landlock alone leaves the network open, and system calls are not filtered on this processor"
            )
        self.level = "partial: " + ", ".join(GAPS if self.abi >= SCOPES_ABI else (*GAPS, SIGNALS))

    def launch(self, argv: Sequence[str], directory: Path, confinement: Confinement) -> Launch:
        repositories = find_repositories(confinement.workspace.resolve())
        families = seccomp.ORDINARY_FAMILIES if confinement.network else ()
        filtered = seccomp.program(families, truncates=self.abi >= TRUNCATE_ABI)
        return Launch(
            tuple(argv),
            directory,
            confinement.environment(os.environ, confinement.tmp),
            confinement.limits,
            confine={
                "landlock": self._ruleset(confinement, repositories),
                "seccomp": base64.b64encode(filtered).decode(),
            },
            kept=tuple(map(str, repositories.kept)),
        )

    def _ruleset(self, confinement: Confinement, repositories: Repositories) -> dict[str, Any]:
        handled = HANDLED[min(self.abi, max(HANDLED))]
        writable = [confinement.workspace.resolve(), confinement.tmp.resolve()]
        writable += [path.resolve() for path in (*confinement.writable, *repositories.directories)]
        hidden = confinement.all_hidden()
        for path in hidden:
            if any(path.is_relative_to(place) for place in writable):
                raise SandboxError(f"Landlock cannot hide {path}, which lies where commands write")
        rules = [("/", READ_DIR)]
        rules += [(str(path), READ_FILE | EXECUTE) for path in _around(Path("/"), {*hidden, *map(Path, OTHERS)})]
        rules += [(f"/dev/{name}", READ_FILE | WRITE_FILE) for name in DEVICES if os.path.exists(f"/dev/{name}")]
        rules += [(str(path), handled & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)) for path in writable]
        return {
            "handled": handled,
            "scoped": SCOPES if self.abi >= SCOPES_ABI else 0,
            "rules": [(path, access if os.path.isdir(path) else access & OF_FILES) for path, access in rules],
        }


def kernel_abi() -> int:
    """The version of the running kernel's Landlock; below 1: none."""
    if os.uname().sysname != "Linux":
        return 0
    return int(ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE_RULESET, None, 0, 1))


def _around(directory: Path, without: Iterable[Path]) -> Iterator[Path]:
    """The fewest directories and files that hold everything below `directory` except `without`.

    A rule only adds rights, so none may stand above what is left out.
    """
    below = {path for path in without if path.is_relative_to(directory)}
    if not below:
        yield directory
        return
    if directory in below:
        return
    try:
        entries = [Path(entry.path) for entry in os.scandir(directory) if not entry.is_symlink()]
    except OSError:
        return
    for entry in entries:
        yield from _around(entry, below)
