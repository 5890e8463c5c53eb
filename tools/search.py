"""The tool `search`: literal, case-sensitive text over the files of the workspace.

Owns its output format. Must not know symbols (index), how files are chosen (walk), nor what a whole identifier is (matching).
"""

from collections.abc import Iterator

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.files import count, open_text
from holdfast.tools.matching import whole_identifier
from holdfast.tools.symbols.index import check_start, more
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Arguments, Context, Tool, reads, unlisted
from holdfast.tools.walk.skipped import Skipped
from holdfast.tools.walk.walk import MAX_SOURCE_BYTES, TOO_LARGE, SourceEntry, SourceTree
from holdfast.tools.workspace.workspace import TextFile, Workspace, decode

MAX_HITS = 20
MAX_TEXT_CHARS = 80
CHARS_BEFORE_MATCH = 20  # of a long line, where the match is not at its beginning
MAX_BRIEF_LINES = 5  # per file
SNIFFED_BYTES = 8000  # as in git: with a NUL among them a file is binary, and to say that it was skipped helps no one


class SearchArguments(Arguments):
    """`path` restricts the search to one file or directory; `brief` gives line numbers per file without their text.

    `start` is the first match (with `brief` the first file) to show, counted from 1.
    """

    text: str
    path: str | None = None
    brief: bool = False
    start: int = unlisted(1)


def search(args: SearchArguments, context: Context) -> str:
    """Lines that contain `text` (as a whole identifier when it is one), by path and line, at most 20 shown from `start` on."""
    if not args.text.strip():
        raise ToolError("text is empty; give the text to search for")
    if "\n" in args.text:
        raise ToolError("text has several lines; search for one line of it")
    skipped = Skipped()
    first, end = args.start - 1, args.start - 1 + MAX_HITS
    shown: list[str] = []
    num_files = num_matches = 0
    for file in _candidates(context.workspace, args, skipped, context.cancelled):
        picked: list[int] = []
        num_before = num_matches
        for place in _lines_with(args.text, file.text):
            if first <= (num_files if args.brief else num_matches) < end and len(picked) <= MAX_HITS:
                picked.append(place)
            num_matches += 1
        num_files += num_matches > num_before
        if picked:
            shown += [_brief(file, picked)] if args.brief else _excerpts(file, picked, len(args.text))
            context.workspace.note_shown(file)
    if not num_matches:
        return "\n".join([f"no matches for {args.text}", *skipped.lines(), *skipped.ignored_lines()])
    total = num_files if args.brief else num_matches
    check_start(args.start, total, args.text, *(("file",) if args.brief else ("match", "matches")))
    counts = f"{count(num_matches, 'match', 'matches')} in {count(num_files, 'file')}"
    return "\n".join([counts, *shown, *more(total, end), *skipped.lines()])


def _brief(file: TextFile, places: list[int]) -> str:
    numbers = ", ".join(str(number) for number, _ in _numbered(file.text, places[:MAX_BRIEF_LINES]))
    return f"{file.path}: {numbers}{', ...' if len(places) > MAX_BRIEF_LINES else ''}"


def _excerpts(file: TextFile, places: list[int], num_chars: int) -> list[str]:
    numbered = _numbered(file.text, places)
    return [f"{file.path}:{number}: {_excerpt(file.text, place, num_chars)}" for number, place in numbered]


def _numbered(text: str, places: list[int]) -> Iterator[tuple[int, int]]:
    """Each place after the number of its line."""
    number, last = 1, 0
    for place in places:
        number, last = number + text.count("\n", last, place), place
        yield number, place


def _excerpt(text: str, at: int, num_chars: int) -> str:
    """The beginning of a line or, when the match would not be seen there, what is around it."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : end if end >= 0 else len(text)]
    at -= start + len(line) - len(line.lstrip())
    line = line.strip()
    if at + num_chars <= MAX_TEXT_CHARS or at <= CHARS_BEFORE_MATCH:
        return line[:MAX_TEXT_CHARS]
    return "…" + line[at - CHARS_BEFORE_MATCH :][: MAX_TEXT_CHARS - 1]


def _candidates(
    workspace: Workspace, args: SearchArguments, skipped: Skipped, cancellation: Cancellation
) -> Iterator[TextFile]:
    """The text files in question that contain the text's bytes at all, sorted by path."""
    under = "."
    if args.path is not None:
        under = workspace.resolve(args.path)
        if not workspace.is_dir(under):
            yield open_text(workspace, args.path, cancellation)
            return
    wanted = args.text.encode(errors="replace")
    with SourceTree(workspace, cancellation) as tree:
        tree.skipped = skipped
        for entry in tree.entries(under):
            try:
                file = _text_with(wanted, tree, entry)
            except PermissionError:
                skipped.add("unreadable", entry.path)
                continue
            if file is not None:
                yield file


def _text_with(wanted: bytes, tree: SourceTree, entry: SourceEntry) -> TextFile | None:
    """The file, unless it does not contain the bytes, or is skipped."""
    is_large = entry.size_bytes > MAX_SOURCE_BYTES
    data = tree.read(entry.path, SNIFFED_BYTES if is_large else MAX_SOURCE_BYTES)
    if data is None or b"\0" in data[:SNIFFED_BYTES]:
        return None
    if is_large:
        tree.skipped.add(TOO_LARGE, entry.path)
        return None
    if wanted not in data and wanted.isascii():  # in another encoding, only other letters have other bytes
        return None
    try:
        file = decode(entry.path, data)
    except ToolError:
        tree.skipped.add("not UTF-8", entry.path)
        return None
    return file if wanted in data else None


def _lines_with(text: str, content: str) -> Iterator[int]:
    """The first match of each matching line, by the rule of `edit`.

    The pattern only looks at places where the text was found: to look for a pattern that starts with a look-behind is ten times slower.
    """
    pattern = whole_identifier(text)
    at = content.find(text)
    while at >= 0:
        if pattern is not None and not pattern.match(content, at):
            at = content.find(text, at + 1)
            continue
        yield at
        line_end = content.find("\n", at)
        if line_end < 0:
            return
        at = content.find(text, line_end + 1)


SEARCH = Tool(
    "search",
    "Find lines that contain the exact text; an identifier matches only as a whole. path limits it to a file or folder.",
    SearchArguments,
    "reads every text file of the workspace that git does not ignore",
    reads,
    threaded(search),
)
