"""How single rows are kept: the checksum that each carries, token ids as bytes, and what of a payload can be searched.

Must not know which tables there are. These are formats on disk: another result here is another schema version.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterator
from typing import Any

TOKEN_BYTES = 4  # int32 little endian
CHECKSUM_BYTES = 8


def row_checksum(table: str, *values: int | float | str | bytes | None) -> bytes:
    """Of a row's values and of the table they stand in. ascii(), not repr(): what repr() escapes differs between
    Python versions."""
    return hashlib.blake2b(ascii((table, *values)).encode("ascii"), digest_size=CHECKSUM_BYTES).digest()


def token_checksum(branch_id: int, start: int, blob: bytes) -> bytes:
    """Of the ids and of where they belong: a chunk moved elsewhere does not pass."""
    return hashlib.blake2b(b"%d %d " % (branch_id, start) + blob, digest_size=CHECKSUM_BYTES).digest()


def to_blob(ids: "array[int]") -> bytes:
    return (ids if sys.byteorder == "little" else _swapped(ids)).tobytes()


def from_blob(blob: bytes) -> "array[int]":
    ids = array("i", blob)
    return ids if sys.byteorder == "little" else _swapped(ids)


def text_of(payload: Any) -> str:
    """The strings anywhere in a JSON value, one a line: what a search looks at."""
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
