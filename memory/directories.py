"""Durable directories: made and synced so that a power cut loses neither them nor the files synced inside."""

import os
from pathlib import Path


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, with mode 0700; durable on return. Raises OSError."""
    missing = [path, *path.parents]
    missing = missing[: next(number for number, above in enumerate(missing) if above.exists())]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
    path.mkdir(mode=0o700, exist_ok=True)  # raises where something else has the name


def sync_directory(path: Path) -> None:
    """Sync a directory, which makes the names in it durable. Raises OSError."""
    directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
