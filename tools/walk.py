"""Which files of a workspace are source worth searching: the walk, its skip list and gitignore rules.

Owns the decision what is skipped. Must not open any file but `.gitignore`, and must not know who asks.
"""

import os
import re
from dataclasses import dataclass

import pathspec

from .names import to_text
from .tool import ToolError
from .workspace import Workspace

SKIPPED_DIRS = frozenset({".git", "__pycache__", "node_modules", ".venv"})
MAX_SOURCE_BYTES = 2 * 2**20

FileVersion = tuple[int, int, int]  # mtime_ns, size_bytes, inode


@dataclass(frozen=True)
class SourceEntry:
    """A file worth looking into; `version` changes when the file is written or replaced."""

    path: str
    version: FileVersion


@dataclass(frozen=True)
class IgnoreRules:
    """The rules of one `.gitignore`, which apply below `folder` ("" or ending in `/`)."""

    folder: str
    spec: pathspec.GitIgnoreSpec


def source_entries(workspace: Workspace) -> list[SourceEntry]:
    """Regular files of at most 2 MB that no rule skips, sorted by path. Links are not followed."""
    entries: list[SourceEntry] = []
    # An own stack: how deep directories nest is not ours to choose.
    waiting: list[tuple[str, tuple[IgnoreRules, ...]]] = [("", ())]
    while waiting:
        folder, rules = waiting.pop()
        try:
            with (
                workspace.open_dir(folder) as fd,
                os.scandir(fd) as scan,
            ):  # entries ask the open directory for their status
                children = list(scan)
                if any(child.name == ".gitignore" for child in children):
                    rules = (*_read_rules(workspace, folder), *rules)
                for child in children:
                    path = folder + to_text(child.name)
                    if child.is_dir(follow_symlinks=False):
                        if child.name not in SKIPPED_DIRS and not _is_ignored(path + "/", rules):
                            waiting.append((path + "/", rules))
                    elif child.is_file(follow_symlinks=False) and not _is_ignored(path, rules):
                        entries += _entry(path, child)
        except (ToolError, OSError):  # our own, unreadable, or gone since it was listed: nothing to find there
            continue
    return sorted(entries, key=lambda entry: entry.path)


def _entry(path: str, child: os.DirEntry[str]) -> list[SourceEntry]:
    try:
        status = child.stat(follow_symlinks=False)
    except FileNotFoundError:
        return []
    if status.st_size > MAX_SOURCE_BYTES:
        return []
    return [SourceEntry(path, (status.st_mtime_ns, status.st_size, status.st_ino))]


def _read_rules(workspace: Workspace, folder: str) -> tuple[IgnoreRules, ...]:
    try:
        text = workspace.read_text(folder + ".gitignore").text
    except (ToolError, OSError):  # a `.gitignore` that is no readable text file has no rules
        return ()
    lines = [line for line in text.splitlines() if _is_rule(line)]
    return (IgnoreRules(folder, pathspec.GitIgnoreSpec.from_lines(lines)),)


def _is_rule(line: str) -> bool:
    """Git ignores a line that is no pattern."""
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def _is_ignored(path: str, rules: tuple[IgnoreRules, ...]) -> bool:
    """The innermost `.gitignore` with an opinion decides, as in git; `path` of a directory ends in `/`."""
    for rule in rules:
        include = rule.spec.check_file(path[len(rule.folder) :]).include
        if include is not None:
            return include
    return False
