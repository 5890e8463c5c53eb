"""The process between the agent and a command: starts it, holds it to its limits, and leaves nothing of it alive.

It is a subreaper: what the command starts stays below it, however it detaches. It ends the command when the agent
closes the lifeline or dies. Imports the standard library and confine alone, and has one thread.
"""

import base64
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.tools.sandbox.confine import prctl, take_on
from holdfast.tools.sandbox.kept_files import put_back, read_kept

PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE = 36, 4
LEAST_S, MOST_SHARE = 0.1, 0.05  # between two looks at the tree, and of a processor's time for them
GIVE_UP_S = 10.0  # a process that waits for a device does not die before it returns
NOT_FOUND, NOT_RUNNABLE = 127, 126  # as a shell says that a program cannot be started
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    cpu_s: float  # with that of its children that it has waited for


def main(spec: dict[str, Any], lifeline: int, report: int) -> None:
    """Run the command of a spec to its end, and report it."""
    for fd in (lifeline, report):  # a command that had them could hold on, or report for us
        os.set_inheritable(fd, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ours in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)
    said = _run(spec, lifeline, woken)
    with contextlib.suppress(OSError):
        os.write(report, json.dumps(said).encode())


def _run(spec: dict[str, Any], lifeline: int, woken: int) -> dict[str, Any]:
    try:
        kept = read_kept(spec["kept"])
    except OSError as e:
        return {"code": None, "failure": str(e)}
    pid, failure, said = _start(spec)
    _leave_streams()
    prctl(PR_SET_DUMPABLE, 0)  # no other process of the user's reads or traces this one
    if failure:
        os.waitpid(pid, 0)
        return {"code": None, "failure": failure}
    status, stopped = _watch(pid, spec["limits"], lifeline, woken)
    left = _kill_all()
    ended = {"stopped": stopped, "left": left, "restored": put_back(kept)}
    if status is None or stopped:
        return {**ended, "code": None}
    if not spec["is_bubblewrap"]:
        return {**ended, "code": _shell_code(status)}
    code = _reported_code(said)
    return {**ended, "code": code, "failure": "" if code is not None else "bubblewrap could not set up the sandbox"}


def _start(spec: dict[str, Any]) -> tuple[int, str, int]:
    """The command's process, why it could not be confined, and where bubblewrap says how the command ended."""
    problem, tell = os.pipe()
    said, say = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        if spec["is_bubblewrap"]:
            _give_files(spec, say)
        _become(spec, supervisor, tell)
    os.close(tell)
    os.close(say)
    with open(problem) as file:  # ends with the exec
        return pid, file.read(), said


def _give_files(spec: dict[str, Any], say: int) -> None:
    """Open files that bubblewrap closes before the command runs, their numbers in its arguments."""
    seccomp, give = os.pipe()  # the filter is far shorter than a pipe holds
    os.write(give, base64.b64decode(spec["seccomp"]))
    os.close(give)
    for fd in (seccomp, say):
        os.set_inheritable(fd, True)
    numbers = {"{status_fd}": str(say), "{seccomp_fd}": str(seccomp)}
    spec["argv"] = [numbers.get(word, word) for word in spec["argv"]]


def _reported_code(said: int) -> int | None:
    """The command's exit status in what bubblewrap says: only one that was started has one."""
    with open(said) as file:
        for line in file:
            code = json.loads(line).get("exit-code")
            if isinstance(code, int):
                return code
    return None


def _become(spec: dict[str, Any], supervisor: int, tell: int) -> None:
    argv = spec["argv"]
    try:
        signal.set_wakeup_fd(-1)
        for kind in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(kind, signal.SIG_DFL)
        os.setsid()  # `kill 0` in a command must not reach the supervisor
        os.chdir(spec["directory"])
        take_on(spec["limits"], spec["confine"], supervisor)
    except Exception as e:
        os.write(tell, (str(e) or type(e).__name__).encode(errors="replace"))
        os._exit(1)
    try:
        os.execvpe(argv[0], argv, spec["environment"])
    except OSError as e:
        os.write(2, f"{argv[0]}: {e.strerror}\n".encode(errors="surrogateescape"))
        os._exit(NOT_FOUND if isinstance(e, FileNotFoundError) else NOT_RUNNABLE)


def _leave_streams() -> None:
    """The command's alone: their readers see the end when the last of its processes is gone."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)


def _watch(pid: int, limits: Mapping[str, int], lifeline: int, woken: int) -> tuple[int | None, str]:
    """Until the command ends or must end: its wait status, if it ended, and why it is stopped."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(woken, select.POLLIN)
    pause_s = LEAST_S
    while True:
        for fd, _ in poll.poll(pause_s * 1000):
            if fd == lifeline:
                return None, "ended by holdfast"
            os.read(woken, 4096)
        status = _reap(pid)
        if status is not None:
            return status, ""
        began = time.monotonic()
        excess = _excess(limits)
        if excess:
            return None, excess
        pause_s = max(LEAST_S, (time.monotonic() - began) / MOST_SHARE)


def _reap(pid: int) -> int | None:
    """Bury every process that has ended; the wait status of this one, if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                break
            if ended == pid:
                found = status
    return found


def _excess(limits: Mapping[str, int]) -> str:
    """Which limit the whole tree breaks. The kernel's own limits count by process or user, and not at all for root."""
    tree = list(_descendants())
    if len(tree) > limits["processes"]:
        return f"it had {len(tree)} processes, more than {limits['processes']}"
    memory = sum(_private_bytes(process.pid) for process in tree)
    if memory > limits["memory_bytes"]:
        return f"it used {memory / 1e9:.1f} GB of memory, more than {limits['memory_bytes'] / 1e9:.1f}"
    if sum(process.cpu_s for process in tree) > limits["cpu_s"]:
        return f"it used more than {limits['cpu_s']} s of CPU time"
    return ""


def _private_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = file.read().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE_BYTES


def _descendants() -> Iterator[Process]:
    """Every process below this one, parents first."""
    children: dict[int, list[Process]] = {}
    for process in _processes():
        children.setdefault(process.parent, []).append(process)
    below = [os.getpid()]
    for parent in below:
        for process in children.get(parent, ()):
            below.append(process.pid)
            yield process


def _processes() -> Iterator[Process]:
    if not sys.platform.startswith("linux"):
        return
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        yield Process(int(name), int(fields[1]), sum(map(int, fields[11:15])) / TICKS_PER_S)


def _kill_all() -> int:
    """Kill until no child is left: a subreaper without children has no descendant. How many could not be killed."""
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        tree = list(_descendants())
        for process in tree:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        if time.monotonic() > deadline:
            return len(tree)
        time.sleep(0.002)


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
