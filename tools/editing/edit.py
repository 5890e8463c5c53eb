"""The tool `edit` in its full form: exact text or line numbers, one edit or several of one file, all or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from holdfast.tools.editing.numbered import numbered, whole
from holdfast.tools.editing.places import EditArguments, Lines, Place, places_of
from holdfast.tools.errors import ToolError
from holdfast.tools.files import count, open_text
from holdfast.tools.preview import preview
from holdfast.tools.threads import threaded
from holdfast.tools.tool import Context, Permission, Risk, Tool
from holdfast.tools.workspace.shown import Seen, joined, moved
from holdfast.tools.workspace.workspace import MAX_TEXT_BYTES, TextFile, change_of, split_lines

CONTEXT_LINES = 2
MAX_SHOWN_LINES = 60


@dataclass(frozen=True)
class Planned:
    """Edits that can be made: `places`, in order and apart, make `text`."""

    file: TextFile
    lines: Lines
    places: Sequence[Place]
    text: str

    @property
    def told(self) -> str:
        return f"{self.file.path}: {count(len(self.places), 'replacement')}"


@dataclass(frozen=True)
class Span:
    """Lines `first` to `last` of a file that are `at` to `end` after an edit; none where the second is the smaller."""

    first: int
    last: int
    at: int
    end: int


def edit_permission(args: EditArguments, context: Context) -> Permission:
    """Shows the lines that would change; refuses edits that would fail."""
    try:
        planned = _planned(args, context)
        context.workspace.check_replaceable(planned.file)
    except ToolError as e:
        return Permission(Risk.EDIT, refusal=str(e))
    change = change_of(planned.file, planned.text)
    lines = preview(planned.file.text, ((place.start, place.end, place.new) for place in planned.places))
    head = f"{planned.told}, +{change.added} -{change.removed}"
    return Permission(Risk.EDIT, (planned.file.path,), (head, *lines), planned.file.digest)


def edit(args: EditArguments, context: Context) -> str:
    """Make the edits and show the lines around each as they are now."""
    planned = _planned(args, context)
    spans, after = _spans(planned), split_lines(planned.text)
    shown = _neighbourhood(spans, len(after))
    known = _known_after(spans, context.workspace.shown.get(planned.file.path), planned.file.digest)
    was_linked = context.workspace.replace(planned.file, planned.text, [*known, *whole(after, shown)])
    told = [f"edited {planned.told}"]
    for n, stretch in enumerate(shown):
        told += [*(["…"] if n else []), *numbered(after, *stretch)]
    if was_linked:
        told.append(f"({planned.file.path} had another name, a hard link, which keeps the old contents)")
    return "\n".join(told)


def _known_after(spans: Sequence[Span], seen: Seen | None, digest: int) -> list[tuple[int, int]]:
    """The lines that the model knows afterwards: those that it was shown and that stay, and those that came for such lines."""
    if seen is None or seen.digest != digest:
        return []
    kept = moved(seen.lines, [(span.first, span.last, span.end - span.at + 1) for span in spans])
    return [*kept, *((span.at, span.end) for span in spans if seen.has(span.first, span.last))]


def _planned(args: EditArguments, context: Context) -> Planned:
    edits = args.each()
    file = open_text(context.workspace, args.path, context.cancelled)
    if context.permitted is not None and context.permitted.digest not in (None, file.digest):
        raise ToolError(f"stale: {file.path} changed on disk since the edit was shown for approval; read it again")
    lines = Lines(file.text)
    found: list[tuple[int, int, Place]] = []  # with the number of the edit
    for number, one in enumerate(edits, start=1):
        context.cancelled.check()
        try:
            found += [(place.start, number, place) for place in places_of(one, file, lines, context.workspace)]
        except ToolError as e:
            raise ToolError(f"edit {number} of {len(edits)}: {e}" if args.edits else str(e)) from None
    found.sort(key=lambda item: item[:2])
    for (_, number, place), (_, other, after) in pairwise(found):
        if after.start < place.end or after.start == place.start:
            raise ToolError(f"edits {number} and {other} change the same text; make one edit of them")
    places = [place for _, _, place in found]
    text = _applied(file.text, places)
    if len(text) > max(MAX_TEXT_BYTES, len(file.text)):
        raise ToolError(f"{file.path} would grow to {len(text)} characters; the limit is {MAX_TEXT_BYTES}")
    return Planned(file, lines, places, text)


def _applied(text: str, places: Sequence[Place]) -> str:
    pieces, at = [], 0
    for place in places:
        pieces += [text[at : place.start], place.new]
        at = place.end
    return "".join([*pieces, text[at:]])


def _spans(planned: Planned) -> list[Span]:
    """The lines that the places touch, in order; places on the same line have one span."""
    old, new = planned.lines, Lines(planned.text)
    spans: list[Span] = []
    shift = 0
    for place in planned.places:
        first, last, at = old.number(place.start), old.number(place.end), new.number(place.start + shift)
        shift += len(place.new) - (place.end - place.start)
        end = new.number(place.end + shift)
        if place.end == old.start(last) and place.end + shift == new.start(end):  # the next line is as it was
            last, end = last - 1, end - 1
        if spans and first <= spans[-1].last:
            first, at = spans[-1].first, spans.pop().at
        spans.append(Span(first, last, at, end))
    return spans


def _neighbourhood(spans: Sequence[Span], num_lines: int) -> list[tuple[int, int]]:
    """Stretches of lines to show, no more than `MAX_SHOWN_LINES` altogether."""
    around = (
        (max(span.at - CONTEXT_LINES, 1), min(max(span.end, span.at - 1) + CONTEXT_LINES, num_lines)) for span in spans
    )
    shown, left = [], MAX_SHOWN_LINES
    for first, last in joined(around):
        if left > 0:
            shown.append((first, min(last, first + left - 1)))
        left -= last - first + 1
    return shown


EDIT = Tool(
    "edit",
    "Change a text file in place. Either old (exact text that is there once, or all=true) becomes new, or the whole lines from_line to"
    " to_line do, which must have been read before; to_line = from_line - 1 inserts. edits makes several such changes at once, all of"
    " the file as it is now: all or none.",
    EditArguments,
    "changes one file of the workspace",
    edit_permission,
    threaded(edit),
)
