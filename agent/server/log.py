"""The server's log: short lines without control characters, and few of a kind.

A client that sends bad requests must not fill the disk. Must not know what is logged.
"""

import logging
import time

from holdfast.agent.terminal.sanitize import neutral

MAX_LINE_CHARS = 500
MAX_TRACE_CHARS = 6000
MAX_OF_KIND = 10  # lines with one message in a period; the others are counted
MAX_KINDS = 100  # in a period; what comes after them counts as one
PERIOD_S = 60.0


class BoundedHandler(logging.StreamHandler):
    """Writes to standard error. Lines above the limit are counted, and the count is written after each period."""

    def __init__(self) -> None:
        super().__init__()
        self._since = time.monotonic()
        self._num_of: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._since >= PERIOD_S:
            self.say_left_out()
        kind = f"{record.name} {str(record.msg)[:MAX_LINE_CHARS]}"
        if kind not in self._num_of and len(self._num_of) >= MAX_KINDS:
            kind = "other messages"
        self._num_of[kind] = self._num_of.get(kind, 0) + 1
        if self._num_of[kind] <= MAX_OF_KIND:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        most = MAX_TRACE_CHARS if record.exc_info else MAX_LINE_CHARS
        text = neutral(f"holdfast: {super().format(record)}")
        if not record.exc_info:
            text = text.replace("\n", " ")
        return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"

    def say_left_out(self) -> None:
        """Write how many lines were left out, and begin a new period."""
        left_out = {kind: num - MAX_OF_KIND for kind, num in self._num_of.items() if num > MAX_OF_KIND}
        self._since, self._num_of = time.monotonic(), {}
        for kind, num in left_out.items():
            name, _, message = kind.partition(" ")
            super().emit(logging.makeLogRecord({"name": name, "msg": f"{num} more lines in a minute like: {message}"}))
