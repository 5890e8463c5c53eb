"""The chat: prompts in, turns out, and what other clients do to the session meanwhile. Also the one turn of `run`.

Owns the commands of the chat and Ctrl-C. Must not know whether a session is in this process or in a server, nor what
events look like.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.patch_stdout import patch_stdout

from agent.behind import branch_line, files_line
from agent.fresh import OpenSession, Timeline
from agent.messages import ApprovalNeeded, Event, Notice, PrefillProgress, Text, Thinking, TurnDone
from agent.streams import say
from agent.terminal import MAX_CALL_CHARS, Printer, call_lines
from agent.text import one_line
from memory import StoreError

HELP = (
    "/turns lists the turns, /rewind N goes back to the end of turn N, /branches lists what was left, /branch N goes on with one, /new starts a fresh session, /quit (or Ctrl-D) ends,"
    " Ctrl-C interrupts a turn; /yes and /no answer what another client's turn asks, /stop interrupts it; anything else is"
    " for the model"
)
MAX_SHOWN_TURNS = 20


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
                with patch_stdout(raw=True):  # what others do is shown above the line
                    return await self._prompt.prompt_async("> ")
            return sys.stdin.readline() or None  # others are heard with the next turn
        except (EOFError, KeyboardInterrupt):
            return None


class Others:
    """Shows the turns of other clients, by whole lines: a prompt is open below them."""

    def __init__(self, printer: Printer):
        self._printer = printer
        self._rest: Text | Thinking | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, PrefillProgress):
            return
        if isinstance(event, Text | Thinking):
            self._stream(event)
            return
        self._end_line()
        if isinstance(event, ApprovalNeeded):
            self._printer.note("\n".join([*call_lines(event), "/yes allows it, /no refuses it"]))
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
) -> int:
    """One turn when there is a prompt, else the chat; the exit code."""
    async with opening as open_session:
        session = await open_session(name, is_new)
        if prompt is None:
            await chat(session, open_session, printer)
            return 0
        async with aclosing(session):
            code = 0 if await show_turn(session, prompt, show) else 1
        for notice in session.take_notices():  # of the last save
            say(notice)
        return code


async def chat(session: Timeline, open_session: OpenSession, printer: Printer) -> None:
    """Until the input ends. `/new` goes on in a fresh session of `open_session`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # between turns Ctrl-C ends the chat
    try:
        lines = Lines()
        printer.note(_greeting(session))
        while (line := await lines.next()) is not None:
            command = line.strip()
            if command == "/quit":
                return
            if command == "/new":
                try:
                    fresh = await open_session(None, True)
                except StoreError as e:
                    printer.note(str(e))
                    continue
                await session.aclose()
                session = fresh
                printer.note(_greeting(session))
            elif command.startswith("/") and (command[1:].isalpha() or command.split()[0] in ("/rewind", "/branch")):
                printer.note(await _command(session, *command.split()))
            elif command:
                await _interruptible(show_turn(session, line.rstrip("\n"), printer.show))
    finally:
        await session.aclose()


async def show_turn(session: Timeline, prompt: str, show: Callable[[Event], None]) -> bool:
    """One turn, each event shown as it comes; whether it was answered."""
    event: Event | None = None
    try:
        async with aclosing(session.turn(prompt)) as events:
            async for event in events:
                show(event)
    except asyncio.CancelledError:
        show(Notice(message="interrupted; the session keeps what was done"))
        for notice in session.take_notices():
            show(Notice(message=notice))
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


async def _command(session: Timeline, command: str, *arguments: str) -> str:
    """What a command says; a session that cannot do it says why."""
    try:
        match command, arguments:
            case "/help", ():
                return HELP
            case "/turns", ():
                turns = (await session.turns())[-MAX_SHOWN_TURNS:]
                lines = [f"{number:>4}  {one_line(prompt, MAX_CALL_CHARS)}" for number, prompt in turns]
                return "\n".join(lines) or "there is no turn yet"
            case "/rewind", (turn,) if turn.isdecimal():
                files = files_line(await session.rewind(int(turn)))
                said = f"the session goes on after turn {int(turn)}; what came after it stays as a branch"
                return "\n".join([said, *([files] if files else [])])
            case "/branches", ():
                return "\n".join(map(branch_line, await session.branches())) or "there is no turn yet"
            case "/branch", (branch,) if branch.isdecimal():
                files = files_line(await session.rewind(branch=int(branch)))
                said = f"the session goes on at the end of branch {int(branch)}"
                return "\n".join([said, *([files] if files else [])])
            case "/branch", _:
                return "/branch needs the number of a branch; /branches lists them"
            case "/rewind", _:
                return "/rewind needs the number of a turn; /turns lists them"
            case (("/yes" | "/no"), ()):
                is_waiting = await session.answer(command == "/yes")
                return "answered" if is_waiting else "no turn of another client waits for an answer"
            case "/stop", ():
                return "stopped" if await session.stop() else "no turn of another client runs"
    except StoreError as e:
        return str(e)
    return f"unknown command {command}; {HELP}"


def _greeting(session: Timeline) -> str:
    return f"{f'session {session.name}' if session.name else 'a new session'}: {session.num_turns} turns, {session.num_tokens:,} tokens · /help"
