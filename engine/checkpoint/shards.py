"""Finds the tensors in the safetensors files of a directory and proves that the files are whole.

Reads headers and file sizes, never tensor data: a truncated download is refused at once. Knows nothing of models.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeGuard

from holdfast.engine.checkpoint.files import MAX_INDEX_BYTES, read_file, regular_size
from holdfast.engine.errors import CheckpointError

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "BOOL": 1}
DTYPE_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_repr = Repr()
_repr.maxstring = 160
short = _repr.repr  # a damaged value must not fill the screen, a tensor's name is never cut

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `key` is its name inside `path`, `start` the file offset of its bytes."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def find_tensors(directory: Path) -> list[StoredTensor]:
    """Every tensor of the shards that the index names, or of a lone model.safetensors.

    Raises CheckpointError for a missing, truncated or damaged file, or an index that disagrees with the shards.
    """
    index = directory / INDEX_NAME
    if not index.exists():
        if not (directory / SINGLE_NAME).exists():
            raise CheckpointError(f"{directory} has neither {INDEX_NAME} nor {SINGLE_NAME}: download the weights")
        return read_shard(directory / SINGLE_NAME)

    weight_map = _read_index(index)
    found: list[StoredTensor] = []
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).is_file():
            raise CheckpointError(f"{INDEX_NAME} names {shard}, which is not in {directory}: download it")
        found += read_shard(directory / shard)
    for entry in found:
        if weight_map.get(entry.key) != entry.path.name:
            where = weight_map.get(entry.key, "nowhere")
            raise CheckpointError(
                f"{entry.path.name} holds {short(entry.key)}, which {INDEX_NAME} places in {where}: "
                "index and shards are not of one model, download both again"
            )
    absent = sorted(weight_map.keys() - {entry.key for entry in found})
    if absent:
        raise CheckpointError(
            f"{INDEX_NAME} places {short(absent[0])} in {weight_map[absent[0]]}, which lacks it: "
            "index and shards are not of one model, download both again"
        )
    return found


def read_shard(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, in file order; they must fill it exactly, without gaps."""
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(path, f"its header does not fit in its {size:,} bytes")
            header = json.loads(file.read(length))
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not an object")

    header.pop("__metadata__", None)
    entries = [_entry(path, key, fields, 8 + length) for key, fields in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.num_bytes))
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            raise _damaged(path, f"{short(entry.key)} starts at byte {entry.start:,}, expected {end:,}")
        end += entry.num_bytes
    if end > size:
        raise CheckpointError(f"{path} is truncated: {size:,} of {end:,} bytes: download it again")
    if end < size:
        raise _damaged(path, f"it has {size - end:,} bytes that no tensor owns")
    return entries


def _entry(path: Path, key: str, fields: Any, data_start: int) -> StoredTensor:
    """One header entry, checked; the byte range must be what type and shape need."""
    if not isinstance(fields, dict):
        raise _damaged(path, f"header of {short(key)} is {short(fields)}")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _damaged(path, f"{short(key)} has the unknown type {short(dtype)}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{short(key)} has shape {short(shape)} and offsets {short(offsets)}")
    num_bytes = DTYPE_BYTES[dtype]
    for extent in shape:
        num_bytes *= extent
    if offsets[1] - offsets[0] != num_bytes:
        raise _damaged(path, f"{short(key)} has offsets {short(offsets)}, but {dtype} {shape} is {num_bytes:,} bytes")
    return StoredTensor(path, key, dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**60 for n in value)


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(read_file(path, MAX_INDEX_BYTES).decode())
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not JSON") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _damaged(path, "it has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise _damaged(path, f"it names {short(shard)}, which is not a file name")
    return weight_map


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({problem}): download it again")
