"""Promises of the parser: text that freezes or crashes a parser harms no one, and its child goes when it is not needed."""

import gc
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest

from holdfast.tools import Cancellation, ToolError
from holdfast.tools.symbols.definitions import Symbol
from holdfast.tools.symbols.parsing import NotParsed, Parser

FINE = "def f(): ...\n"
FINE_SYMBOLS = (Symbol(1, "def", "f"),)
FREEZES = "\\\n" * 50_000  # tree-sitter-python takes quadratic time


@pytest.fixture
def parser() -> Parser:
    return Parser()


def child_of(parser: Parser) -> int:
    assert parser._child is not None
    return parser._child.pid


@pytest.mark.parametrize(("path", "text"), [("a.js", "{a:" * 110_000), ("a.java", "A<" * 30_000), ("a.py", FREEZES)])
def test_hostile_text_is_refused_and_the_next_is_parsed(parser: Parser, path: str, text: str) -> None:
    with pytest.raises(NotParsed, match=r"could not be parsed|took too long to parse"):
        parser.symbols(path, text, Cancellation())
    assert parser.symbols("a.py", FINE, Cancellation()) == FINE_SYMBOLS


def test_names_nested_without_end_cost_no_gigabytes(parser: Parser) -> None:
    text = "namespace a { void f() {} " * 2_000 + "}" * 2_000
    assert len(parser.symbols("a.cpp", text, Cancellation())) <= 101


def test_one_child_parses_one_text_after_another(parser: Parser) -> None:
    assert parser.symbols("a.py", FINE, Cancellation()) == FINE_SYMBOLS
    child = child_of(parser)
    assert parser.symbols("a.h", "class A { void f() {} };", Cancellation())[1].name == "A.f"
    assert child_of(parser) == child


def test_the_death_of_an_idle_child_is_not_held_against_a_text(parser: Parser) -> None:
    parser.symbols("a.py", FINE, Cancellation())
    os.kill(child_of(parser), signal.SIGKILL)
    assert parser.symbols("a.py", FINE, Cancellation()) == FINE_SYMBOLS


def test_cancelling_ends_a_parse_and_its_child(parser: Parser) -> None:
    parser.symbols("a.py", FINE, Cancellation())
    child, cancellation = child_of(parser), Cancellation()
    threading.Timer(0.3, cancellation.set).start()
    with pytest.raises(ToolError, match="cancelled"):
        parser.symbols("a.py", FREEZES, cancellation)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_child_ends_with_its_owner() -> None:
    parser = Parser()
    parser.symbols("a.py", FINE, Cancellation())
    child = child_of(parser)
    del parser
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_child_takes_nothing_from_the_working_directory(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "tree_sitter", "sitecustomize", "holdfast"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert parser.symbols("a.py", FINE, Cancellation()) == FINE_SYMBOLS
    assert not (tmp_path / "ran").exists()


def test_descriptors_of_any_number_can_be_waited_for(parser: Parser) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("so many descriptors are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert parser.symbols("a.py", FINE, Cancellation()) == FINE_SYMBOLS
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
