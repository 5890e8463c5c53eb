"""The keyboard: the one reader of the terminal, for the whole life of a chat. Prompts, and answers to questions.

Owns the rule that what was typed before a prompt or a question waits in the next prompt's line, unsent. Must not know
what prompts and answers are for.
"""

import asyncio
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.patch_stdout import patch_stdout

from holdfast.agent.terminal.mode import TerminalMode

DEAF_S = (
    0.7  # without a key, before a question is answered: a key typed just as it appears was meant for something else
)
HOW_TO_QUIT = "Ctrl-C again, Ctrl-D or /quit ends the chat"
NO_ANSWER = "what was typed before the question is no answer to it"
WAITS = "; it waits in the next prompt"
YES_OR_NO = {"y": "yes", "yes": "yes", "": "no", "n": "no", "no": "no"}
LINE_ENDS = (Keys.ControlM, Keys.ControlJ)


class Keyboard:
    """One per process. `tell` shows a line."""

    def __init__(self, mode: TerminalMode, tell: Callable[[str], None]):
        self._mode, self._tell = mode, tell
        self._input = _Input(sys.stdin)
        self._prompt: PromptSession[str] | None = None
        self._kept = ""  # typed while nothing was asked: it belongs to the next prompt
        self._may_quit = False  # the last key was Ctrl-C on an empty line

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The terminal is ours for the block; see `TerminalMode`."""
        self._mode.take()
        try:
            yield
        finally:
            self._mode.give_back()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is typed in the block waits in the next prompt, unless a question takes it."""
        with self._input.attach(self._keep):  # type: ignore[arg-type]  # what it returns is for us
            yield
        self._keep()

    async def line(self) -> str | None:
        """The next prompt, sent by the person; None when they end the chat."""
        if self._prompt is None:
            self._prompt = PromptSession(
                input=self._input, output=_output(sys.stdout), key_bindings=self._bindings(), enable_suspend=True
            )
        while True:
            kept, self._kept = self._kept.strip("\n"), ""
            try:
                with patch_stdout(raw=True):  # what others do is shown above the line
                    line = await self._prompt.prompt_async("> ", default=kept, handle_sigint=False)
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._may_quit:
                    return None
                self._may_quit = True
                self._tell(HOW_TO_QUIT)
            else:
                self._may_quit = False
                return line

    async def allows(self, question: str) -> bool:
        """The person's yes or no; see `choose`."""
        return await self.choose(question, YES_OR_NO, "y or n") == "yes"

    async def choose(self, question: str, words: Mapping[str, str], hint: str) -> str:
        """What the person's word means; the end of input is the empty word. Ctrl-C is CancelledError.

        `hint` is said to a word that is not among `words`. Nothing that was typed before the question was shown
        answers it.
        """
        said = await self._answer(question, lambda said: said.lower() in words, hint)
        return words[said.lower()]

    async def text(self, question: str) -> str:
        """A line that answers a question; see `choose`."""
        return await self._answer(question, lambda said: True, "")

    async def _answer(self, question: str, is_answer: Callable[[str], bool], hint: str) -> str:
        prompt: PromptSession[str] = PromptSession(input=self._input, output=_output(sys.stderr))
        with nullcontext() if self._mode.is_taken else self.taken():
            where = WAITS if self._prompt else ""
            while True:
                if await self._is_typing():
                    self._tell(NO_ANSWER + where)
                try:
                    # the turn has its own handler for SIGINT, which must still be there afterwards
                    said = await prompt.prompt_async(question, handle_sigint=False)
                except EOFError:
                    return ""
                except KeyboardInterrupt:
                    raise asyncio.CancelledError from None
                if is_answer(said.strip()):
                    return said.strip()
                self._kept += f"{said}\n"
                self._tell(f"{hint}{where}")

    async def _is_typing(self) -> bool:
        """Wait until nothing is typed; whether something was."""
        is_typing = self._keep() or bool(self._kept)
        while True:
            await asyncio.sleep(DEAF_S)
            if not self._keep():
                return is_typing
            is_typing = True

    def _keep(self) -> bool:
        """Take what the terminal has; whether there was something."""
        keys = [*get_typeahead(self._input), *self._input.read_keys()]
        self._kept = with_keys(self._kept, keys)
        return bool(keys)

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if not event.current_buffer.text:
                event.app.exit(exception=KeyboardInterrupt)
                return
            self._may_quit = False
            event.current_buffer.reset()

        return bindings


class _Input(Vt100Input):
    """All that has come, and what came at once as one piece."""

    def read_keys(self) -> list[KeyPress]:
        keys = super().read_keys()
        while not self.closed and select.select([self.fileno()], [], [], 0)[0]:
            keys += super().read_keys()
        return as_paste(keys)


class _Output(Vt100_Output):
    """Pasted text stays in brackets between prompts too."""

    def disable_bracketed_paste(self) -> None:
        pass


def as_paste(keys: list[KeyPress]) -> list[KeyPress]:
    """Text that came at once was pasted or typed ahead: one piece, which only the end of a single line sends.

    A terminal without bracketed paste sends it like that, and a slow line.
    """
    if len(keys) < 2 or not all(map(_is_text, keys)):
        return keys
    is_sent = keys[-1].key in LINE_ENDS and not any(press.key in LINE_ENDS for press in keys[:-1])
    text = with_keys("", keys[:-1] if is_sent else keys).strip("\n")
    return [KeyPress(Keys.BracketedPaste, text)] * bool(text) + keys[-1:] * is_sent


def with_keys(text: str, keys: Sequence[KeyPress]) -> str:
    """The text that these keys, typed at the end of a text, make of it."""
    for press in keys:
        if press.key in LINE_ENDS:
            text += "\n"
        elif press.key == Keys.ControlH:
            text = text[:-1]
        elif _is_text(press):
            text += press.data.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _is_text(press: KeyPress) -> bool:
    return not isinstance(press.key, Keys) or press.key in (*LINE_ENDS, Keys.ControlI, Keys.BracketedPaste)


def _output(stream: TextIO) -> Vt100_Output:
    shown = stream if stream.isatty() else sys.stderr
    return _Output.from_pty(shown, term=os.environ.get("TERM"))
