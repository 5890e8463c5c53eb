"""Ignore rules as git reads them: the lines of a `.gitignore` and what they match, in time linear in the path.

Owns git's pattern language (wildmatch.c, dir.c). Must not know files, folders nor where rules come from. Paths are bytes, as in git.

A pattern of any shape is simulated as a set of states held in one integer, so no pattern can make the matcher backtrack.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

GLOB_SPECIAL = frozenset(b"*?[\\")
SLASH = ord("/")
# git's own ctype tables: ASCII alone, and neither \v nor \f is space
_PRINT = frozenset(range(0x20, 0x7F))
_SPACE = frozenset(b" \t\n\r")
_LOWER = frozenset(b"abcdefghijklmnopqrstuvwxyz")
_UPPER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGIT = frozenset(b"0123456789")
_ALNUM = _LOWER | _UPPER | _DIGIT
CLASSES = {
    b"alnum": _ALNUM,
    b"alpha": _LOWER | _UPPER,
    b"blank": frozenset(b" \t"),
    b"cntrl": frozenset(range(0x20)) | {0x7F},
    b"digit": _DIGIT,
    b"graph": _PRINT - _SPACE,
    b"lower": _LOWER,
    b"print": _PRINT,
    b"punct": _PRINT - _ALNUM - _SPACE,
    b"space": _SPACE,
    b"upper": _UPPER,
    b"xdigit": _DIGIT | frozenset(b"abcdefABCDEF"),
}
NOT_SLASH = frozenset(range(256)) - {SLASH}
STAR, ANY_PATH, FOLDERS = (
    "*",
    "**",
    "**/",
)  # tokens that match any number of bytes; FOLDERS stands for `**/`, which may match none

Token = frozenset[int] | str


@dataclass(frozen=True)
class Pattern:
    """One line. `glob` has neither the `!` before nor the `/` after; `in_basename`: it has no slash, so any folder will do."""

    glob: bytes
    is_negative: bool
    only_dirs: bool
    in_basename: bool

    @cached_property
    def literal(self) -> bytes | None:
        """What the glob stands for when it has no wildcard."""
        return None if GLOB_SPECIAL & set(self.glob) else self.glob.removeprefix(b"/")

    @cached_property
    def suffix(self) -> bytes | None:
        """`.o` for `*.o`, the commonest kind, else None."""
        rest = self.glob[1:]
        return rest if self.in_basename and self.glob[:1] == b"*" and not GLOB_SPECIAL & set(rest) else None

    @cached_property
    def automaton(self) -> "Automaton | None":
        return Automaton.of(self.glob if self.in_basename else self.glob.removeprefix(b"/"), self.in_basename)

    def matches(self, path: bytes, name: bytes) -> bool:
        """Whether it matches `path`, relative to the rules' folder, whose last component is `name`."""
        text = name if self.in_basename else path
        if self.literal is not None:
            return text == self.literal
        return self.automaton is not None and self.automaton.matches(text)


def parse_line(line: bytes) -> Pattern | None:
    """The pattern of a line without its end; None for a comment and for what can match nothing."""
    line = _trimmed(line.partition(b"\0")[0])
    if not line or line.startswith(b"#"):
        return None
    is_negative = line.startswith(b"!")
    glob = line[is_negative:]
    only_dirs = glob.endswith(b"/")
    glob = glob[: len(glob) - only_dirs]
    return Pattern(glob, is_negative, only_dirs, in_basename=b"/" not in glob) if glob else None


def _trimmed(line: bytes) -> bytes:
    """Without the spaces at its end; a backslash keeps the one after it."""
    kept = line.rstrip(b" ")
    num_backslashes = len(kept) - len(kept.rstrip(b"\\"))
    return line[: len(kept) + 1] if num_backslashes % 2 else kept


@dataclass(frozen=True)
class Rules:
    """The patterns of one file, whose paths are relative to one folder. The last that matches decides."""

    patterns: tuple[Pattern, ...]
    _by_name: dict[bytes, list[int]] = field(default_factory=dict)
    _by_suffix: dict[bytes, list[int]] = field(default_factory=dict)
    _others: list[int] = field(default_factory=list)

    @staticmethod
    def of(data: bytes) -> "Rules":
        """Rules of a file's bytes, in any encoding."""
        lines = (line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        rules = Rules(tuple(pattern for line in lines if (pattern := parse_line(line))))
        for number, pattern in enumerate(rules.patterns):
            if pattern.in_basename and pattern.literal is not None:
                rules._by_name.setdefault(pattern.literal, []).append(number)
            elif pattern.suffix is not None:
                rules._by_suffix.setdefault(pattern.suffix, []).append(number)
            else:
                rules._others.append(number)
        return rules

    @cached_property
    def _suffixes(self) -> tuple[bytes, ...]:
        return tuple(self._by_suffix)

    def ignores(self, path: bytes, is_dir: bool) -> bool | None:
        """Whether the rules ignore `path`, or None when none of them matches it."""
        name = path[path.rfind(b"/") + 1 :]
        candidates: Iterable[int] = self._by_name.get(name, ())
        if self._suffixes and name.endswith(self._suffixes):
            ends = (self._by_suffix.get(name[start:], ()) for start in range(len(name) + 1))
            candidates = [*candidates, *(number for numbers in ends for number in numbers)]
        fitting = [number for number in candidates if is_dir or not self.patterns[number].only_dirs]
        last = max(fitting, default=-1)
        for number in reversed(self._others):
            pattern = self.patterns[number]
            if number < last:
                break
            if (is_dir or not pattern.only_dirs) and pattern.matches(path, name):
                last = number
                break
        return None if last < 0 else not self.patterns[last].is_negative


@dataclass(frozen=True)
class Automaton:
    """States 0 to `accept` count the tokens matched so far; a set of them is an integer, bit by bit.

    A token that matches any number of bytes keeps its state alive, and lets the next one begin without a byte.
    """

    prefix: bytes  # literal, before the first wildcard
    min_bytes: int
    last: Token  # most names fail at their last byte already
    accept: int
    steps: dict[int, int]  # byte -> states whose token is this one byte
    stars: int  # states that stay on any byte but a slash
    paths: int  # states that stay on any byte
    folders: int  # states of FOLDERS, whose slash is the next token and which may be skipped with it

    @staticmethod
    def of(glob: bytes, in_basename: bool) -> "Automaton | None":
        """None when the glob matches nothing: a backslash at its end, a malformed class."""
        prefix = glob[: next((i for i, byte in enumerate(glob) if byte in GLOB_SPECIAL), len(glob))]
        tokens = _tokens(glob[len(prefix) :], in_basename)
        if tokens is None:
            return None
        steps: dict[int, int] = {}
        masks = {STAR: 0, ANY_PATH: 0, FOLDERS: 0}
        for state, token in enumerate(tokens):
            if isinstance(token, str):
                masks[token] |= 1 << state
                continue
            for byte in token:
                steps[byte] = steps.get(byte, 0) | 1 << state
        num_bytes = len(tokens) - sum(mask.bit_count() for mask in masks.values()) - masks[FOLDERS].bit_count()
        paths = masks[ANY_PATH] | masks[FOLDERS]
        return Automaton(
            prefix, len(prefix) + num_bytes, tokens[-1], len(tokens), steps, masks[STAR], paths, masks[FOLDERS]
        )

    def matches(self, text: bytes) -> bool:
        if len(text) < self.min_bytes or not text.startswith(self.prefix):
            return False
        if isinstance(self.last, frozenset) and text[-1] not in self.last:
            return False
        states = self._entered(1)
        for byte in text[len(self.prefix) :]:
            kept = states & (self.paths if byte == SLASH else self.paths | self.stars)
            states = self._entered((states & self.steps.get(byte, 0)) << 1) | kept | (kept << 1)
            if not states:
                return False
        return bool(states >> self.accept & 1)

    def _entered(self, states: int) -> int:
        """With what is reached from them without a byte. No two FOLDERS follow each other, so one round is all."""
        states |= (states & self.folders) << 2
        return states | (states & (self.stars | self.paths)) << 1


def _tokens(glob: bytes, in_basename: bool) -> list[Token] | None:
    tokens: list[Token] = []
    at = 0
    while at < len(glob):
        token: Token | None
        if glob[at] == ord("*"):
            token, at = _star(glob, at, in_basename)
            if token == FOLDERS:
                if tokens[-2:-1] != [FOLDERS]:
                    tokens += [FOLDERS, frozenset({SLASH})]
                continue
        elif glob[at] == ord("["):
            token, at = _bracket(glob, at + 1)
        elif glob[at] == ord("?"):
            token, at = NOT_SLASH, at + 1
        else:
            at += glob[at] == ord("\\")
            token, at = (frozenset({glob[at]}) if at < len(glob) else None), at + 1
        if token is None:
            return None
        tokens.append(token)
    return tokens


def _star(glob: bytes, at: int, in_basename: bool) -> tuple[Token, int]:
    """Stars from `at` on, and where the rest begins. Only as a whole component do two stars cross slashes."""
    end = len(glob) - len(glob[at:].lstrip(b"*"))
    after = glob[end : end + 2]
    is_component = (at == 0 or glob[at - 1] == SLASH) and (not after or after[:1] == b"/" or after == b"\\/")
    if in_basename or end - at < 2 or not is_component:
        return STAR, end
    return (FOLDERS, end + 1) if after[:1] == b"/" else (ANY_PATH, end)


def _bracket(glob: bytes, at: int) -> tuple[frozenset[int] | None, int]:
    """The bytes that a class matches, and where the rest begins; None when it is malformed. `at` is past the `[`."""
    is_negative = glob[at : at + 1] in (b"!", b"^")
    first = at = at + is_negative
    members: set[int] = set()
    before: int | None = None  # the member that a `-` may begin a range with
    while at < len(glob):
        byte = glob[at]
        if byte == ord("]") and at > first:
            return (NOT_SLASH - members if is_negative else NOT_SLASH & members), at + 1
        is_range = byte == ord("-") and before is not None and glob[at + 1 : at + 2] not in (b"", b"]")
        at += is_range
        if not is_range and glob[at : at + 2] == b"[:":
            end = glob.find(b"]", at + 2)
            if end < 0:
                return None, at
            if end > at + 2 and glob[end - 1] == ord(":"):
                named = CLASSES.get(glob[at + 2 : end - 1])
                if named is None:
                    return None, at
                members, before, at = members | named, None, end + 1
                continue
        at += glob[at] == ord("\\")
        if at >= len(glob):
            return None, at
        members |= set(range(before, glob[at] + 1)) if is_range and before is not None else {glob[at]}
        before, at = None if is_range else glob[at], at + 1
    return None, at
