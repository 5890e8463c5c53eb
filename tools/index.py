"""The tools `outline` and `find_symbol`, over an index of the workspace's symbols.

Owns the index and both output formats. Each query walks the workspace, and a file is parsed again only when its version
on disk changed. Must not know how a language is parsed (languages) or a file chosen (walk).
"""

import re
from pathlib import PurePosixPath

from pydantic import Field

from .files import open_text
from .languages import grammar_of
from .symbols import Symbol, symbols_of
from .tool import Arguments, ToolError
from .walk import MAX_SOURCE_BYTES, FileVersion, SourceEntry, source_entries
from .workspace import Workspace, decode

MAX_OUTLINE_SYMBOLS = 60
MAX_DEFINITIONS = 8
IDENTIFIER_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789_"
TEST_DIRS = frozenset({"test", "tests", "testing", "__tests__"})


class OutlineArguments(Arguments):
    """A source file; `limit` is the most symbols to show."""

    path: str
    limit: int = Field(default=MAX_OUTLINE_SYMBOLS, ge=1, le=MAX_OUTLINE_SYMBOLS)


class FindSymbolArguments(Arguments):
    """A symbol's name, with or without the names it is nested in."""

    name: str


class SymbolIndex:
    """Symbols of the source files of one workspace, kept by path and file version; `definitions` alone changes it.

    Parsing costs a hundred times more than reading (about 6 MB/s), so a file is parsed when it first contains a wanted name.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._parsed: dict[str, tuple[FileVersion, tuple[Symbol, ...]]] = {}

    def definitions(self, name: str) -> list[tuple[str, Symbol]]:
        """(path, symbol) for all symbols whose last components are `name`; in any case when none has the exact case."""
        entries = [entry for entry in source_entries(self.workspace) if grammar_of(entry.path)]
        current = {entry.path for entry in entries}
        self._parsed = {path: parsed for path, parsed in self._parsed.items() if path in current}
        word = name.rpartition(".")[2].encode().lower()
        hits = [(entry.path, s) for entry in entries for s in self._symbols(entry, word) if _ends_with(s, name)]
        return [hit for hit in hits if ("." + hit[1].name).endswith("." + name)] or hits

    def _symbols(self, entry: SourceEntry, word: bytes) -> tuple[Symbol, ...]:
        """The file's symbols, or none when `word` is not found in its lower-cased bytes."""
        version, symbols = self._parsed.get(entry.path, (None, ()))
        if version == entry.version:
            return symbols
        grammar = grammar_of(entry.path)
        assert grammar is not None, entry.path
        try:
            data = self.workspace.read_bytes(entry.path, MAX_SOURCE_BYTES)
            if not _contains(data.lower(), word):
                return ()
            text = decode(entry.path, data).text
            symbols = symbols_of(text, grammar_of(entry.path, text) or grammar)
        except (ToolError, OSError):  # not text, unreadable, or gone since the walk: it defines nothing we can show
            return ()
        self._parsed[entry.path] = (entry.version, symbols)
        return symbols


def _contains(data: bytes, word: bytes) -> bool:
    """Whether `word` occurs in lower-cased `data` as a whole. The pattern starts with its literal: a look-behind is ten times slower."""
    ends = re.finditer(re.escape(word) + rb"(?![a-z0-9_])", data)
    return any(match.start() == 0 or data[match.start() - 1] not in IDENTIFIER_BYTES for match in ends)


def _ends_with(symbol: Symbol, name: str) -> bool:
    return ("." + symbol.name.lower()).endswith("." + name.lower())


def outline(workspace: Workspace, args: OutlineArguments) -> str:
    """Symbols of one file in file order as `{line} {kind} {name}`, at most `limit`."""
    file = open_text(workspace, args.path)
    grammar = grammar_of(file.path, file.text)
    if grammar is None:
        suffix = PurePosixPath(file.path).suffix
        what = f"{suffix} files" if suffix else "files without a suffix"
        raise ToolError(f"no outline for {what}")
    symbols = symbols_of(file.text, grammar)
    workspace.note_shown(file)
    if not symbols:
        return f"{file.path}: no symbols"
    lines = [f"{file.path}: {len(symbols)} symbol{'s' if len(symbols) > 1 else ''}"]
    lines += [f"{s.line} {s.kind} {s.name}" for s in symbols[: args.limit]]
    return "\n".join(lines + _more(len(symbols), args.limit))


def find_symbol(index: SymbolIndex, args: FindSymbolArguments) -> str:
    """Definitions of a name as `{path}:{line} {kind} {name}`, those outside tests first, at most 8."""
    name = args.name.strip().replace("::", ".")
    if not name:
        raise ToolError("name is empty; give the name of a class, function or constant")
    hits = index.definitions(name)
    if not hits:
        return f"no symbol named {args.name}"
    hits.sort(key=lambda hit: (_is_test(hit[0]), hit[0], hit[1].line))
    lines = [f"{path}:{s.line} {s.kind} {s.name}" for path, s in hits[:MAX_DEFINITIONS]]
    return "\n".join(lines + _more(len(hits), MAX_DEFINITIONS))


def _is_test(path: str) -> bool:
    parts = PurePosixPath(path).parts
    stem = parts[-1].split(".")[0]
    is_named_test = stem.startswith("test_") or stem.endswith("_test") or ".test." in parts[-1] or ".spec." in parts[-1]
    return is_named_test or any(part in TEST_DIRS for part in parts[:-1])


def _more(total: int, shown: int) -> list[str]:
    return [f"(+{total - shown} more)"] if total > shown else []
