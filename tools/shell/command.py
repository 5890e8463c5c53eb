"""One command from its start to its end: what it puts out is taken as it comes, and nothing of it outlives it.

Owns time-outs, and how an end is said in words. Must not know whether it is a job, nor what the model is told.
"""

import asyncio
import codecs
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.sandbox.choose import Sandbox
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import Ended, SandboxError, Started
from holdfast.tools.threads import on_thread
from holdfast.tools.tool import Context

MAX_OUTPUT_BYTES = 2**30  # a program that puts out more runs away
READ_BYTES = 2**16
TICK_S = 0.05  # between two looks whether a command must end
DRAIN_S = 0.5  # for its last output, once nothing of it is alive
TOLD_S, TOLD_CHARS = 0.1, 4000  # how often people are told of output, and how much at a time
MANY_TOLD, SELDOM_S = 100, 1.0  # for what puts out long


@dataclass(frozen=True)
class Ending:
    """How a command ended, in words too; `exit_status` is None when it did not end by itself."""

    exit_status: int | None
    words: str
    seconds: float
    notes: tuple[str, ...] = ()


class Sink(Protocol):
    """Takes what a command puts out, on a thread."""

    num_bytes: int

    def add(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a command runs."""

    sandbox: Sandbox
    confinement: Confinement
    directory: Path


async def run(
    argv: Sequence[str], place: Place, output: Sink, context: Context, timeout_s: float | None = None
) -> Ending:
    """Run it to its end. It ends early at its time-out, when `context.cancelled` is set, and with this task: then all that
    it had started is dead too. Raises ToolError where it cannot be started."""
    began = time.monotonic()
    reading, writing = os.pipe()
    try:
        started = await place.sandbox.start(argv, place.directory, place.confinement, stdout=writing)
    except BaseException as e:
        os.close(reading)
        if isinstance(e, SandboxError):
            raise ToolError(f"no command can run here: {e}") from None
        raise
    finally:
        os.close(writing)
    ours = Cancellation()
    following = asyncio.ensure_future(on_thread(_follow, _Stream(reading, output), replace(context, cancelled=ours)))
    try:
        async with started:
            ended, why = await _end_of(started, lambda: _why_end(context, output, began, timeout_s))
            await asyncio.wait({following}, timeout=DRAIN_S)
    finally:
        ours.set()
        await asyncio.wait({following})
        os.close(reading)
        output.close()
    if ended.failure and not why:
        raise ToolError(f"the command could not be started: {ended.failure}")
    return _ending(ended, why, time.monotonic() - began)


async def _end_of(started: Started, why_end: Callable[[], str]) -> tuple[Ended, str]:
    """How it ended, and why it was ended if it was."""
    ending = asyncio.ensure_future(started.wait())
    try:
        while True:
            await asyncio.wait({ending}, timeout=TICK_S)
            if ending.done():
                return ending.result(), ""
            if why := why_end():
                return await started.kill(), why
    finally:
        ending.cancel()


def _why_end(context: Context, output: Sink, began: float, timeout_s: float | None) -> str:
    if context.cancelled.is_set:
        return "interrupted"
    if output.num_bytes > MAX_OUTPUT_BYTES:
        return f"ended because it put out more than {MAX_OUTPUT_BYTES >> 30} GiB"
    if timeout_s is not None and time.monotonic() - began >= timeout_s:
        return f"timed out (timeout_s={timeout_s:g}) and ended"
    return ""


def _ending(ended: Ended, why: str, seconds: float) -> Ending:
    notes = [f"{path} was put back: no command may change it" for path in ended.restored]
    notes += [f"{ended.left} of its processes could not be killed"] if ended.left else []
    if why or ended.code is None:
        return Ending(None, why or f"stopped: {ended.stopped}", seconds, tuple(notes))
    words = f"exit status {ended.code}"
    with suppress(ValueError):
        words += f" ({signal.Signals(ended.code - 128).name})" if ended.code > 128 else ""
    return Ending(ended.code, words, seconds, tuple(notes))


@dataclass(frozen=True)
class _Stream:
    fd: int
    output: Sink


def _follow(stream: _Stream, context: Context) -> None:
    """Take what comes until the last process has closed the pipe, or `context.cancelled`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    telling = _Telling(context.emit)
    poll = select.poll()
    poll.register(stream.fd, select.POLLIN)
    while not context.cancelled.is_set:
        if poll.poll(TOLD_S * 1000):
            data = os.read(stream.fd, READ_BYTES)
            text = decoder.decode(data, final=not data)
            stream.output.num_bytes += len(data)
            stream.output.add(text)
            telling.add(text)
            if not data:
                break
        telling.tell()
    telling.tell(is_last=True)


class _Telling:
    """Passes output on to people, who cannot read as fast as a program writes: the last of it, several times a second."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit, self._text = emit, ""
        self._told_s, self._num_told = 0.0, 0

    def add(self, text: str) -> None:
        self._text = (self._text + text)[-TOLD_CHARS:]

    def tell(self, is_last: bool = False) -> None:
        now = time.monotonic()
        pause_s = TOLD_S if self._num_told < MANY_TOLD else SELDOM_S
        if self._text and (is_last or now - self._told_s >= pause_s):
            self._emit(self._text)
            self._text, self._told_s = "", now
            self._num_told += 1
