"""What a command puts out, bounded in memory and on disk: its beginning and its end for the model, far more of it in a file.

Owns the files of long outputs and their names (`output:3`). Must not know what a command is.
"""

import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from holdfast.tools.errors import ToolError
from holdfast.tools.tool import Context

SHOWN_CHARS = 16_000  # to the model, beginning and end together
LEAST_CHARS, ROOM_TOKENS = 400, 100  # what is shown of it at least; tokens for what is said beside it
FILE_HEAD_BYTES, FILE_TAIL_CHARS = 4 * 2**20, 2**20  # of one file: what `read` opens at most is 16 MiB
MAX_FILES = 16  # of a session; the oldest go
NAME = re.compile(r"output:(\d{1,9})")
# What programs tell a terminal: colours, cursor, titles. A line that was written over counts as it stood last.
SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")
OVERWRITTEN = re.compile(r"[^\n\r]*\r(?=[^\n\r])")
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), 127], "\ufffd")


def readable(text: str) -> str:
    """Text as a terminal would end up with it, nearly: without control sequences."""
    text = OVERWRITTEN.sub("", SEQUENCES.sub("", text).replace("\r\n", "\n"))
    return text.replace("\r", "\n").translate(CONTROLS)


def visible(line: str) -> str:
    """A line for the person who decides about it: what cannot be seen is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def shown(parts: Callable[[int], tuple[str, int, str]], name: str, context: Context) -> str:
    """Output for the model, cut in the middle until it fits. `parts` is a method of `HeadTail` or `Output`, `name` that of the file with all of it."""
    max_chars = SHOWN_CHARS
    while True:
        head, left_out, tail = parts(max_chars)
        where = f"; read shows them: path={name}" if NAME.fullmatch(name) else ""
        middle = f"\n(… {left_out} characters are left out here{where} …)\n" if left_out else ""
        text = f"{readable(head)}{middle}{readable(tail)}".rstrip("\n")
        budget = context.budget
        if budget is None or max_chars <= LEAST_CHARS or budget.count(text) + ROOM_TOKENS <= budget.tokens:
            return text or "(no output)"
        max_chars //= 2


class HeadTail:
    """The first and the last of a text that comes in pieces; what is between is counted."""

    def __init__(self, max_head: int, max_tail: int) -> None:
        self._max_head, self._max_tail = max_head, max_tail
        self._head, self._tail = "", deque[str]()
        self._tail_chars = 0
        self.num_chars = 0

    def add(self, text: str) -> None:
        self.num_chars += len(text)
        room = self._max_head - len(self._head)
        self._head += text[:room] if room else ""
        if len(text) <= room:
            return
        self._tail.append(text[room:][-self._max_tail :])
        self._tail_chars += len(self._tail[-1])
        while self._tail_chars - len(self._tail[0]) >= self._max_tail:
            self._tail_chars -= len(self._tail.popleft())

    def parts(self, max_chars: int) -> tuple[str, int, str]:
        """The beginning, how many characters are left out, and the end, together no longer than `max_chars`."""
        tail = "".join(self._tail)[-self._max_tail :]
        if self.num_chars <= max_chars and self.num_chars == len(self._head) + len(tail):
            return self._head + tail, 0, ""
        head, tail = self._head[: max_chars // 2], (self._head + tail)[-(max_chars - max_chars // 2) :]
        return head, self.num_chars - len(head) - len(tail), tail


class Output:
    """Of one command. What is longer than the model is shown goes to a file too. Any thread may use it."""

    def __init__(self, outputs: "Outputs") -> None:
        self.name = ""  # of the file, once there is one
        self.num_bytes = 0
        self._outputs, self._lock = outputs, threading.Lock()
        self._shown = HeadTail(SHOWN_CHARS // 2, SHOWN_CHARS // 2)
        self._new = HeadTail(SHOWN_CHARS // 2, SHOWN_CHARS // 2)
        self._before = ""  # all of it, until it is too long to be shown
        self._end = HeadTail(0, FILE_TAIL_CHARS)  # what comes after the file is full
        self._file: int | None = None
        self._room_bytes = FILE_HEAD_BYTES

    def add(self, text: str) -> None:
        with self._lock:
            self._shown.add(text)
            self._new.add(text)
            if not self.name and self._shown.num_chars <= SHOWN_CHARS:
                self._before += text
                return
            if not self.name:
                self.name, self._file = self._outputs.begin()
                text, self._before = self._before + text, ""
            self._write(text)

    def close(self) -> None:
        """Nothing comes any more."""
        with self._lock:
            _, left_out, tail = self._end.parts(2 * FILE_TAIL_CHARS)
            self._put((f"\n({left_out} characters are left out here)\n" if left_out else "") + tail)
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def parts(self, max_chars: int = SHOWN_CHARS) -> tuple[str, int, str]:
        """As `HeadTail.parts`."""
        with self._lock:
            return self._shown.parts(max_chars)

    def take_new(self) -> HeadTail:
        """What came since the last time."""
        with self._lock:
            new, self._new = self._new, HeadTail(SHOWN_CHARS // 2, SHOWN_CHARS // 2)
        return new

    def _write(self, text: str) -> None:
        if self._end.num_chars or self._room_bytes < len(text):
            self._end.add(text)
        else:
            self._room_bytes -= self._put(text)

    def _put(self, text: str) -> int:
        data = text.replace("\0", "\ufffd").encode()  # a text file has no NUL
        if self._file is None:
            return len(data)
        try:
            os.write(self._file, data)
        except OSError:  # a full disk must not end the command: the result says what is there
            os.close(self._file)
            self._file = None
        return len(data)


class Outputs:
    """The files of one session, in a directory that is made with the first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def begin(self) -> tuple[str, int | None]:
        """A new file's name and descriptor; none where the disk does not take it."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = self._numbers()
            for number in kept[: max(len(kept) - MAX_FILES + 1, 0)]:
                self._path(number).unlink(missing_ok=True)
            number = max(kept, default=0) + 1
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return f"output:{number}", os.open(self._path(number), flags, 0o600)
        return "-", None

    def read(self, name: str) -> str | None:
        """The text of `output:3`; None for a name that means no output. Raises ToolError for one that is not kept."""
        if not (match := NAME.fullmatch(name)):
            return None
        try:
            return self._path(int(match[1])).read_text("utf-8", errors="replace")
        except OSError:
            kept = ", ".join(f"output:{number}" for number in self._numbers()) or "none"
            raise ToolError(f"{name} is not kept; kept are: {kept}") from None

    def remove(self) -> None:
        """With the session."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        return sorted(int(name.removesuffix(".txt")) for name in names if name.removesuffix(".txt").isdecimal())

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.txt"
