"""The terminal: what events look like, how a person is asked, and the plain chat.

Nothing from a model, a file or a tool is shown but through `text`. Must not know sessions beyond turning a prompt into
events.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.output import create_output
from rich.console import Console

from agent.messages import (
    ApprovalNeeded,
    Error,
    Event,
    Notice,
    PrefillProgress,
    Text,
    Thinking,
    ToolCallMade,
    ToolResultGiven,
    TurnDone,
    Usage,
)
from agent.session import Session
from agent.text import exact, neutral, one_line
from memory import StoreError

MAX_CALL_CHARS = 110
MAX_RESULT_CHARS = 90
HELP = (
    "/turns lists the turns, /rewind N goes back to the end of turn N, /new starts a fresh session, /quit (or Ctrl-D) ends,"
    " Ctrl-C interrupts a turn; anything else is for the model"
)
MAX_SHOWN_TURNS = 20


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


class Printer:
    """Draws events: the answer and the tool calls on `out`, everything else on `err`."""

    def __init__(self, out: Console | None = None, err: Console | None = None):
        """Without consoles: stdout and stderr."""
        self.out, self.err = out or Console(), err or Console(stderr=True)
        self._is_open = False  # the last line on `out` has no end yet
        self._has_progress = False

    def show(self, event: Event) -> None:
        """Draw one event; approvals are drawn by whoever asks."""
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
            case PrefillProgress(done=done, total=total):
                self._progress(f"reading {done:,} of {total:,} tokens")
            case Notice(message=message):
                self._line(self.err, neutral(message), "yellow")
            case Error(message=message):
                self._line(self.err, f"holdfast: {neutral(message)}", "red")
            case TurnDone(usage=usage):
                self._line(self.err, usage_line(usage), "dim")

    def note(self, message: str) -> None:
        """A line of our own, beside the answer."""
        self._clear_progress()
        self._line(self.err, message, "dim")

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
            self.err.print(text, style="dim", end="\r", markup=False, highlight=False, soft_wrap=True)
            self._has_progress = True

    def _clear_progress(self) -> None:
        if self._has_progress:
            self.err.print(" " * 60, end="\r")
            self._has_progress = False


def _shown_arguments(arguments: str) -> str:
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict):
        return arguments
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


async def ask_person(call: ApprovalNeeded) -> bool:
    """Show the whole call and ask; anything but yes is no. Ctrl-C ends the turn."""
    err = Console(stderr=True, highlight=False)
    err.print(exact(f"{call.name} wants to run with"), style="yellow", markup=False)
    for line in exact(_indented(call.arguments)).split("\n"):
        err.print(f"  {line}", markup=False, soft_wrap=True)
    prompt: PromptSession[str] = PromptSession(output=create_output(stdout=sys.stderr))
    try:
        # the turn has its own handler for SIGINT, which must still be there afterwards
        answer = await prompt.prompt_async("allow? [y/N] ", handle_sigint=False)
    except EOFError:
        return False
    except KeyboardInterrupt:
        raise asyncio.CancelledError from None
    return answer.strip().lower() in ("y", "yes")


def _indented(arguments: str) -> str:
    """Arguments one under the other, texts with their own line ends."""
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    return "\n".join(line.replace("\n", "\n    ") for line in lines)


class Lines:
    """Where prompts come from: an editable line on a terminal, else lines of stdin."""

    def __init__(self) -> None:
        self._prompt: PromptSession[str] | None = PromptSession() if sys.stdin.isatty() else None
        if self._prompt is None and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(
                errors="surrogateescape"
            )  # bytes that are no text are refused as a prompt, with a line

    async def next(self) -> str | None:
        """The next line, or None at the end of input or after Ctrl-C."""
        try:
            if self._prompt is not None:
                return await self._prompt.prompt_async("> ")
            return sys.stdin.readline() or None  # nothing else runs between turns, so the loop may wait here
        except (EOFError, KeyboardInterrupt):
            return None


async def chat(session: Session, open_new: Callable[[], Awaitable[Session]], printer: Printer) -> None:
    """Prompts in, turns out, until the input ends. `/new` goes on in the session that `open_new` gives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # between turns Ctrl-C ends the chat
    try:
        lines = Lines()
        printer.note(_greeting(session))
        while (line := await lines.next()) is not None:
            command = line.strip()
            if command == "/quit":
                return
            if command == "/new":
                fresh = await open_new()
                await session.aclose()
                session = fresh
                printer.note(_greeting(session))
            elif command == "/help":
                printer.note(HELP)
            elif command == "/turns":
                printer.note("\n".join(_turns(session)))
            elif command.split()[:1] == ["/rewind"]:
                printer.note(_rewind(session, command.split()[1:]))
            elif command.startswith("/") and command[1:].isalpha():
                printer.note(f"unknown command {command}; {HELP}")
            elif command:
                await _interruptible(show_turn(session, line.rstrip("\n"), printer.show))
    finally:
        await session.aclose()


async def show_turn(session: Session, prompt: str, show: Callable[[Event], None]) -> bool:
    """One turn, each event shown as it comes; whether it was answered."""
    event: Event | None = None
    try:
        async with aclosing(session.turn(prompt)) as events:
            async for event in events:
                show(event)
    except asyncio.CancelledError:
        show(Notice(message="interrupted; the session keeps what was done"))
        raise
    return isinstance(event, TurnDone)


async def _interruptible(turn: Coroutine[Any, Any, bool]) -> None:
    """Run a turn that Ctrl-C cancels, and nothing but the turn."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(turn)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait({task})
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _turns(session: Session) -> list[str]:
    """The last turns, with what was asked."""
    log = session.live.log
    turns = log.turn_list()[-MAX_SHOWN_TURNS:]
    prompts = (
        {e.turn: e.payload["text"] for e in log.events(turns[0].start_position) if e.type == "user"} if turns else {}
    )
    lines = [f"{t.number:>4}  {one_line(prompts.get(t.number, ''), MAX_CALL_CHARS)}" for t in turns]
    return lines or ["there is no turn yet"]


def _rewind(session: Session, arguments: list[str]) -> str:
    if len(arguments) != 1 or not arguments[0].isdecimal():
        return "/rewind needs the number of a turn; /turns lists them"
    try:
        session.rewind(int(arguments[0]))
    except StoreError as e:
        return str(e)
    return f"the session goes on after turn {int(arguments[0])}; what came after it stays as a branch"


def _greeting(session: Session) -> str:
    log = session.live.log
    return f"session {session.name}: {log.num_turns} turns, {len(log.ids):,} tokens · /help"
