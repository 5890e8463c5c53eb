"""Making directories so that a power cut does not take them away again, with all that was synced inside them."""

import os
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make it, and those above it, private to its owner; durable on return. Raises OSError."""
    missing = [path, *path.parents]
    missing = missing[: next(number for number, above in enumerate(missing) if above.exists())]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
    path.mkdir(mode=0o700, exist_ok=True)  # raises where something else has the name


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
