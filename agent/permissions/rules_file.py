"""The file that keeps rules of permission: one a data directory, in lines that a person reads and edits.

    [user]
    deny: read ".env*"

    [/home/ada/shop]
    allow: shell "pytest *"

`[user]` holds in every workspace. The file is in the data directory, which no tool touches: a repository brings no
rules. Users of a server have tables of their own, `[user NAME]` and `[NAME in PATH]`; what the owner of the data denies
is denied to them too.
"""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.agent.permissions.rules import Effect, Rule, RuleError, Rules, rule_of
from holdfast.memory import make_directory, sync_directory

NAME = "permissions"
USER = "user"
MAX_BYTES = 1 << 20
OPENING = """\
# Rules of holdfast: what may run without a question, and what never may. docs/sessions.md has the patterns.
# A denial beats a permission, and both beat the mode (--approve). [user] holds everywhere, [PATH] in one workspace.
"""


class BrokenRules(Exception):
    """The file cannot be taken at its word: one line that says where and what to do. Nothing may run on it."""


def table_of(workspace: Path | None, owner: str = "") -> str:
    """The table of a workspace, or of its user in every workspace. Raises RuleError for a name that cannot stand in a
    line.
    """
    if workspace is None:
        return f"{USER} {owner}" if owner else USER
    if not str(workspace).isprintable():
        raise RuleError(f"workspace {str(workspace)!a}: its name cannot stand in a line of the file")
    return f"{owner} in {workspace}" if owner else str(workspace)


class RulesFile:
    """The rules of one data directory. Any thread and any process may use it."""

    def __init__(self, home: Path):
        self.path = home / NAME

    def tables(self) -> dict[str, list[Rule]]:
        """All rules by table, in the order of the file. Raises BrokenRules."""
        tables: dict[str, list[Rule]] = {}
        for _, table, rule in self._read(self._lines()):
            tables.setdefault(table, []).append(rule)
        return tables

    def load(self, root: Path, owner: str = "") -> Rules:
        """The rules of an owner in a workspace. Raises BrokenRules."""
        tables = self.tables()
        own = [rule for table in _names(root, owner) for rule in tables.get(table, [])]
        others = [rule for table in _names(root, "") for rule in tables.get(table, []) if rule.effect is Effect.DENY]
        return Rules(root, tuple(dict.fromkeys([*own, *others])))

    def add(self, table: str, rule: Rule) -> None:
        """Write a rule, durably; one that is there already stays as it is. Raises BrokenRules and OSError."""

        def added(lines: list[str]) -> list[str]:
            found = list(self._read(lines))
            if (table, rule) in [(name, each) for _, name, each in found]:
                return lines
            head = next((n for n, line in enumerate(lines) if line.strip() == f"[{table}]"), None)
            if head is None:
                return [*(lines or OPENING.splitlines()), "", f"[{table}]", str(rule)]
            after = max((n for n, name, _ in found if name == table), default=head) + 1
            return [*lines[:after], str(rule), *lines[after:]]

        self._change(added)

    def remove(self, table: str, rule: Rule) -> bool:
        """Take a rule away, durably; whether it was there. Raises BrokenRules and OSError."""
        gone: set[int] = set()

        def removed(lines: list[str]) -> list[str]:
            gone.update(n for n, name, each in self._read(lines) if (name, each) == (table, rule))
            return [line for n, line in enumerate(lines) if n not in gone]

        self._change(removed)
        return bool(gone)

    def _lines(self) -> list[str]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        except OSError as e:
            raise BrokenRules(f"{self.path} cannot be read ({e.strerror}): nothing may run until it can") from None
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                raise BrokenRules(f"{self.path} is no file of rules: move it away")
            if status.st_mode & 0o022:
                raise BrokenRules(f"{self.path} can be written by others: chmod 600 it, and read what is in it")
            data = file.read(MAX_BYTES)
        try:
            return data.decode().splitlines()
        except UnicodeDecodeError:
            raise BrokenRules(f"{self.path} is not UTF-8 text: mend it or move it away") from None

    def _read(self, lines: list[str]) -> Iterator[tuple[int, str, Rule]]:
        """Index of the line, table and rule. Raises BrokenRules."""
        table = None
        for number, line in enumerate(map(str.strip, lines)):
            if not line or line.startswith("#"):
                continue
            if line.startswith("[") and line.endswith("]"):
                table = line[1:-1]
                continue
            try:
                rule = rule_of(line)
            except RuleError as e:
                raise BrokenRules(f"{self.path}, line {number + 1}: {e}. Nothing may run until it is mended") from None
            if table is None:
                raise BrokenRules(f"{self.path}, line {number + 1}: a rule before the first [table]; put it below one")
            yield number, table, rule

    def _change(self, change: Callable[[list[str]], list[str]]) -> None:
        make_directory(self.path.parent)
        with self._alone():
            before = self._lines()
            after = change(before)
            if after == before:
                return
            new = self.path.with_name(f"{NAME}.new")
            with open(new, "w", encoding="utf-8", opener=_private) as file:
                file.write("\n".join(after) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
            sync_directory(self.path.parent)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of all processes."""
        fd = os.open(self.path.with_name(f"{NAME}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@dataclass(frozen=True)
class WorkspaceRules:
    """The rules that hold for one user in one workspace, as they are in the file now."""

    file: RulesFile
    root: Path
    owner: str = ""

    def load(self) -> Rules:
        """Raises BrokenRules."""
        return self.file.load(self.root, self.owner)

    def remember(self, rule: Rule) -> None:
        """Write it for this workspace. Raises BrokenRules, RuleError and OSError."""
        self.file.add(table_of(self.root, self.owner), rule)


def _names(root: Path, owner: str) -> list[str]:
    return [f"{USER} {owner}" if owner else USER, f"{owner} in {root}" if owner else str(root)]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
