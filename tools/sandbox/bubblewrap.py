"""Bubblewrap: a command sees its own processes, a read-only machine, and no network.

Owns what is mounted where. Must not know how the process is started.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from holdfast.tools.sandbox import seccomp
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import SECCOMP_FD, STATUS_FD, Launch, SandboxError
from holdfast.tools.sandbox.repositories import find_repositories

SHARED_MEMORY_BYTES = 2**28
ALWAYS = (
    "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session",
    "--cap-drop", "ALL",
)  # fmt: skip
RUN_KEPT = ("/run/current-system", "/run/opengl-driver")  # where NixOS has its programs
SHELL_EXEC = ("/bin/sh", "-c", 'exec "$@"', "sh")  # a program that is not there is then 127, as without a sandbox


class Bubblewrap:
    name = "bubblewrap"

    def __init__(self, workspace: Path) -> None:
        """Raises SandboxError where there is no program that can be trusted."""
        self._program = find_bubblewrap(workspace)
        self.level = "full" if seccomp.available() else "partial: system calls are not filtered on this processor"

    def launch(self, argv: Sequence[str], directory: Path, confinement: Confinement) -> Launch:
        repositories = find_repositories(confinement.workspace.resolve())
        filtered = ("--seccomp", SECCOMP_FD) if seccomp.available() else ()
        network = () if confinement.network else ("--unshare-net",)
        command = (
            str(self._program), *ALWAYS, *network, *mounts(confinement, repositories.directories, repositories.kept),
            *filtered, "--json-status-fd", STATUS_FD, "--chdir", str(directory), "--", *SHELL_EXEC, *argv,
        )  # fmt: skip
        return Launch(
            command,
            Path("/"),
            confinement.environment(os.environ, Path("/tmp")),
            confinement.limits,
            seccomp=seccomp.program() if seccomp.available() else b"",
            is_bubblewrap=True,
            kept=tuple(map(str, repositories.kept)),
        )


def find_bubblewrap(workspace: Path) -> Path:
    """The first `bwrap` on PATH that no command and no other user can have put there."""
    inside = workspace.resolve()
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        if not os.path.isabs(entry) or Path(entry).resolve().is_relative_to(inside):
            continue
        found = shutil.which("bwrap", path=entry)
        path = Path(found).resolve() if found else None
        if path and not path.is_relative_to(inside) and all(map(_is_ours, (path, *path.parents))):
            return path
    raise SandboxError("bubblewrap (bwrap) is not installed")


def _is_ours(path: Path) -> bool:
    status = path.stat()
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return status.st_uid in (0, os.getuid()) and (sticky or not status.st_mode & stat.S_IWOTH) != 0


def mounts(confinement: Confinement, directories: Iterable[Path], kept: Iterable[Path]) -> list[str]:
    """Arguments in the order in which they are mounted: what lies deeper later, and read-only when all is there."""
    tmp = str(confinement.tmp.resolve())
    shared_memory = ("--size", str(SHARED_MEMORY_BYTES), "--tmpfs", "/dev/shm")
    first = ["--ro-bind", "/", "/", "--dev", "/dev", *shared_memory, "--proc", "/proc"]
    # bubblewrap leaves /proc/sys of a root user writable
    last = ["--remount-ro", "/dev", "--ro-bind", "/proc/sys", "/proc/sys", "--remount-ro", "/proc"]
    found: dict[Path, list[str]] = {Path("/tmp"): ["--bind", tmp, "/tmp"]}
    if not Path("/var/tmp").is_symlink():
        found[Path("/var/tmp")] = ["--bind", tmp, "/var/tmp"]
    for path in (Path("/run"), *confinement.all_hidden()):
        found[path] = _hiding(path)
        last += ["--remount-ro", str(path)] if path.is_dir() else []
    for path in (*_needed_of_run(), *(path for path in kept if path.exists() and not path.is_symlink())):
        found[path] = ["--ro-bind", str(path), str(path)]
    # a directory of git's is mounted on itself: so it cannot be moved aside for another
    for path in (confinement.workspace.resolve(), *confinement.writable, *directories):
        found[path] = ["--bind", str(path), str(path)]
    for path in _sockets():
        if not any(path.is_relative_to(place) for place in found):
            found[path] = _hiding(path)
    ordered = sorted(found, key=lambda path: len(path.parts))
    return [*first, *(word for path in ordered for word in found[path]), *last]


def _hiding(path: Path) -> list[str]:
    return ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]


def _needed_of_run() -> Iterator[Path]:
    """What a command needs below /run, where the sockets of services are."""
    resolver = Path("/etc/resolv.conf").resolve()
    for path in (*map(Path, RUN_KEPT), resolver):
        if path.is_relative_to("/run") and path.exists():
            yield path


def _sockets() -> Iterator[Path]:
    """Sockets of services that have a path: a mount that is read-only does not keep a command from connecting."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        name = line.split(maxsplit=7)[7] if line.count(" ") >= 7 and "/" in line else ""
        if (
            name.startswith("/")
            and os.path.exists(name)
            and not name.startswith(("/run/", "/tmp/", "/var/tmp/", "/dev/"))
        ):
            yield Path(name).resolve()
