"""Promises about the prompt of `run`: words, files and stdin, of any size, and never a silent wait.

What the turn was asked is read from the log of its session.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from holdfast.memory import Database, SessionStore
from tests.agent.place import Place
from tests.agent.scripted_engine import says
from tests.agent.terminal.test_render import ROOT


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, stack).script(says("Hello."), max_context=4_000_000)


def ask(place: Place, *words: str, stdin: bytes | int = b"", json: bool = False) -> tuple[int, str, str]:
    """Exit code, what the model was asked, and stderr."""
    options = ["--model", str(place.model), "--workspace", str(place.workspace), *(["--json"] if json else [])]
    command = [sys.executable, "-m", "tests.agent.scripted_engine", "run", *options, *words]
    given = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
    done = subprocess.run(command, env=place.env, cwd=ROOT, capture_output=True, timeout=120, **given)
    store = SessionStore(Database(place.home))
    asked = [e.payload["text"] for s in store.all() for e in store.events(s) if e.type == "user"]
    return done.returncode, asked[-1] if asked else "", (done.stderr + done.stdout * json).decode()


def test_stdin_is_part_of_the_prompt(place: Place) -> None:
    assert ask(place, "review", stdin=b"-a\n+\xc3\xa9\n")[1] == "review\n\n<stdin>\n-a\n+é\n</stdin>"
    assert ask(place, "-", stdin=b"from a pipe\n")[:2] == (0, "from a pipe")
    assert ask(place, stdin=b"from a pipe too")[:2] == (0, "from a pipe too")
    assert ask(place, "where", "is", "it", stdin=subprocess.DEVNULL)[:2] == (0, "where is it")
    assert ask(place, "nothing piped", stdin=b"")[:2] == (0, "nothing piped")


def test_a_file_and_a_prompt_of_any_size(place: Place) -> None:
    notes, text = place.home.parent / "the notes.txt", "all work and no play " * 15_000
    notes.write_text(f"\ufeff{text}\n")
    assert ask(place, f"@{notes}")[:2] == (0, text)
    assert ask(place, "review", "this", f"@{notes}", "well", stdin=b"x")[1] == (
        f"review this\n\n{text}\n\nwell\n\n<stdin>\nx\n</stdin>"
    )
    assert ask(place, "-", stdin=text.encode())[:2] == (0, text)
    assert ask(place, "@property is what?")[1] == "@property is what?"
    place.env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert ask(place, "prüfe", "“es”")[:2] == (0, "prüfe “es”")


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"\xff\xfe", "stdin is not UTF-8 text (byte 0 is 0xff)"),
        (b"text\0more", "stdin is not text: it has a zero byte"),
        (b"", "the prompt is empty"),
        (b" \n", "the prompt is empty"),
        (b"x" * 12_000_001, "the prompt is too long: 12,000,000 characters at most"),
        (b"x" * 48_000_001, "stdin is too long for a prompt"),
    ],
)
def test_what_is_no_prompt_is_one_line(place: Place, stdin: bytes, words: str) -> None:
    code, asked, err = ask(place, "-", stdin=stdin)
    assert code == 2 and asked == "" and words in err and err.count("\n") == 1


def test_a_pipe_that_says_nothing_is_not_waited_for_in_silence(place: Place) -> None:
    reader, writer = os.pipe()  # neither written to nor closed
    try:
        code, asked, err = ask(place, "hello", stdin=reader)
        assert (code, asked) == (0, "hello") and "holdfast: nothing came on stdin in 3 s: going on without it" in err
        _, _, err = ask(place, "hello", stdin=reader, json=True)
        assert err.startswith('{"type": "notice", "message": "nothing came on stdin in 3 s')
        command = place.command("run", "-", "--workspace", str(place.workspace), own_engine=True)
        waiting = subprocess.Popen(command, env=place.env, cwd=ROOT, stdin=reader, stderr=subprocess.PIPE)
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == b"holdfast: waiting for the prompt on stdin\n"
        os.write(writer, b"at last")
        assert waiting.stderr.readline() == b"holdfast: waiting for the end of stdin\n"
        os.close(writer)
        assert waiting.wait(60) == 0
        waiting.stderr.close()
    finally:
        os.close(reader)
