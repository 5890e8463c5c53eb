"""The prompt of `run`: words of the command line, files (`@FILE`) and stdin, put together.

Owns when stdin is read. Must not know what is done with a prompt.
"""

import os
import select
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast.agent.config import MAX_PROMPT_CHARS, UsageError, printable

PATIENCE_S = 3.0  # for a pipe that may only have been inherited: it is never written to and never closed
MAX_BYTES = 4 * MAX_PROMPT_CHARS  # of UTF-8
CHUNK_BYTES = 1 << 20
Tell = Callable[[str], None]


def read_prompt(words: Sequence[str], tell: Tell) -> str:
    """The prompt: words in one line, each `@FILE` as a paragraph, and stdin between marks where it is piped.

    `-` among the words, or no word at all, means stdin, which is then waited for. Raises UsageError.
    """
    mode = _stdin_mode()
    is_stream = stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
    if not words and not is_stream:
        raise UsageError("there is no prompt: holdfast run WORDS, or - for stdin")
    parts: list[str] = []
    is_line = False  # the last part is words
    for word in words:
        if word == "-":
            continue
        text = _file_text(word) if word.startswith("@") else None
        if text is None and is_line:
            parts[-1] += f" {_typed(word)}"
        else:
            parts.append(_typed(word) if text is None else text)
        is_line = text is None
    is_wanted = not words or "-" in words
    given = _stdin_text(is_wanted, tell) if is_wanted or is_stream else ""
    if given and parts:
        given = f"<stdin>\n{given}\n</stdin>"
    return "\n\n".join(parts + [given] * bool(given))


def _file_text(word: str) -> str | None:
    """What the file of `@FILE` holds; None for a text that only begins like one."""
    path, name = Path(word[1:]), printable(word[1:])
    if not os.path.lexists(path) and (len(word) == 1 or any(character.isspace() for character in word)):
        return None
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else f"is not there: if {printable(word)} is text, quote the prompt"
            raise UsageError(f"{name} {what}")
        with path.open("rb") as file:
            return _text(file.read(MAX_BYTES + 1), name)
    except (OSError, ValueError) as e:
        raise UsageError(f"{name} cannot be read: {getattr(e, 'strerror', e)}") from None


def _typed(word: str) -> str:
    """An argument as UTF-8, in every locale."""
    return os.fsencode(word).decode("utf-8", "surrogateescape")


def _stdin_text(is_wanted: bool, tell: Tell) -> str:
    """See `read_prompt`."""
    fd = sys.stdin.fileno()
    if os.isatty(fd):
        tell("type the prompt; Ctrl-D on an empty line ends it")
    elif not _has_input(fd):
        if not is_wanted:
            tell(f"nothing came on stdin in {PATIENCE_S:.0f} s: going on without it; - in the prompt waits for it")
            return ""
        tell("waiting for the prompt on stdin")
    data = bytearray()
    is_told = False
    while len(data) <= MAX_BYTES:
        if not is_told and data and not os.isatty(fd) and not _has_input(fd):
            tell("waiting for the end of stdin")
            is_told = True
        select.select([fd], [], [])  # it may be a pipe that does not block
        if not (chunk := os.read(fd, CHUNK_BYTES)):
            break
        data += chunk
    return _text(bytes(data), "stdin")


def _stdin_mode() -> int:
    """What kind of file stdin is; 0 for none."""
    try:
        return os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return 0


def _has_input(fd: int) -> bool:
    """Whether something comes in time, the end included."""
    return bool(select.select([fd], [], [], PATIENCE_S)[0])


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is too long for a prompt: {MAX_PROMPT_CHARS:,} characters at most")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{name} is not UTF-8 text (byte {e.start:,} is 0x{data[e.start]:02x})") from None
    if "\0" in text:
        raise UsageError(f"{name} is not text: it has a zero byte")
    return text.rstrip("\n")
