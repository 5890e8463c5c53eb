"""Promises of the keyboard: what is typed or pasted at any time is one whole prompt; it answers no question.

Chats are real processes on real pseudo terminals, with their engine or attached to a server.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

from holdfast.agent.terminal.chat import command_of
from holdfast.agent.terminal.keyboard import as_paste
from tests.agent.place import Place
from tests.agent.scripted_engine import HANG, Reply, calls, says
from tests.agent.terminal.test_render import READY

EDIT = calls("edit", path="a.py", old="fox", new="cat")
WAIT: Reply = [("I wait", False), HANG]
ONE_LINE = "long " * 1200 + "line"
LINES = "first line\nsecond line\nthird line"
PASTES = {
    "in brackets": f"\x1b[200~{LINES}\x1b[201~",
    "as terminals send it": "\x1b[200~" + LINES.replace("\n", "\r") + "\x1b[201~",
    "without brackets": LINES.replace("\n", "\r") + "\r",
    "one line of 6,000 characters": ONE_LINE,
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


@pytest.mark.parametrize("is_attached", [False, True])
def test_what_was_typed_before_a_question_does_not_answer_it(place: Place, is_attached: bool) -> None:
    place.script(EDIT, says("Refused."), says("Told."))
    if is_attached:
        place.serve()
    screen = place.chat(own_engine=not is_attached)
    screen.type("edit it\r")
    screen.expect("· edit path=a.py")
    screen.type("y\r")
    screen.expect("what was typed before the question is no answer to it; it waits in the next prompt")
    screen.expect("allow? [y/N]")
    screen.type("why do you ask?\r")
    screen.expect("y, n, a, t or v")
    screen.expect("allow? [y/N]")
    assert place.file.read_text() == "fox = 1\n"
    screen.type("n\r")
    screen.expect("Refused.")
    screen.expect(READY)
    screen.expect("why do you ask?")
    screen.type(" tell me\r")
    screen.expect("Told.")
    assert place.file.read_text() == "fox = 1\n"
    assert place.prompts() == ["edit it", "y\nwhy do you ask? tell me"]


@pytest.mark.parametrize("paste", PASTES.values(), ids=PASTES)
def test_what_is_pasted_while_a_turn_runs_is_one_prompt_and_waits(place: Place, paste: str) -> None:
    screen = place.script(WAIT, says("Got it."), max_context=16384).chat(own_engine=True)
    screen.type("wait\r")
    screen.expect("I wait")
    screen.type(paste)
    screen.type("\x03")
    screen.expect("stopping")
    screen.expect("interrupted; the session keeps what was done")
    screen.expect(READY)
    screen.expect("line")
    assert place.prompts() == ["wait"]
    screen.type("\r")
    screen.expect("Got it.")
    assert place.prompts() == ["wait", ONE_LINE if paste == ONE_LINE else LINES]


@pytest.mark.parametrize("paste", PASTES.values(), ids=PASTES)
def test_what_is_pasted_before_the_chat_has_begun_is_one_prompt_and_waits(place: Place, paste: str) -> None:
    screen = place.script(says("Got it."), max_context=16384).screen(own_engine=True)
    screen.expect(READY)
    screen.type(paste)
    screen.expect("/help")
    screen.expect(READY)
    screen.expect("line")
    screen.type("\r")
    screen.expect("Got it.")
    assert place.prompts() == [ONE_LINE if paste == ONE_LINE else LINES]


def test_ctrl_c_clears_the_line_then_says_how_to_quit_then_quits(place: Place) -> None:
    screen = place.script(says("Got it.")).chat(own_engine=True)
    before = screen.mode()
    screen.type("half a prom")
    screen.expect("half a prom")
    screen.type("\x03")
    screen.type("\x03")
    screen.expect("Ctrl-C again, Ctrl-D or /quit ends the chat")
    screen.expect(READY)
    screen.type("a whole one\r")
    screen.expect("Got it.")
    screen.expect(READY)
    screen.type("\x03")
    screen.expect("ends the chat")
    screen.expect(READY)
    screen.type("\x03")
    assert screen.process.wait(60) == 0 and screen.mode() != before
    assert place.prompts() == ["a whole one"]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, None])
@pytest.mark.parametrize("is_early", [True, False])
def test_the_terminal_is_as_before_however_the_chat_ends(
    place: Place, end: signal.Signals | None, is_early: bool
) -> None:
    if end is None:  # it fails once all is loaded
        place.home.write_text("no directory")
    screen = place.script().screen(own_engine=True)
    before = screen.mode()
    screen.expect(READY)
    assert screen.mode() != before
    if end is not None:
        if not is_early:
            screen.expect("/help")
            screen.expect(READY)
        if end is signal.SIGINT and not is_early:
            screen.type("\x04")
        else:
            screen.process.send_signal(end)
    screen.process.wait(60)
    assert screen.mode() == before
    screen.expect("\x1b[?2004l")


def test_a_command_that_is_none_never_goes_to_the_model(place: Place) -> None:
    screen = place.script(says("Got it.")).chat(own_engine=True)
    for typed, said in {
        "/fork x": "unknown command /fork",
        "/foo/bar baz": "unknown command /foo/bar",
        "/turn": "did you mean /turns?",
        "?": "/turns lists the turns",
        "!ls -l": "there is no shell here",
    }.items():
        screen.type(f"{typed}\r")
        screen.expect(said)
        screen.expect(READY)
    screen.type(" /fork is a word\r")
    screen.expect("Got it.")
    screen.expect(READY)
    screen.type("exit\r")
    assert screen.process.wait(60) == 0
    assert place.prompts() == [" /fork is a word"]


def test_what_is_a_command() -> None:
    for line in (
        "",
        "hello",
        "/usr is missing, why?",
        "/usr, /etc: which?",
        " /new",
        "/new\nand more",
        "exit the loop",
        "? what",
    ):
        assert command_of(line) == [], line
    for line, words in {
        "exit\n": ["/quit"],
        "quit ": ["/quit"],
        "?": ["/help"],
        "/new": ["/new"],
        "/": ["/"],
        "/rewind 3": ["/rewind", "3"],
        "!ls -l": ["!", "!ls -l"],
        "/usrx is missing": ["/usrx", "is", "missing"],
    }.items():
        assert command_of(line) == words, line


def test_keys_that_come_at_once_send_one_line_at_most() -> None:
    def keys(text: str) -> list[KeyPress]:
        return [KeyPress(Keys.ControlM) if c == "\r" else KeyPress(c) for c in text]

    def shape(text: str) -> list[str]:
        return [press.data if press.key is Keys.BracketedPaste else press.key for press in as_paste(keys(text))]

    assert shape("a") == ["a"] and shape("\r") == [Keys.ControlM] and shape("") == []
    assert shape("go\r") == ["go", Keys.ControlM]
    assert shape("one\rtwo") == shape("one\rtwo\r") == ["one\ntwo"]
    assert shape("\r\r") == []
    assert as_paste([*keys("ab"), KeyPress(Keys.Left)]) == [*keys("ab"), KeyPress(Keys.Left)]
