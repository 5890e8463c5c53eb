"""Files by which a git repository makes git run programs, and directories in which git writes.

Owns where they are: hooks and configuration of every repository near the top of a workspace, of its submodules and
worktrees. Must not know how they are kept from being changed.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEPTH = 3  # of directories below the workspace in which a repository is looked for
MAX_DIRECTORIES = 4096
# `commondir` moves hooks and configuration elsewhere; git follows one in any repository
KEPT = ("config", "config.worktree", "hooks", "commondir", "gitdir")
INCLUDED = re.compile(
    r"^\s*\[\s*include[^\]]*\][^\[]*?^\s*path\s*=\s*\"?([^\"\n]+?)\"?\s*$", re.MULTILINE | re.IGNORECASE
)


@dataclass(frozen=True)
class Repositories:
    """`directories` are git's own, in which it writes; `kept` is what no command may change or make."""

    directories: tuple[Path, ...]
    kept: tuple[Path, ...]


def find_repositories(workspace: Path) -> Repositories:
    """Of a workspace, a real path."""
    directories: list[Path] = []
    kept: list[Path] = []
    for entry in _git_entries(workspace):
        if entry.is_file():
            kept.append(entry)
        for directory in _directories(entry):
            directories.append(directory)
            kept += [directory / name for name in KEPT]
            kept += _included(directory / "config", workspace)
    return Repositories(tuple(dict.fromkeys(directories)), tuple(dict.fromkeys(kept)))


def _git_entries(workspace: Path) -> Iterator[Path]:
    """Each `.git`, a directory or the file of a worktree or submodule."""
    level, num_seen = [workspace], 0
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for directory in level:
            num_seen += 1
            if num_seen > MAX_DIRECTORIES:
                return
            try:
                entries = [entry for entry in os.scandir(directory) if not entry.is_symlink()]
            except OSError:
                continue
            yield from (Path(entry.path) for entry in entries if entry.name == ".git")
            below += [Path(e.path) for e in entries if e.name not in (".git", "node_modules") and e.is_dir()]
        level = below


def _directories(entry: Path) -> Iterator[Path]:
    """git's directories of a `.git`, those of its submodules and worktrees among them."""
    if entry.is_dir():
        yield entry
        yield from (path.parent for path in sorted(entry.glob("modules/**/HEAD")))
        yield from (path.parent for path in sorted(entry.glob("worktrees/*/HEAD")))
        return
    directory = _pointed(entry, "gitdir: ")
    # the file is the workspace's word alone; git's own directory of a worktree or submodule points back
    if directory is None or not _points_back(directory, entry):
        return
    yield directory
    common = _pointed(directory / "commondir", "")
    if common is not None:
        yield common


def _points_back(directory: Path, entry: Path) -> bool:
    if (directory / "gitdir").is_file():
        return _pointed(directory / "gitdir", "") == entry
    try:
        worktree: str
        (worktree,) = re.findall(r"^\s*worktree\s*=\s*(.+?)\s*$", (directory / "config").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return False
    return (directory / worktree).resolve() == entry.parent


def _pointed(file: Path, prefix: str) -> Path | None:
    """The path that a file of git's holds."""
    try:
        line = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return (file.parent / line.removeprefix(prefix)).resolve() if line.startswith(prefix) else None


def _included(config: Path, workspace: Path) -> list[Path]:
    """Configuration files of the workspace that another includes."""
    try:
        found = INCLUDED.findall(config.read_text())
    except (OSError, UnicodeDecodeError):
        return []
    paths = [(config.parent / os.path.expanduser(name)).resolve() for name in found]
    return [path for path in paths if path.is_relative_to(workspace)]
