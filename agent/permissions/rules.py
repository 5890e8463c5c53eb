"""Rules of permission: `allow: shell "pytest *"`, `deny: read ".env*"`. Denials beat permissions, both beat the mode.

A rule says what it is about: `read` is every use of a file (also to change it, and by a command), `edit` every change
of one, `shell` a command line, any other word the tool of that name. Must not know where rules are kept.
"""

import glob
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path

from holdfast.agent.permissions import command_line
from holdfast.agent.permissions.command_line import is_like
from holdfast.tools import Permission, Risk

SHELL, READ, EDIT = "shell", "read", "edit"
RULE = re.compile(r'(allow|deny): ([a-z][a-z0-9_]*) ("(?:[^"\\]|\\.)*")')
HOW = 'a rule is allow or deny, what it is about, and a pattern: allow: shell "pytest *", deny: read ".env*"'
MAX_CHARS = 4096
MAX_STARS = 4  # of a word of a command that is looked up on disk
MAGIC = re.compile("[*?]")


class RuleError(ValueError):
    """A text that is no rule: one line that says why."""


class Effect(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True)
class Rule:
    """One rule; `str` of it is how it is written."""

    effect: Effect
    about: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.effect}: {self.about} {json.dumps(self.pattern, ensure_ascii=not self.pattern.isprintable())}"


def rule_of(text: str) -> Rule:
    """Read a rule as it is written. Raises RuleError."""
    match = RULE.fullmatch(text.strip())
    if match is None or len(text) > MAX_CHARS:
        raise RuleError(f"{_shown(text)} is no rule; {HOW}")
    effect, about, quoted = match.groups()
    try:
        pattern = json.loads(quoted)
    except ValueError:
        raise RuleError(f"{_shown(text)}: the pattern is no text in double quotes") from None
    return checked(Rule(Effect(effect), about, pattern))


def checked(rule: Rule) -> Rule:
    """The rule. Raises RuleError for one that could not mean what it says."""
    if not rule.pattern.strip() or "\0" in rule.pattern or len(rule.pattern) > MAX_CHARS:
        raise RuleError(f'{rule.effect}: {rule.about}: the pattern is empty or no text; "*" is for all')
    is_command = rule.about == SHELL and rule.effect is Effect.ALLOW
    if is_command and (problem := command_line.pattern_problem(rule.pattern)):
        raise RuleError(f"{rule}: {problem}")
    return rule


@dataclass(frozen=True)
class Rules:
    """The rules that hold in the workspace at `root`, a real path."""

    root: Path
    rules: tuple[Rule, ...] = ()

    def denying(self, tool: str, permission: Permission) -> Rule | None:
        """The first rule that forbids a call of this tool."""
        return next((rule for rule in self._of(Effect.DENY) if self._denies(rule, tool, permission)), None)

    def allowing(self, tool: str, permission: Permission) -> Rule | None:
        """The first rule that lets a call of this tool run."""
        return next((rule for rule in self._of(Effect.ALLOW) if _allows(rule, tool, permission)), None)

    def denied_path(self, path: str) -> Rule | None:
        """The rule that forbids to use a file or directory, by its real place relative to the root."""
        return next((rule for rule, pattern in self._unreadable if self._is_at(pattern, path)), None)

    def denied_paths(self) -> list[Path]:
        """What of that is on disk now: real paths, for a sandbox to hide. Below a directory that is named nothing more
        is.
        """
        patterns = [pattern for _, pattern in self._unreadable]
        named = [place for pattern in patterns for place in self._places(pattern)]
        walked = self._walked(patterns) if not all(map(_is_placed, patterns)) else ()
        return sorted({*named, *walked})

    def _of(self, effect: Effect) -> Iterator[Rule]:
        return (rule for rule in self.rules if rule.effect is effect)

    @cached_property
    def _unreadable(self) -> list[tuple[Rule, str]]:
        return [(rule, p) for rule in self._of(Effect.DENY) if rule.about == READ for p in self._patterns(rule)]

    def _denies(self, rule: Rule, tool: str, permission: Permission) -> bool:
        if tool == SHELL:
            line = permission.subjects[0] if permission.subjects else ""
            if rule.about == SHELL:
                return command_line.denies(rule.pattern, line)
            return rule.about in (READ, EDIT) and any(self._is_named(p, line) for p in self._patterns(rule))
        if rule.about == READ or (rule.about == EDIT and permission.risk is not Risk.READ):
            return any(self._is_at(p, path) for p in self._patterns(rule) for path in permission.subjects)
        return rule.about == tool and (
            rule.pattern == "*" or any(is_like(s, rule.pattern) for s in permission.subjects)
        )

    def _patterns(self, rule: Rule) -> list[str]:
        """Of a rule on paths, in one spelling: a name, a path from the root (`./`), or an absolute one; and where a
        link leads.
        """
        pattern = re.sub(r"^(\$HOME|\$\{HOME\})(?=/|$)", "~", rule.pattern.strip())
        found = [_spelled(os.path.expanduser(pattern))]
        place = self.root / found[0]
        if not MAGIC.search(pattern) and os.path.lexists(place) and (real := os.path.realpath(place)) != str(place):
            found.append(real)
        return found

    def _is_at(self, pattern: str, path: str) -> bool:
        return _matches(pattern, str(self.root / path) if pattern.startswith("/") else path)

    def _places(self, pattern: str) -> list[Path]:
        """Where a pattern with directories points; the others are found by walking."""
        if not _is_placed(pattern):
            return []
        return [Path(place) for place in glob.glob(str(self.root / pattern.replace("[", "[[]")), include_hidden=True)]

    def _walked(self, patterns: list[str]) -> Iterator[Path]:
        for directory, names, files in os.walk(self.root):
            above = os.path.relpath(directory, self.root)
            for name in [*names, *files]:
                path = name if above == "." else f"{above}/{name}"
                if any(self._is_at(pattern, path) for pattern in patterns):
                    yield self.root / path
                    if name in names:
                        names.remove(name)

    def _is_named(self, pattern: str, line: str) -> bool:
        """Whether a command names a path that the pattern matches, as far as that can be read off its words."""
        words = {word for command in command_line.commands_in(line) for word in command}
        parts = {part for word in words for part in (word, *re.split(r"[=:,@]", word)) if part}
        places = [
            self.root,
            *(self.root / part for part in parts if os.path.isdir(self.root / part)),
        ]  # `cd there` may be one
        return any(
            self._is_at(pattern, path) for part in parts for place in places for path in self._meant(part, place)
        )

    def _meant(self, word: str, place: Path) -> Iterator[str]:
        """The paths that a word of a command at this place may stand for, relative to the root where they are in it."""
        word = re.sub(r"\$(PWD|\{PWD\})(?=/|$)", str(place), re.sub(r"\$(HOME|\{HOME\})(?=/|$)", "~", word))
        for name in {word, re.sub(r"^-+[A-Za-z]?", "", word)} - {""}:
            at = str(place / os.path.expanduser(name))
            found = glob.glob(at) if MAGIC.search(name) and name.count("*") <= MAX_STARS else []
            for path in (path for each in [at, *found] for path in (os.path.normpath(each), os.path.realpath(each))):
                yield os.path.relpath(path, self.root) if Path(path).is_relative_to(self.root) else path


def _allows(rule: Rule, tool: str, permission: Permission) -> bool:
    subjects = permission.subjects
    if tool == SHELL:
        return rule.about == SHELL and len(subjects) == 1 and command_line.allows(rule.pattern, subjects[0])
    if rule.about == EDIT and permission.risk is Risk.EDIT:
        pattern = _spelled(rule.pattern)
        return bool(subjects) and all(_matches(pattern, path, is_exact=True) for path in subjects)
    if rule.about != tool:
        return False
    return rule.pattern == "*" or (bool(subjects) and all(is_like(subject, rule.pattern) for subject in subjects))


def _spelled(pattern: str) -> str:
    path = posixpath.normpath(pattern)
    return path.replace("//", "/") if path.startswith("/") or "/" not in path else f"./{path}"


def _is_placed(pattern: str) -> bool:
    """Whether it says where from the root on, and no walk is needed to find what it matches."""
    return "/" in pattern and "**" not in pattern


def _matches(pattern: str, path: str, is_exact: bool = False) -> bool:
    """Whether a path, or a directory above it, is meant: by its name anywhere, or from the root where the pattern has a
    slash.
    """
    if not is_exact:  # what a file system takes for the same name is denied too
        pattern, path = (unicodedata.normalize("NFKC", text).casefold() for text in (pattern, path))
    return _expression(pattern).search(path) is not None


@lru_cache
def _expression(pattern: str) -> re.Pattern[str]:
    """As a regular expression: `*` and `?` stand for no slash, `**/` for any directories."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    meaning = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = "".join(meaning.get(piece) or re.escape(piece) for piece in pieces)
    return re.compile(f"{'^' if '/' in pattern else '(?:^|/)'}{body}(?:/|$)", re.DOTALL)


def _shown(text: str) -> str:
    return text[:80] if text.isprintable() else ascii(text[:80])
