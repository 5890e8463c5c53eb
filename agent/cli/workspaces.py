"""Which directory a command works in: the named or the current one.

A whole home directory or file system has to be confirmed by a person first: a model could read keys there and change
what every login runs.
"""

import os
import sys
import termios
from contextlib import suppress
from pathlib import Path

from holdfast.agent.config import UsageError, printable, workspace_directory


def chosen_workspace(named: str | None, can_ask: bool) -> Path:
    """The real path of the directory to work in.

    Raises UsageError where there is none, or where all of it was not confirmed.
    """
    directory = workspace_directory("." if named is None else named)
    what = _all_of(directory)
    if named is not None or what is None:
        return directory
    if can_ask and _is_meant(f"Work in {printable(str(directory))}, {what}? [y/N] "):
        return directory
    raise UsageError(
        f"this directory is {what}: go to a project's directory and start there,"
        f" or say that you mean all of it with --workspace {printable(str(directory))}"
    )


def _all_of(directory: Path) -> str | None:
    for place, what in (("/", "the whole file system"), (os.path.expanduser("~"), "your home directory")):
        with suppress(OSError):
            if os.path.samefile(directory, place):
                return what
    return None


def _is_meant(question: str) -> bool:
    with suppress(termios.error, OSError):  # what was typed before the question is no answer to it
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
