"""The tools `outline` and `find_symbol`, over an index of the workspace's symbols.

Owns the index and both output formats. Each query walks the workspace, and a file is read or parsed again only when its version
on disk changed. Must not know how a text is parsed (parsing) or a file chosen (walk).
"""

import re
from collections import Counter
from functools import partial
from pathlib import PurePosixPath

from pydantic import Field

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.files import count, open_text
from holdfast.tools.symbols.definitions import Symbol
from holdfast.tools.symbols.languages import GRAMMARS, UNREAD_SUFFIXES
from holdfast.tools.symbols.parsing import NotParsed, Parser
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Tool, reads, unlisted
from holdfast.tools.walk.skipped import MAX_NAMED, Skipped
from holdfast.tools.walk.walk import MAX_SOURCE_BYTES, TOO_LARGE, FileVersion, SourceEntry, SourceTree
from holdfast.tools.workspace.workspace import Workspace, decode

MAX_OUTLINE_SYMBOLS = 60
MAX_DEFINITIONS = 8
MAX_KEPT_SYMBOLS = 500_000  # about 100 MB
MAX_WORDS = 256  # whose absence from files is remembered
IDENTIFIER_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789_"
TEST_DIRS = frozenset({"test", "tests", "testing", "__tests__"})


class OutlineArguments(Arguments):
    """A source file; `limit` is the most symbols to show, `start` the first of them, counted from 1."""

    path: str
    limit: int = Field(default=MAX_OUTLINE_SYMBOLS, ge=1, le=MAX_OUTLINE_SYMBOLS)
    start: int = unlisted(1)


class FindSymbolArguments(Arguments):
    """A symbol's name, with or without the names it is nested in; `start` is the first definition to show, counted from 1."""

    name: str
    start: int = unlisted(1)


class SymbolIndex:
    """Symbols of the source files of one workspace, kept by path and file version; `definitions` alone changes it.

    Parsing costs a hundred times more than reading (about 6 MB/s), so a file is parsed when it first contains a wanted name, and
    that it does not contain one is remembered.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.parser = Parser()
        self._parsed: dict[str, tuple[FileVersion, tuple[Symbol, ...] | NotParsed]] = {}
        self._num_kept = 0  # symbols in `_parsed`
        self._words: dict[bytes, int] = {}  # a bit for each word that was asked for
        self._without: dict[str, tuple[FileVersion, int]] = {}  # bits of the words that a file does not contain

    def definitions(
        self, name: str, cancellation: Cancellation
    ) -> tuple[list[tuple[str, Symbol]], Skipped, Counter[str]]:
        """(path, symbol) for all symbols whose last components are `name`; in any case when none has the exact case.

        Also what was skipped on the way, and how many files there are of languages that are not indexed, by suffix.
        """
        word = name.rpartition(".")[2].encode(errors="replace").lower()
        if len(self._words) == MAX_WORDS:
            self._words.clear()
            self._without.clear()
        bit = self._words.setdefault(word, 1 << len(self._words))
        hits: list[tuple[str, Symbol]] = []
        unread: Counter[str] = Counter()
        with SourceTree(self.workspace, cancellation) as tree:
            for entry in tree.entries():
                suffix = PurePosixPath(entry.path).suffix
                if suffix in GRAMMARS and entry.size_bytes > MAX_SOURCE_BYTES:
                    tree.skipped.add(TOO_LARGE, entry.path)
                elif suffix in GRAMMARS:
                    symbols = self._symbols(tree, entry, word, bit, cancellation)
                    hits += [(entry.path, symbol) for symbol in symbols if _ends_with(symbol, name)]
                elif suffix in UNREAD_SUFFIXES:
                    unread[suffix] += 1
        exact = [hit for hit in hits if ("." + hit[1].name).endswith("." + name)]
        return exact or hits, tree.skipped, unread

    def _symbols(
        self, tree: SourceTree, entry: SourceEntry, word: bytes, bit: int, cancellation: Cancellation
    ) -> tuple[Symbol, ...]:
        """The file's symbols, or none when `word` is not found in its lower-cased bytes."""
        version, absent = self._without.get(entry.path, (None, 0))
        absent = absent if version == entry.version else 0
        if absent & bit:
            return ()
        version, known = self._parsed.get(entry.path, (None, ()))
        if version == entry.version and not isinstance(known, NotParsed):
            return known
        try:
            data = tree.read(entry.path)
        except PermissionError:
            tree.skipped.add("unreadable", entry.path)
            return ()
        if data is None or not _contains(data.lower(), word):
            self._without[entry.path] = (entry.version, absent | bit)
            return ()
        if version != entry.version:
            known = self._parse(entry, data, cancellation)
        if isinstance(known, NotParsed):
            tree.skipped.add(str(known), entry.path)
            return ()
        return known

    def _parse(self, entry: SourceEntry, data: bytes, cancellation: Cancellation) -> tuple[Symbol, ...] | NotParsed:
        known: tuple[Symbol, ...] | NotParsed
        try:
            text = decode(entry.path, data).text
        except ToolError:
            known = NotParsed("not UTF-8")
        else:
            try:
                known = self.parser.symbols(entry.path, text, cancellation)
            except NotParsed as e:
                known = e
        self._keep(entry, known)
        return known

    def _keep(self, entry: SourceEntry, known: tuple[Symbol, ...] | NotParsed) -> None:
        self._forget(entry.path)
        self._parsed[entry.path] = (entry.version, known)
        self._num_kept += _size(known)
        while self._num_kept > MAX_KEPT_SYMBOLS and len(self._parsed) > 1:
            self._forget(next(iter(self._parsed)))

    def _forget(self, path: str) -> None:
        _, known = self._parsed.pop(path, (None, ()))
        self._num_kept -= _size(known)


def _size(known: tuple[Symbol, ...] | NotParsed) -> int:
    return 0 if isinstance(known, NotParsed) else len(known)


def _contains(data: bytes, word: bytes) -> bool:
    """Whether `word` occurs in lower-cased `data` as a whole. The pattern starts with its literal: a look-behind is ten times slower."""
    ends = re.finditer(re.escape(word) + rb"(?![a-z0-9_])", data)
    return any(match.start() == 0 or data[match.start() - 1] not in IDENTIFIER_BYTES for match in ends)


def _ends_with(symbol: Symbol, name: str) -> bool:
    return ("." + symbol.name.lower()).endswith("." + name.lower())


def outline(index: SymbolIndex, args: OutlineArguments, context: Context) -> str:
    """Symbols of one file in file order as `{line} {kind} {name}`, at most `limit` from `start` on."""
    file = open_text(context.workspace, args.path, context.cancelled)
    suffix = PurePosixPath(file.path).suffix
    if suffix not in GRAMMARS:
        what = f"{suffix} files" if suffix else "files without a suffix"
        raise ToolError(f"no outline for {what}")
    try:
        symbols = index.parser.symbols(file.path, file.text, context.cancelled)
    except NotParsed as e:
        raise ToolError(f"no outline for {file.path}: it {e}; read it instead") from None
    context.workspace.note_shown(file)
    if not symbols:
        return f"{file.path}: no symbols"
    check_start(args.start, len(symbols), file.path, "symbol")
    lines = [f"{file.path}: {count(len(symbols), 'symbol')}"]
    end = args.start - 1 + args.limit
    lines += [f"{s.line} {s.kind} {s.name}" for s in symbols[args.start - 1 : end]]
    return "\n".join(lines + more(len(symbols), end))


def find_symbol(index: SymbolIndex, args: FindSymbolArguments, context: Context) -> str:
    """Definitions of a name as `{path}:{line} {kind} {name}`, those outside tests first, at most 8 from `start` on."""
    name = args.name.strip().replace("::", ".")
    if not name:
        raise ToolError("name is empty; give the name of a class, function or constant")
    hits, skipped, unread = index.definitions(name, context.cancelled)
    if not hits:
        return "\n".join([f"no symbol named {args.name}{_not_indexed(unread)}", *skipped.lines()])
    check_start(args.start, len(hits), args.name, "definition")
    hits.sort(key=lambda hit: (_is_test(hit[0]), hit[0], hit[1].line))
    end = args.start - 1 + MAX_DEFINITIONS
    lines = [f"{path}:{s.line} {s.kind} {s.name}" for path, s in hits[args.start - 1 : end]]
    return "\n".join(lines + more(len(hits), end) + skipped.lines())


def _not_indexed(unread: Counter[str]) -> str:
    """What to say of files in languages without a grammar: nothing was looked for in them."""
    if not unread:
        return ""
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in unread.most_common(MAX_NAMED))
    return f" in the indexed languages; {kinds} {'file is' if unread.total() == 1 else 'files are'} not indexed"


def _is_test(path: str) -> bool:
    parts = PurePosixPath(path).parts
    stem = parts[-1].split(".")[0]
    is_named_test = stem.startswith("test_") or stem.endswith("_test") or ".test." in parts[-1] or ".spec." in parts[-1]
    return is_named_test or any(part in TEST_DIRS for part in parts[:-1])


def check_start(start: int, total: int, what: str, noun: str, plural: str = "") -> None:
    """Raise ToolError when a list has no entry number `start`."""
    if start > total:
        raise ToolError(f"{what} has {count(total, noun, plural)}; start={start} is past the end")


def more(total: int, shown: int) -> list[str]:
    """The last line of a list that was cut after `shown` of its entries."""
    return [f"(+{total - shown} more)"] if total > shown else []


def symbol_tools(index: SymbolIndex) -> tuple[Tool, Tool]:
    """`outline` and `find_symbol`."""
    outlining = Tool(
        "outline",
        "List the classes, functions and constants of a source file.",
        OutlineArguments,
        "reads one file of the workspace",
        reads,
        threaded(partial(outline, index)),
    )
    finding = Tool(
        "find_symbol",
        "Find where a class, function or constant is defined.",
        FindSymbolArguments,
        "reads the source files of the workspace, and parses those with the name once",
        reads,
        threaded(partial(find_symbol, index)),
    )
    return outlining, finding
