r"""File names as text: one line, without ambiguity, for a terminal and a model.

A name of printable characters is its own text. In any other, and in one with a backslash, what cannot be printed is escaped as
Python does (`\n`, `\x1b`, `\u202f`), bytes that are no UTF-8 are `\x80` to `\xff`, and a backslash is doubled.
"""

import re
import unicodedata

_ESCAPE = re.compile(r"\\(?:\\|[nrt]|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte of a name
_SHORT = {"\\\\": "\\", r"\n": "\n", r"\r": "\r", r"\t": "\t"}


def to_text(name: str) -> str:
    """A name as the system gives it (`os.fsdecode`), also a path of names, as text."""
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(map(_escaped, name))


def from_text(text: str) -> str:
    """The name that has this text. Text that no name has is taken as it is."""
    if "\\" not in text:
        return text
    name = _ESCAPE.sub(_unescaped, text)
    is_name = "\0" not in name and not _NO_BYTE.search(name)
    return name if is_name and to_text(name) == text else text


def looks(name: str) -> str:
    """What names have in common that are spelled in other Unicode forms, or with other spaces: people and models mix them up."""
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in unicodedata.normalize("NFC", name))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as `os.fsdecode` gives it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return ascii(character)[1:-1]
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescaped(match: re.Match[str]) -> str:
    byte, *unicode = match.groups()
    if byte is not None:
        return chr(int(byte, 16) + (0xDC00 if byte >= "80" else 0))
    code = next((digits for digits in unicode if digits), None)
    if code is None:
        return _SHORT[match.group()]
    return chr(int(code, 16)) if int(code, 16) < 0x110000 else match.group()
