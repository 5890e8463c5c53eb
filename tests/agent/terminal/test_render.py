"""Promises of the terminal: nothing from outside steers it, everything is shown, and a person is really asked.

Printer and chat run on a real pseudo terminal, with a process each on a scripted engine where turns are needed.
"""

import fcntl
import os
import select
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from holdfast.agent.events import (
    Error,
    Event,
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
from holdfast.agent.terminal.render import Printer, Reading, usage_line
from holdfast.agent.terminal.sanitize import exact, neutral, one_line
from tests.agent.scripted_engine import HANG, Reply, calls, make_model, says

READY = "\x1b[?2004h"  # a prompt is open: it asks for pasted text in brackets
ROOT = Path(__file__).parents[3]
ATTACKS = {
    "clear the screen": "\x1b[2J",
    "window title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;aGk=\x07",
    "hyperlink": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "one-byte introducer": "\x9b2J",
    "overwritten line": "safe\rrm -rf /",
    "erased characters": "rm\x08\x08ls",
    "reversed text": "a\u202efdp.exe",
    "nul": "a\0b",
}


def drawn(*events: Event) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    printer = Printer(Console(file=out, width=80), Console(file=err, width=80))
    for event in events:
        printer.show(event)
    return out.getvalue(), err.getvalue()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_control_sequences_never_reach_the_terminal(attack: str) -> None:
    events: list[Event] = [
        Text(delta=attack),
        Thinking(delta=attack),
        ToolCallMade(id="1", name=attack, arguments=f'{{"path": "{attack}"}}'),
        ToolResultGiven(id="1", ok=True, output=attack),
        ToolResultGiven(id="1", ok=False, output=f"{attack}\n{attack}"),
        Notice(message=attack),
        Error(message=attack),
    ]
    shown = "".join(drawn(*events))
    for text in (shown, neutral(attack), exact(attack), one_line(attack, 50)):
        assert not set(text) & (set(map(chr, [*range(32), *range(0x7F, 0xA0)])) - {"\n", "\t"})
        assert "\u202e" not in text


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    text = "def f():\n\treturn 'grüß 你好 👩‍👩‍👧 \u05d0'\n"
    assert neutral(text) == text


def test_what_is_approved_is_shown_to_the_last_character() -> None:
    assert exact("a\u200bb\u00a0c\x1b\nd\u3164") == "a\\u200bb\\xa0c\\x1b\nd\u3164"


def test_a_turn_is_drawn_line_by_line() -> None:
    usage = Usage(new=5, from_memory=1200, output_tokens=7, context_used=1212, context_limit=8192, decode_s=1.234)
    out, err = drawn(
        PrefillProgress(done=1, total=2),
        Text(delta="I look"),
        ToolCallMade(id="1", name="read", arguments='{"path": "a.py", "start": 3}'),
        ToolResultGiven(id="1", ok=True, output="3|x\n4|y\n5|z"),
        ToolCallMade(id="2", name="rm", arguments="not json"),
        ToolResultGiven(id="2", ok=False, output="error: no tool rm"),
        Text(delta="It is "),
        Text(delta="[bold]x[/bold] 12."),
        TurnDone(session="s", turn=1, text="", usage=usage),
    )
    assert out == (
        "I look\n· read path=a.py, start=3\n  3|x (+2 lines)\n· rm not json\n  error: no tool rm\n"
        "It is [bold]x[/bold] 12.\n"
    )
    assert err == (
        "1,205 tokens in (5 new, 1,200 from memory), 7 out · context 1,212 of 8,192"
        " · prefill 0.00 s, decode 1.23 s, tools 0.00 s\n"
    )


def test_usage_says_what_was_read_again_and_why() -> None:
    line = usage_line(Usage(new=5, prefilled_again=900, why="no stored state", load_s=0.5))
    assert "905 tokens in (5 new, 900 prefilled again (no stored state))" in line and line.endswith("load 0.50 s")


def test_reading_tells_how_fast_it_is_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("holdfast.agent.terminal.render.time.monotonic", lambda: now)
    reading = Reading()
    reading.tell(0, 443_000)
    assert reading.line() == "reading 0 of 443k tokens"
    now = 116.0
    reading.tell(49_000, 443_000)
    assert reading.line() == "reading 49k of 443k tokens · 3.1k/s · 2 min left"
    now += 60  # no news: the time goes on all the same
    assert reading.line() == "reading 49k of 443k tokens · 3.1k/s · 69 s left"
    now = 500.0
    reading.tell(200, 900)  # another prompt
    assert reading.line() == "reading 200 of 900 tokens"


class Screen:
    """A command on a pseudo terminal, as a person has it."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self._fd, inner = os.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=env, cwd=ROOT, preexec_fn=take_terminal
        )
        os.close(inner)
        self.seen = ""

    def expect(self, text: str, timeout_s: float = 90) -> None:
        """Read on until `text` has come; what came up to it is spent."""
        deadline = time.monotonic() + timeout_s
        output = select.poll()
        output.register(self._fd, select.POLLIN)
        while text not in self.seen:
            left_ms = 1000 * (deadline - time.monotonic())
            assert left_ms > 0 and output.poll(left_ms), f"no {text!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def mode(self) -> list[Any]:
        return termios.tcgetattr(self._fd)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def test_chat_asks_before_an_edit_and_ctrl_c_ends_only_the_turn(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    file = tmp_path / "ws" / "a.py"
    file.write_text("fox = 1\n")
    edit = calls("edit", path="a.py", old="fox", new="cat")
    replies: list[Reply] = [edit, says("Refused."), edit, [("I go on", False), HANG], says("Back.")]
    model = make_model(tmp_path / "model", replies)
    command = [sys.executable, "-m", "tests.agent.scripted_engine", "chat", "--model", str(model)]
    env = {**os.environ, "HOLDFAST_HOME": str(tmp_path / "home"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    screen = Screen([*command, "--workspace", str(tmp_path / "ws")], env)
    try:
        screen.expect("a new session: 0 turns")
        screen.expect(READY)
        screen.type("edit it\r")
        screen.expect("edit wants to change")
        screen.expect("1 -fox = 1")
        screen.expect("allow? [y/N]")
        screen.type("\r")
        screen.expect("Refused.")
        assert file.read_text() == "fox = 1\n"
        screen.expect(READY)
        screen.type("do edit it\r")
        screen.expect("allow? [y/N]")
        screen.type("y\r")
        screen.expect("I go on")
        assert file.read_text() == "cat = 1\n"
        time.sleep(0.2)
        screen.type("\x03")
        screen.expect("interrupted; the session keeps what was done")
        screen.expect(READY)
        screen.type("back?\r")
        screen.expect("Back.")
        screen.expect(READY)
        screen.type("\x04")
        assert screen.process.wait(60) == 0
    finally:
        screen.close()


def test_a_running_call_shows_its_last_lines_in_one_place() -> None:
    out = StringIO()
    printer = Printer(Console(file=out, width=20, force_terminal=True, color_system=None), Console(file=StringIO()))
    printer.show(ToolOutput(id="1", delta="".join(f"line {n}\n" for n in range(9))))
    assert [line.strip() for line in out.getvalue().splitlines()] == [f"line {n}" for n in range(4, 9)]
    out.truncate(0)
    out.seek(0)
    printer.show(ToolOutput(id="1", delta=f"10 %\r20 %\r30 %\n{'x' * 100}\n\x1b[31mred\x1b[0m\x1b[2J"))
    shown = out.getvalue()
    assert shown.count("\x1b[1A\x1b[2K") == 5 and "30 %" in shown and "10 %" not in shown
    lines = shown.rpartition("\x1b[1A\x1b[2K")[2].splitlines()
    assert max(map(len, lines)) < 20 and "red" in lines[-1] and "\x1b[2J" not in shown
    out.truncate(0)
    out.seek(0)
    printer.show(ToolResultGiven(id="1", ok=True, output="exit status 0"))
    assert out.getvalue().count("\x1b[1A\x1b[2K") == 5 and out.getvalue().endswith("exit status 0\n")


def test_what_a_running_call_puts_out_is_not_piped() -> None:
    assert drawn(ToolOutput(id="1", delta="building\n")) == ("", "")
