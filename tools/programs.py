"""Programs of the machine, never of the workspace: what a repository brings along must not be run under a trusted name."""

import os
from pathlib import Path


def program(name: str, workspace: Path) -> str | None:
    """The real path of a program on PATH; None where there is none outside the workspace."""
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if not os.path.isabs(directory):
            continue
        path = Path(os.path.realpath(os.path.join(directory, name)))
        is_ours = any(Path(place).is_relative_to(workspace) for place in (os.path.realpath(directory), path))
        if not is_ours and path.is_file() and os.access(path, os.X_OK):
            return os.path.join(directory, name)
    return None
