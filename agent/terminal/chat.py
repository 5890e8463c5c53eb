"""The chat: prompts in, turns out, and what other clients do to the session meanwhile. Also the one turn of `run`.

Owns the commands of the chat and Ctrl-C. Must not know whether a session is in this process or in a server, nor what
events look like.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, aclosing, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from holdfast.agent.events import (
    Answer,
    ApprovalNeeded,
    Changes,
    Error,
    Event,
    Notice,
    PrefillProgress,
    Text,
    Thinking,
    ToolOutput,
    TurnDone,
)
from holdfast.agent.permissions.modes import Mode, Policy
from holdfast.agent.session.fresh import OpenSession, Timeline
from holdfast.agent.session.left_behind import branch_line, redone_lines, rewound_lines, undone_lines
from holdfast.agent.session.outcome import Outcome
from holdfast.agent.session.restored import Part
from holdfast.agent.streams import say
from holdfast.agent.terminal.keyboard import Keyboard
from holdfast.agent.terminal.question import always_line, call_lines
from holdfast.agent.terminal.render import MAX_CALL_CHARS, Printer
from holdfast.agent.terminal.sanitize import one_line
from holdfast.memory import StoreError

HELP = (
    "/undo takes back the files that the last turn changed, /redo puts them in place again, /turns lists the turns,"
    " /rewind N goes back to the end of turn N, with files unless --conversation is added, with --files in files"
    " alone, /branches lists what was left, /branch N goes on with one, /jobs lists what runs in the background, /new"
    " starts a fresh session, /quit (or Ctrl-D) ends, Ctrl-C interrupts a turn; /mode shows or sets what runs without"
    " asking, /permissions lists the rules; /yes, /always and /no [WHY] answer what another client's turn asks, /stop"
    " interrupts it; anything else is for the model, also what begins with a slash if a space is before it"
)
ANSWERS = ("/yes", "/always", "/no", "/stop")  # to another client's turn
SESSIONS = ("/undo", "/redo", "/jobs", "/turns", "/rewind", "/branches", "/branch", "/new")
COMMANDS = ("/help", *SESSIONS, "/quit", "/mode", "/permissions", *ANSWERS)
PARTS: dict[tuple[str, ...], Part] = {(): "both", ("--files",): "files", ("--conversation",): "conversation"}
ALIASES = {"exit": "/quit", "quit": "/quit", "/exit": "/quit", "?": "/help"}
MAX_SHOWN_TURNS = 20
TICK_S = 0.2
DONE, FAILED, REFUSED = 0, 1, 3  # exit codes of a turn
GO_ON = "Carry out the plan."
PLANNED = "planned, and nothing done: run it again with --approve ask, edit or all to carry it out"


@dataclass(frozen=True)
class Control:
    """What the person decides for the session from here: its mode, and the rules that hold, as text."""

    mode: Mode
    permissions: Callable[[], str]


class Others:
    """Shows the turns of other clients, by whole lines: a prompt is open below them."""

    def __init__(self, printer: Printer):
        self._printer = printer
        self._rest: Text | Thinking | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, PrefillProgress | ToolOutput):
            return
        if isinstance(event, Text | Thinking):
            self._stream(event)
            return
        self._end_line()
        if isinstance(event, ApprovalNeeded):
            self._printer.note(
                "\n".join(
                    [
                        *call_lines(event),
                        f"/yes allows it{', /always from now on' if always_line(event) else ''}, /no [WHY] refuses it",
                    ]
                )
            )
        else:
            self._printer.show(event)

    def _stream(self, event: Text | Thinking) -> None:
        if type(self._rest) is not type(event):
            self._end_line()
        text = (self._rest.delta if self._rest else "") + event.delta
        lines, end, rest = text.rpartition("\n")
        if end:
            self._printer.show(event.model_copy(update={"delta": lines + end}))
        self._rest = event.model_copy(update={"delta": rest})

    def _end_line(self) -> None:
        if self._rest is not None and self._rest.delta:
            self._printer.show(self._rest.model_copy(update={"delta": f"{self._rest.delta}\n"}))
        self._rest = None


async def talk(
    opening: AbstractAsyncContextManager[OpenSession],
    name: str | None,
    is_new: bool,
    prompt: str | None,
    show: Callable[[Event], None],
    printer: Printer,
    keyboard: Keyboard | None,
    control: Control,
) -> int:
    """One turn when there is a prompt, else the chat; the exit code. Without a keyboard prompts are lines of stdin."""
    async with AsyncExitStack() as stack:
        if keyboard and prompt is None:
            stack.enter_context(keyboard.taken())
        with _held(keyboard if prompt is None else None):
            open_session = await stack.enter_async_context(opening)
            session = await open_session(name, is_new)
        if prompt is None:
            await chat(session, open_session, printer, keyboard, control)
            return 0
        async with aclosing(session):
            code = await show_turn(session, prompt, show, printer)
            if code in (DONE, REFUSED) and control.mode.policy is Policy.PLAN:
                show(Notice(message=PLANNED))
        for notice in session.take_notices():  # of the last save
            say(notice)
        return code


async def chat(
    session: Timeline, open_session: OpenSession, printer: Printer, keyboard: Keyboard | None, control: Control
) -> None:
    """Until the input ends. `/new` goes on in a fresh session of `open_session`."""
    next_line = keyboard.line if keyboard else _line_of_stdin
    try:
        _set_interrupt(None, keyboard is not None)
        printer.note(_greeting(session))
        while (line := await next_line()) is not None:
            command = command_of(line)
            if command == ["/quit"]:
                return
            if command == ["/new"]:
                try:
                    fresh = await open_session(None, True)
                except StoreError as e:
                    printer.note(str(e))
                    continue
                await session.aclose()
                session = fresh
                printer.note(_greeting(session))
            elif command:
                printer.note(await _command(session, control, *command))
            elif line.strip():
                with _held(keyboard):
                    await _turns(session, line.rstrip("\n"), printer, keyboard, control.mode)
    finally:
        await session.aclose()


async def _turns(session: Timeline, prompt: str, printer: Printer, keyboard: Keyboard | None, mode: Mode) -> None:
    """A turn; after one that planned, the person says whether it is carried out, in the mode from before."""
    while True:
        turn = show_turn(session, prompt, printer.show, printer)
        code = await _interruptible(turn, printer, keyboard is not None)
        if code not in (DONE, REFUSED) or mode.policy is not Policy.PLAN or keyboard is None:
            return
        if not await _goes_on(keyboard):
            return
        mode.end_plan()
        printer.note(f"mode {mode.policy}")
        prompt = GO_ON


async def _goes_on(keyboard: Keyboard) -> bool:
    try:
        return await keyboard.allows("carry out the plan? [y/N] ")
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return False  # Ctrl-C at the question


def _held(keyboard: Keyboard | None) -> AbstractContextManager[None]:
    """What is typed in the block waits in the next prompt; what comes through a pipe does so anyway."""
    return keyboard.holding() if keyboard else nullcontext()


async def _line_of_stdin() -> str | None:
    """The next line, or None at the end of input or after Ctrl-C."""
    try:
        return sys.stdin.readline() or None  # others are heard with the next turn
    except KeyboardInterrupt:
        return None


def command_of(line: str) -> list[str]:
    """The words of a command; empty for what the model is to read.

    That is every text of several lines, one that begins with a space, and one whose first word is an absolute path that
    exists. All else that begins with a slash is a command, perhaps an unknown one, and so is `!` for a shell.
    """
    line = line.removesuffix("\n")
    if not line.strip() or line[0].isspace() or "\n" in line:
        return []
    first, *rest = line.split()
    if line.strip() in ALIASES:
        return [ALIASES[line.strip()]]
    if first.startswith("!"):
        return ["!", line]
    is_path = len(first) > 1 and first not in COMMANDS and os.path.exists(first.rstrip(",.:;?!)"))
    return [first, *rest] if first.startswith("/") and not is_path else []


async def show_turn(session: Timeline, prompt: str, show: Callable[[Event], None], printer: Printer) -> int:
    """One turn, each event shown as it comes, and what it did on disk; the exit code."""
    outcome, code, is_told = Outcome(), FAILED, False
    ticking = asyncio.ensure_future(_tick(printer))
    try:
        async with aclosing(session.turn(prompt)) as events:
            async for event in events:
                outcome.add(event)
                is_told = is_told or isinstance(event, Changes)
                if isinstance(event, TurnDone | Error):
                    if not is_told:  # a server that is gone tells nothing
                        _show_changes(outcome, show)
                    code = DONE if isinstance(event, TurnDone) else FAILED
                show(event)
    except asyncio.CancelledError:
        _show_changes(outcome, show)
        show(Notice(message="interrupted; the session keeps what was done"))
        for notice in session.take_notices():
            show(Notice(message=notice))
        raise
    finally:
        ticking.cancel()
    changes = outcome.changes()
    is_refused = changes is not None and any(call.why == "refused" for call in changes.not_done)
    if code == DONE and is_refused:
        return REFUSED
    return FAILED if outcome.last_command_failed else code


def _show_changes(outcome: Outcome, show: Callable[[Event], None]) -> None:
    if (changes := outcome.changes()) is not None:
        show(changes)


async def _tick(printer: Printer) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        printer.tick()


async def _interruptible(turn: Coroutine[Any, Any, int], printer: Printer, is_raw: bool) -> int:
    """Run a turn that Ctrl-C cancels, once, and nothing but the turn; its exit code."""
    task = asyncio.ensure_future(turn)

    def stop() -> None:
        _set_interrupt(lambda: None, is_raw)
        printer.note("stopping")
        task.cancel()

    _set_interrupt(stop, is_raw)
    try:
        await asyncio.wait({task})
    finally:
        _set_interrupt(None, is_raw)
        task.cancel()
        await asyncio.wait({task})
    return FAILED if task.cancelled() else task.result()


def _set_interrupt(act: Callable[[], None] | None, is_raw: bool) -> None:
    """What Ctrl-C does; None between turns: there it is a key like others (`is_raw`), or ends the chat."""
    loop = asyncio.get_running_loop()
    if act or is_raw:
        loop.add_signal_handler(signal.SIGINT, act or (lambda: None))
        return
    loop.remove_signal_handler(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)


async def _command(session: Timeline, control: Control, command: str, *arguments: str) -> str:
    """What a command says; a session that cannot do it says why."""
    try:
        match command, arguments:
            case "/help", ():
                return HELP
            case "/turns", ():
                turns = (await session.turns())[-MAX_SHOWN_TURNS:]
                lines = [f"{number:>4}  {one_line(prompt, MAX_CALL_CHARS)}" for number, prompt in turns]
                return "\n".join(lines) or "there is no turn yet"
            case "/jobs", ():
                lines = [one_line(job, MAX_CALL_CHARS) for job in await session.jobs()]
                return "\n".join(lines) or "no command runs in the background"
            case "/undo", ():
                return "\n".join(undone_lines(await session.undo()))
            case "/redo", ():
                return "\n".join(redone_lines(await session.redo()))
            case "/rewind", (turn, *of) if turn.isdecimal() and tuple(of) in PARTS:
                part = PARTS[tuple(of)]
                restored = await session.rewind(int(turn), part=part)
                said = f"the session goes on after turn {int(turn)}; what came after it stays as a branch"
                return "\n".join([*([] if part == "files" else [said]), *rewound_lines(restored, part)])
            case "/branches", ():
                return "\n".join(map(branch_line, await session.branches())) or "there is no turn yet"
            case "/branch", (branch, *of) if branch.isdecimal() and tuple(of) in PARTS:
                part = PARTS[tuple(of)]
                restored = await session.rewind(branch=int(branch), part=part)
                said = f"the session goes on at the end of branch {int(branch)}"
                return "\n".join([*([] if part == "files" else [said]), *rewound_lines(restored, part)])
            case "/branch", _:
                return (
                    "/branch needs the number of a branch, and may have --files or --conversation; /branches lists them"
                )
            case "/rewind", _:
                return "/rewind needs the number of a turn, and may have --files or --conversation; /turns lists them"
            case (("/yes" | "/always"), ()) | ("/no", _):
                reason = " ".join(arguments)
                answer = Answer(approve=command != "/no", always=command == "/always", reason=reason)
                return "answered" if await session.answer(answer) else "no turn of another client waits for an answer"
            case "/mode", ():
                return f"mode {control.mode.policy}; there are {', '.join(Policy)}"
            case "/mode", (policy,) if policy in set(Policy):
                control.mode.set(Policy(policy))
                return f"mode {policy}"
            case "/mode", _:
                return f"/mode needs one of {', '.join(Policy)}"
            case "/permissions", ():
                return control.permissions()
            case "/stop", ():
                return "stopped" if await session.stop() else "no turn of another client runs"
            case "!", (line,):
                asked = one_line(f" {line}", MAX_CALL_CHARS)
                return f"there is no shell here; to ask the model, begin with a space: {asked}"
    except StoreError as e:
        return str(e)
    nearest = get_close_matches(command, COMMANDS, 1)
    meant = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown command {one_line(command, MAX_CALL_CHARS)}{meant}; {HELP}"


def _greeting(session: Timeline) -> str:
    name = f"session {session.name}" if session.name else "a new session"
    return f"{name}: {session.num_turns} turns, {session.num_tokens:,} tokens · /help"
