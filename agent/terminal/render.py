"""The terminal: what events look like.

Nothing from a model, a file or a tool is shown but through `sanitize`. Must not know sessions.
"""

import json
import time

from rich.console import Console

from holdfast.agent.events import (
    Changes,
    CommandEnd,
    Error,
    Event,
    FileChange,
    Notice,
    PrefillProgress,
    Text,
    Thinking,
    ToolCallMade,
    ToolOutput,
    ToolResultGiven,
    TurnDone,
    Usage,
)
from holdfast.agent.terminal.running import RunningOutput
from holdfast.agent.terminal.sanitize import neutral, one_line

MAX_CALL_CHARS = 110
MAX_RESULT_CHARS = 90
MAX_COMMAND_CHARS = 60
PROGRESS_CHARS = 60
LEAST_RATED_S = 0.5  # a rate of less is chance


def usage_line(usage: Usage) -> str:
    """Every token of the input by where it came from, the output, the context and the seconds."""
    sources = [f"{usage.new:,} new", f"{usage.from_memory:,} from memory", f"{usage.from_disk:,} from disk"]
    sources += [f"{usage.prefilled_again:,} prefilled again ({usage.why})"] if usage.prefilled_again else []
    shown = [source for source in sources if not source.startswith("0 ")]
    seconds = f"prefill {usage.prefill_s:.2f} s, decode {usage.decode_s:.2f} s, tools {usage.tools_s:.2f} s"
    seconds += f", load {usage.load_s:.2f} s" if usage.load_s else ""
    return (
        f"{usage.input_tokens:,} tokens in ({', '.join(shown)}), {usage.output_tokens:,} out"
        f" · context {usage.context_used:,} of {usage.context_limit:,} · {seconds}"
    )


def changes_line(changes: Changes) -> str:
    """`changed: a.py +2 -2, new b.py +3 · /undo; edit of c.py was refused`"""
    files = [_file_change(file) for file in changes.files]
    not_done = [
        f"{one_line(f'{call.name} of {call.path}' if call.path else call.name, MAX_CALL_CHARS)}"
        f" {'was refused' if call.why == 'refused' else 'failed'}"
        for call in changes.not_done
    ]
    commands = [f"{changes.num_commands} command{'s' * (changes.num_commands > 1)} ran"] if changes.num_commands else []
    commands += [f"{one_line(end.command, MAX_COMMAND_CHARS)}: {_how_ended(end)}" for end in changes.failed]
    if not files and not commands:
        return f"nothing was changed on disk: {', '.join(not_done)}"
    undo = " · /undo" if changes.can_undo else ""
    return "; ".join([*([f"changed: {', '.join(files)}{undo}"] if files else []), *not_done, *commands])


def _how_ended(end: CommandEnd) -> str:
    return "did not end by itself" if end.exit_status is None else f"exit status {end.exit_status}"


def _file_change(file: FileChange) -> str:
    path = one_line(file.path, MAX_CALL_CHARS)
    if file.what == "created":
        return f"new {path} +{file.added}" + (f" -{file.removed}" if file.removed else "")
    if file.what == "deleted":
        return f"deleted {path} -{file.removed}"
    if file.what == "moved":
        return f"moved {path} -> {one_line(file.to, MAX_CALL_CHARS)}"
    return f"{path} +{file.added} -{file.removed}"


class Reading:
    """How far a prompt is read, how fast, and how long it will take."""

    def __init__(self) -> None:
        self._started_s = self._told_s = 0.0
        self._first = self._done = self._total = 0

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total != self._total or done < self._done:  # another prompt
            self._started_s, self._first, self._total = now, done, total
        self._told_s, self._done = now, done

    def line(self) -> str:
        """As of now: the time left goes on between what is told."""
        line = f"reading {_short(self._done)} of {_short(self._total)} tokens"
        seconds, count = self._told_s - self._started_s, self._done - self._first
        if seconds < LEAST_RATED_S or not count:
            return line
        left_s = (self._total - self._done) * seconds / count - (time.monotonic() - self._told_s)
        return f"{line} · {_short(count / seconds)}/s · {_duration(max(left_s, 0))} left"


class Printer:
    """Draws events: the answer and the tool calls on `out`, everything else on `err`."""

    def __init__(self, out: Console | None = None, err: Console | None = None):
        """Without consoles: stdout and stderr."""
        self.out, self.err = out or Console(), err or Console(stderr=True)
        self._is_open = False  # the last line on `out` has no end yet
        self._has_progress = False
        self._reading: Reading | None = None
        self._running = RunningOutput(self.out)

    def show(self, event: Event) -> None:
        """Draw one event; approvals are drawn by whoever asks."""
        if isinstance(event, PrefillProgress):
            self._reading = self._reading or Reading()
            self._reading.tell(event.done, event.total)
            self.tick()
            return
        if isinstance(event, ToolOutput):
            self._running.add(event.delta)
            return
        self._clear_progress()
        match event:
            case Text(delta=delta):
                self._stream(delta)
            case Thinking(delta=delta):
                self._stream(delta, style="dim italic")
            case ToolCallMade(name=name, arguments=arguments):
                self._line(self.out, f"· {one_line(f'{name} {_shown_arguments(arguments)}', MAX_CALL_CHARS)}", "dim")
            case ToolResultGiven(output=output, ok=ok):
                first, _, rest = output.partition("\n")
                more = f" (+{rest.count(chr(10)) + 1} lines)" if rest else ""
                self._line(self.out, f"  {one_line(first, MAX_RESULT_CHARS)}{more}", "dim" if ok else "dim red")
            case Notice(message=message):
                self._line(self.err, neutral(message), "yellow")
            case Error(message=message):
                self._line(self.err, f"holdfast: {neutral(message)}", "red")
            case Changes():
                is_good = bool(event.files or event.num_commands) and not event.failed
                self._line(self.err, changes_line(event), "green" if is_good else "yellow")
            case TurnDone(usage=usage):
                self._line(self.err, usage_line(usage), "dim")

    def tick(self) -> None:
        """Draw again what changes by itself. To be called several times a second."""
        if self._reading is not None:
            self._progress(self._reading.line())

    def waiting(self, notice: Notice) -> None:
        """What the start is doing: on a terminal each in the place of the one before."""
        self._clear_progress()
        if self.err.is_terminal:
            self._progress(neutral(notice.message))
        else:
            self.show(notice)

    def note(self, message: str) -> None:
        """A line of our own, beside the answer."""
        self._clear_progress()
        self._line(self.err, neutral(message), "dim")

    def _stream(self, text: str, style: str | None = None) -> None:
        self.out.print(neutral(text), style=style, end="", markup=False, highlight=False, soft_wrap=True)
        self._is_open = not text.endswith("\n")

    def _line(self, console: Console, text: str, style: str) -> None:
        if self._is_open:
            self.out.print()
            self._is_open = False
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _progress(self, text: str) -> None:
        if self.err.is_terminal and not self._is_open:
            width = min(PROGRESS_CHARS, self.err.width - 1)
            line = text[:width].ljust(width)  # over the line before
            self.err.print(line, style="dim", end="\r", markup=False, highlight=False, soft_wrap=True)
            self._has_progress = True

    def _clear_progress(self) -> None:
        self._running.clear()
        self._reading = None
        if self._has_progress:
            self.err.print(" " * min(PROGRESS_CHARS, self.err.width - 1), end="\r")
            self._has_progress = False


def _short(number: float) -> str:
    """`812`, `3.0k`, `49k`, `1.2M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 10 * size else 1}f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """`45 s`, `2 min`, `1.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown_arguments(arguments: str) -> str:
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict):
        return arguments
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
