"""Text from a model, a file or a tool, made fit for a terminal: nothing of it arrives as a control sequence."""

import unicodedata

# Direction overrides and separators can make a line read as something it is not.
DECEPTIVE = frozenset("\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def neutral(text: str) -> str:
    """Text for the terminal: control characters but tab and new line become visible signs."""
    if text.isprintable():
        return text
    return "".join(_visible(c) if c in DECEPTIVE or unicodedata.category(c) == "Cc" else c for c in text)


def exact(text: str) -> str:
    """Text that a user is to approve: every character that cannot be seen is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else _visible(c) for c in text)


def one_line(text: str, max_chars: int) -> str:
    """The beginning of a text, on one line."""
    line = neutral(" ".join(text.split()))
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def _visible(character: str) -> str:
    """`\\x1b` for an escape; tab and new line stay."""
    return character if character in "\t\n" else ascii(character)[1:-1]
