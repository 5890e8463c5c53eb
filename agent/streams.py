"""The standard streams as the caller left them: closed, full, of another encoding, with a reader that has gone.

Owns how a command says that it failed, on the streams that still work. Must not know any command.
"""

import io
import os
import sys
from contextlib import suppress

from holdfast.agent.terminal.sanitize import exact

NULL = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_WRONLY}


def prepare() -> bool:
    """Make stdin, stdout and stderr usable, stdin as UTF-8; returns whether stdout is open."""
    has_output = sys.stdout is not None
    for fd, flags in NULL.items():
        try:
            os.fstat(fd)
        except OSError:  # a file that we open must not get this number, or what is printed goes into it
            os.open(os.devnull, flags)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are refused as a prompt, with a line
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return has_output


def print_json_as_utf8() -> None:
    """JSON is UTF-8 in every locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def say(message: str) -> None:
    """One line of ours on stderr, if that can be written."""
    try:
        print(f"holdfast: {one_line(message)}", file=sys.stderr, flush=True)
    except OSError:
        _to_null(2)


def one_line(message: str) -> str:
    """A message with every character that steers a terminal spelled out, new lines too."""
    return exact(message).replace("\n", "\\n")


def is_output_lost() -> bool:
    """Whether what was printed cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def give_up_output(error: OSError) -> None:
    """Nothing more is written to stdout, at exit either. Where only the reader has gone there is nothing to say."""
    _to_null(1)
    if not isinstance(error, BrokenPipeError):
        say(f"the output cannot be written: {error.strerror}")


def _to_null(fd: int) -> None:
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
