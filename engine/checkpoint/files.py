"""Reads a file of a model directory whole: only a regular file, only up to a size. Knows nothing of what it holds."""

from pathlib import Path

from holdfast.engine.errors import CheckpointError

MAX_CONFIG_BYTES = 4 << 20
MAX_TOKENIZER_BYTES = MAX_INDEX_BYTES = 256 << 20  # ten times those of the largest models


def read_file(path: Path, most_bytes: int) -> bytes:
    """Raises CheckpointError for what is no regular file, too large or not readable; FileNotFoundError passes.

    A pipe would be waited for, and a device may have no end.
    """
    try:
        size = regular_size(path)
        if size > most_bytes:
            raise CheckpointError(f"{path} has {size:,} bytes, more than {most_bytes:,}: download it again")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None


def regular_size(path: Path) -> int:
    """Bytes of a regular file. Raises CheckpointError for a pipe, a device or a socket, and OSError."""
    size = path.stat().st_size
    if not (path.is_file() or path.is_dir()):  # reading a directory has its error
        raise CheckpointError(f"{path} cannot be read: it is not a regular file, download it again")
    return size
