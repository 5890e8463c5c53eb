"""The tool `search`: literal, case-sensitive text over the files of the workspace.

Owns its output format and matching rule. Must not know symbols (index) nor how files are chosen (walk).
"""

import re

from .files import count, open_text
from .tool import Arguments, ToolError
from .walk import MAX_SOURCE_BYTES, source_entries
from .workspace import TextFile, Workspace, decode, split_lines

MAX_HITS = 20
MAX_TEXT_CHARS = 80
MAX_BRIEF_LINES = 5  # per file


class SearchArguments(Arguments):
    """`path` restricts the search to one file or directory; `brief` gives line numbers per file without their text."""

    text: str
    path: str | None = None
    brief: bool = False


def search(workspace: Workspace, args: SearchArguments) -> str:
    """Lines that contain `text` (as a whole identifier when it is one), by path and line, at most 20 shown."""
    if not args.text.strip():
        raise ToolError("text is empty; give the text to search for")
    if "\n" in args.text:
        raise ToolError("text has several lines; search for one line of it")
    hits: list[str] = []
    num_files = num_matches = 0
    for file in _candidates(workspace, args):
        matching = _matching_lines(args.text, file.text)
        room = MAX_HITS - len(hits)
        if args.brief:
            hits += [_brief(file.path, matching)] if matching and room > 0 else []
        else:
            hits += [f"{file.path}:{n}: {line.strip()[:MAX_TEXT_CHARS]}" for n, line in matching[:room]]
        num_files += bool(matching)
        num_matches += len(matching)
        if matching and room > 0:
            workspace.note_shown(file)
    if not num_matches:
        return f"no matches for {args.text}"
    first = f"{count(num_matches, 'match', 'matches')} in {count(num_files, 'file')}"
    total = num_files if args.brief else num_matches
    more = [f"(+{total - len(hits)} more)"] if total > len(hits) else []
    return "\n".join([first, *hits, *more])


def _brief(path: str, matching: list[tuple[int, str]]) -> str:
    numbers = ", ".join(str(n) for n, _ in matching[:MAX_BRIEF_LINES])
    return f"{path}: {numbers}{', ...' if len(matching) > MAX_BRIEF_LINES else ''}"


def _candidates(workspace: Workspace, args: SearchArguments) -> list[TextFile]:
    """The text files in question that contain the text's bytes at all, sorted by path."""
    folder = ""
    if args.path is not None:
        resolved = workspace.resolve(args.path)
        if not workspace.is_dir(resolved):
            return [open_text(workspace, args.path)]
        folder = "" if resolved == "." else resolved + "/"
    wanted = args.text.encode()
    files = []
    for entry in source_entries(workspace):
        if not entry.path.startswith(folder):
            continue
        try:
            data = workspace.read_bytes(entry.path, MAX_SOURCE_BYTES)
            if wanted in data:
                files.append(decode(entry.path, data))
        except (ToolError, OSError):  # not text, unreadable, or gone since the walk: nothing to find in it
            continue
    return files


def _matching_lines(text: str, content: str) -> list[tuple[int, str]]:
    lines = [(n, line) for n, line in enumerate(split_lines(content), start=1) if text in line]
    if not re.fullmatch(r"\w+", text):
        return lines
    whole = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    return [(n, line) for n, line in lines if whole.search(line)]
