"""The mode of the terminal: what is typed is kept from the first moment on, and the mode is given back at the end.

Owns termios, bracketed paste and the signals that end a process. Imports nothing slow: the mode is taken before slow
modules are loaded. Must not know what is done with what is typed.
"""

import atexit
import os
import signal
import sys
import termios
from contextlib import suppress
from types import FrameType
from typing import Any

INPUT_IS_LINES = termios.ICANON | termios.ECHO | termios.ECHONL | termios.IEXTEN
PASTE_IN_BRACKETS, PASTE_AS_TYPED = b"\x1b[?2004h", b"\x1b[?2004l"
LOCAL_FLAGS, CONTROL_CHARACTERS = 3, 6  # in what tcgetattr gives


class TerminalMode:
    """The mode of stdin, which is a terminal.

    A terminal that collects lines cuts them at 4,095 characters, sends the first before the second is typed, and shows
    what is typed in the middle of what we show. One that does not waits with what it has no room for.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] | None = None

    @property
    def is_taken(self) -> bool:
        return self._before is not None

    def take(self) -> None:
        """Single characters, not shown, until `give_back` or the end of the process.

        Ctrl-C is a signal, and drops nothing.
        """
        if self._before is not None:
            return
        self._before = termios.tcgetattr(self._fd)
        atexit.register(self.give_back)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._end)
        signal.signal(signal.SIGCONT, self._set_again)  # the shell had the terminal meanwhile
        self._set()

    def give_back(self) -> None:
        """Set the mode that the terminal had before `take`."""
        if self._before is None:
            return
        atexit.unregister(self.give_back)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)
        _tell(PASTE_AS_TYPED)
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        self._before = None

    def _set(self) -> None:
        mode = termios.tcgetattr(self._fd)
        mode[LOCAL_FLAGS] = mode[LOCAL_FLAGS] & ~INPUT_IS_LINES | termios.ISIG | termios.NOFLSH
        mode[CONTROL_CHARACTERS][termios.VMIN], mode[CONTROL_CHARACTERS][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)  # never TCSAFLUSH, which drops what was typed
        _tell(PASTE_IN_BRACKETS)

    def _set_again(self, number: int, frame: FrameType | None) -> None:
        with suppress(termios.error):
            self._set()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _tell(sequence: bytes) -> None:
    """Tell the terminal, if there is one at our outputs."""
    shown = next((stream for stream in (sys.stdout, sys.stderr) if stream is not None and stream.isatty()), None)
    if shown is not None and os.environ.get("TERM") != "dumb":
        with suppress(OSError):
            os.write(shown.fileno(), sequence)
