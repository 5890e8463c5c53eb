"""Symbols of a text, found by a child process that can be killed.

Owns the child: started at the first text, kept for the next, killed when it takes too long, killed or cut off when its owner goes.
Must not know files on disk nor what symbols are for.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.symbols.definitions import Symbol

MAX_WAIT_S = (
    60.0  # for one text, on a machine that is busy with other things; the child's own limit counts its time alone
)
POLL_S = 0.05
MAX_ANSWER_BYTES = 64 * 2**20
PIPE_BYTES = 2**16
# Runs without the environment, the working directory or site: it gets our path, and of this package only what it names.
BOOT = """
import sys, types
folder, *sys.path = sys.argv[1:]
for name in ("holdfast", "holdfast.tools", "holdfast.tools.symbols"):
    package = sys.modules[name] = types.ModuleType(name)
package.__path__ = [folder]
from holdfast.tools.symbols.parse_child import serve
serve()
"""


class NotParsed(ToolError):
    """The child gave no answer: the text is hostile, or larger than its limits allow."""


class Parser:
    """A child that parses, for one thread at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._closing: Callable[[], object] = int  # nothing to end yet

    def symbols(self, path: str, text: str, cancellation: Cancellation) -> tuple[Symbol, ...]:
        """Definitions in `text`; only the suffix of `path` matters. Raises NotParsed, and ToolError when cancelled."""
        data = text.encode()
        request = json.dumps({"path": "x" + Path(path).suffix, "size": len(data)}).encode() + b"\n" + data
        is_new = self._child is None
        try:
            answer = self._exchange(request, cancellation)
        except EOFError:
            if is_new or self._died_of(signal.SIGXCPU):
                raise self._not_parsed() from None
            self.close()  # what an earlier text did to the child must not be held against this one
            try:
                answer = self._exchange(request, cancellation)
            except EOFError:
                raise self._not_parsed() from None
        except BaseException:
            self.close()
            raise
        return tuple(Symbol(int(line), str(kind), str(name)) for line, kind, name in json.loads(answer))

    def close(self) -> None:
        """End the child; the next text starts another."""
        self._closing()
        self._child = None

    def _died_of(self, number: int) -> bool:
        return self._child is not None and self._child.wait() == -number

    def _not_parsed(self) -> NotParsed:
        reason = "took too long to parse" if self._died_of(signal.SIGXCPU) else "could not be parsed"
        self.close()
        return NotParsed(reason)

    def _exchange(self, request: bytes, cancellation: Cancellation) -> bytes:
        """Write all and read a line, both as far as the pipes allow. Raises EOFError when the child dies."""
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        stdin, stdout = child.stdin.fileno(), child.stdout.fileno()
        rest, pieces, num_bytes = memoryview(request), [b""], 0
        end = time.monotonic() + MAX_WAIT_S
        while not pieces[-1].endswith(b"\n"):
            cancellation.check()
            if time.monotonic() > end or num_bytes > MAX_ANSWER_BYTES:
                raise NotParsed("took too long to parse" if num_bytes <= MAX_ANSWER_BYTES else "has too many symbols")
            ready = _ready(stdout, stdin if rest else None)
            if stdin in ready:
                try:
                    rest = rest[os.write(stdin, rest[:PIPE_BYTES]) :]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    raise EOFError from None
            if stdout in ready:
                pieces.append(os.read(stdout, PIPE_BYTES))
                num_bytes += len(pieces[-1])
                if not pieces[-1]:
                    raise EOFError
        return b"".join(pieces)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            folder = str(Path(__file__).parent)
            paths = [path for path in sys.path if path]
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, folder, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,  # Ctrl-C in the terminal is the parent's to answer
            )
            assert self._child.stdin is not None
            os.set_blocking(self._child.stdin.fileno(), False)
            self._closing = weakref.finalize(self, _end, self._child)
        return self._child


def _ready(readable: int, writable: int | None) -> set[int]:
    """Which of these descriptors can go on, after at most `POLL_S`. Not by `select`, which takes none above 1,023."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    if writable is not None:
        poll.register(writable, select.POLLOUT)
    return {fd for fd, _ in poll.poll(POLL_S * 1000)}


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
