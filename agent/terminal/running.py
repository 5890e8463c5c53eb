"""The end of what a running call puts out, in a few lines that are drawn over again. Must not know what the call is."""

import re

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from holdfast.agent.terminal.sanitize import neutral

MAX_LINES = 5
MAX_KEPT_CHARS = 4000
INDENT = "  "
STYLES = re.compile(r"\x1b\[[0-9;:]*m")  # colours: what else a program tells its terminal is shown as it is


class RunningOutput:
    """Drawn on a terminal alone: what is piped gets the result."""

    def __init__(self, console: Console):
        self._console = console
        self._text = ""
        self._num_drawn = 0

    def add(self, delta: str) -> None:
        """Take more in, and draw the last lines in the place of those before."""
        self._text = (self._text + delta)[-MAX_KEPT_CHARS:]
        if not self._console.is_terminal:
            return
        self._erase()
        lines = self._text.rstrip("\n").split("\n")[-MAX_LINES:]
        for line in lines:
            # a program that shows its progress writes over its line. No line may be longer than the terminal's: it
            # would take two, and only one would be erased
            last = STYLES.sub("", line.rstrip("\r").rpartition("\r")[2]).expandtabs(4)
            shown = Text(INDENT + neutral(last), style="dim")
            shown.truncate(max(self._console.width - 1, 1), overflow="ellipsis")
            self._console.print(shown, no_wrap=True, highlight=False)
        self._num_drawn = len(lines)

    def clear(self) -> None:
        """The call has ended, or something else is to be shown."""
        self._erase()
        self._text = ""

    def _erase(self) -> None:
        for _ in range(self._num_drawn):
            self._console.control(Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)))
        self._num_drawn = 0
