"""Messages between the ranks of one engine, processes of one machine: a JSON header, then raw arrays.

A message is the header's length (4 bytes, little-endian), the header and the bytes of its arrays, whose types and
shapes the header says. Nothing is unpickled, and nothing here knows what a message means.
"""

import json
import socket
from typing import Any, BinaryIO, NamedTuple

import numpy as np

DTYPES = ("int64", "uint8")


class Message(NamedTuple):
    kind: str
    fields: dict[str, Any]
    arrays: list[np.ndarray]


def encode(kind: str, fields: dict[str, Any], arrays: tuple[np.ndarray, ...] = ()) -> bytes:
    shapes = [(str(array.dtype), array.shape) for array in arrays]
    header = json.dumps({"kind": kind, "fields": fields, "arrays": shapes}).encode()
    return b"".join((len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in arrays)))


def receive(stream: BinaryIO) -> Message | None:
    """The next message; None when the other side has ended, in the middle of one too."""
    try:
        header = json.loads(_read(stream, int.from_bytes(_read(stream, 4), "little")))
        # copies: compiled kernels want arrays aligned and writable
        arrays = [_read_array(stream, dtype, shape) for dtype, shape in header["arrays"]]
    except (EOFError, ConnectionError):
        return None
    return Message(header["kind"], header["fields"], arrays)


def send(to: socket.socket, kind: str, **fields: Any) -> None:
    """A message without arrays. Raises OSError when the other side has ended."""
    to.sendall(encode(kind, fields))


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _read_array(stream: BinaryIO, dtype: str, shape: list[int]) -> np.ndarray:
    assert dtype in DTYPES, dtype
    array = np.empty(shape, dtype)
    if array.size and stream.readinto(array.reshape(-1).view(np.uint8)) < array.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return array
