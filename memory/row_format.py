"""The format of rows: their checksum, token ids as bytes, and the searchable text of a payload.

Must not know which tables there are. These are formats on disk: a changed result needs a new schema version.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterator
from typing import Any

TOKEN_BYTES = 4  # int32 little endian
CHECKSUM_BYTES = 8


def row_checksum(table: str, *values: int | float | str | bytes | None) -> bytes:
    """Checksum of a row's values and its table's name. ascii(), not repr(): which characters repr() escapes depends on
    the Python version."""
    return hashlib.blake2b(ascii((table, *values)).encode("ascii"), digest_size=CHECKSUM_BYTES).digest()


def token_checksum(branch_id: int, start: int, blob: bytes) -> bytes:
    """Checksum of token ids and of their place: a chunk that is moved does not pass."""
    return hashlib.blake2b(b"%d %d " % (branch_id, start) + blob, digest_size=CHECKSUM_BYTES).digest()


def to_blob(ids: "array[int]") -> bytes:
    return (ids if sys.byteorder == "little" else _swapped(ids)).tobytes()


def from_blob(blob: bytes) -> "array[int]":
    ids = array("i", blob)
    return ids if sys.byteorder == "little" else _swapped(ids)


def text_of(payload: Any) -> str:
    """All strings in a JSON value, one a line: the text that is searched."""
    return "\n".join(_strings(payload))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _swapped(ids: "array[int]") -> "array[int]":
    swapped = ids[:]
    swapped.byteswap()
    return swapped
