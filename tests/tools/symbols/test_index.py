"""Promises of `outline` and `find_symbol`: exact formats, order, and an index that is never stale."""

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.tools import Context, Workspace
from holdfast.tools.symbols.index import FindSymbolArguments, SymbolIndex, find_symbol
from holdfast.tools.symbols.parsing import Parser
from holdfast.tools.walk.walk import SourceTree

Call = Callable[..., str]

SESSION = """LIMIT = 3

class Session:
    def turn(self):
        def inner(): ...

    class Turn:
        def run(self): ...
"""


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_outline_lists_symbols_in_file_order(root: Path, call: Call) -> None:
    write(root, a=SESSION, one="def f(): ...\n", none="import os\n")
    assert call("outline", path="a.py") == (
        "a.py: 5 symbols\n1 const LIMIT\n3 class Session\n4 def Session.turn\n7 class Session.Turn\n8 def Session.Turn.run"
    )
    assert call("outline", path="one.py") == "one.py: 1 symbol\n1 def f"
    assert call("outline", path="none.py") == "none.py: no symbols"


@pytest.mark.parametrize(("num_symbols", "tail"), [(60, "60 def f"), (61, "(+1 more)")])
def test_outline_shows_60_symbols(root: Path, call: Call, num_symbols: int, tail: str) -> None:
    write(root, a="def f(): ...\n" * num_symbols)
    lines = call("outline", path="a.py").split("\n")
    assert lines[0] == f"a.py: {num_symbols} symbols" and lines[60] == "60 def f" and lines[-1] == tail


def test_outline_errors(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("x")
    (root / "Makefile").write_text("x")
    (root / "b.py").write_bytes(b"\xff")
    assert call("outline", path="a.txt") == "error: no outline for .txt files"
    assert call("outline", path="Makefile") == "error: no outline for files without a suffix"
    assert call("outline", path="b.py") == "error: b.py is not UTF-8 text"
    assert call("outline", path="c.py") == "error: no file c.py; did you mean b.py?"
    assert call("outline", path=".") == "error: . is a directory"


def test_find_symbol_matches_whole_last_components(root: Path, call: Call) -> None:
    write(root, a=SESSION)
    assert call("find_symbol", name="turn") == "a.py:4 def Session.turn"
    assert call("find_symbol", name="Session.turn") == "a.py:4 def Session.turn"
    assert call("find_symbol", name="Turn.run") == "a.py:8 def Session.Turn.run"
    assert call("find_symbol", name="Session::turn") == "a.py:4 def Session.turn"
    assert call("find_symbol", name="LIMIT") == "a.py:1 const LIMIT"
    assert call("find_symbol", name="urn") == "no symbol named urn"
    assert call("find_symbol", name="inner") == "no symbol named inner"
    assert call("find_symbol", name=" ") == "error: name is empty; give the name of a class, function or constant"


def test_find_symbol_tries_another_case_only_when_nothing_fits(root: Path, call: Call) -> None:
    write(root, a=SESSION)
    assert call("find_symbol", name="Turn") == "a.py:7 class Session.Turn"
    assert call("find_symbol", name="TURN") == "a.py:4 def Session.turn\na.py:7 class Session.Turn"
    assert call("find_symbol", name="session.RUN") == "no symbol named session.RUN"


def test_find_symbol_puts_tests_last_and_shows_eight(root: Path, call: Call) -> None:
    define = "def f(): ...\n"
    write(root, z=define * 2, tests__a=define, pkg__test_b=define, pkg__testing_c=define)
    assert call("find_symbol", name="f") == (
        "pkg/testing_c.py:1 def f\nz.py:1 def f\nz.py:2 def f\npkg/test_b.py:1 def f\ntests/a.py:1 def f"
    )
    write(root, z=define * 6)
    assert call("find_symbol", name="f").split("\n")[7:] == ["pkg/test_b.py:1 def f", "(+1 more)"]


def test_the_index_follows_the_disk(root: Path, call: Call) -> None:
    write(root, a="def f(): ...\n", b="def f(): ...\n")
    assert call("find_symbol", name="f") == "a.py:1 def f\nb.py:1 def f"
    (root / "b.py").unlink()
    call("edit", path="a.py", old="f", new="g")
    write(root, c="\ndef f(): ...\n")
    assert call("find_symbol", name="f") == "c.py:2 def f"
    assert call("find_symbol", name="g") == "a.py:1 def g"


def test_a_file_is_read_and_parsed_again_only_when_it_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, a="def f(): ...\n", b="def f(): ...\n", c="def other(): ...\n")
    workspace = Workspace(root)
    symbols, used = SymbolIndex(workspace), []
    read, parse = SourceTree.read, Parser.symbols
    monkeypatch.setattr(SourceTree, "read", lambda tree, path: (used.append(path), read(tree, path))[1])
    monkeypatch.setattr(Parser, "symbols", lambda *args: (used.append(args[2]), parse(*args))[1])
    query = FindSymbolArguments(name="f")
    found = find_symbol(symbols, query, Context(symbols.workspace))
    assert used == ["a.py", "def f(): ...\n", "b.py", "def f(): ...\n", "c.py"]
    assert find_symbol(symbols, query, Context(symbols.workspace)) == found and len(used) == 5
    write(root, a="class f: ...\n")
    assert find_symbol(symbols, query, Context(symbols.workspace)) == "a.py:1 class f\nb.py:1 def f"
    assert used[5:] == ["a.py", "class f: ...\n"]


def test_a_file_that_is_not_text_defines_nothing_and_is_named(root: Path, call: Call) -> None:
    (root / "a.py").write_bytes(b"def f(): ...\n\xff")
    (root / "b.py").write_bytes(b"def g(): ...\n\xff")
    assert call("find_symbol", name="f") == "no symbol named f\n(1 file skipped: 1 not UTF-8: a.py)"
    assert call("find_symbol", name="h") == "no symbol named h"


def test_a_file_that_cannot_be_parsed_is_named_and_the_others_are_found(root: Path, call: Call) -> None:
    (root / "a.java").write_text("A<" * 30_000 + "f")
    write(root, b="def f(): ...\n")
    said = "b.py:1 def f\n(1 file skipped: 1 could not be parsed: a.java)"
    assert call("find_symbol", name="f") == said == call("find_symbol", name="f")
    assert call("outline", path="a.java") == "error: no outline for a.java: it could not be parsed; read it instead"


def test_languages_without_a_grammar_are_said(root: Path, call: Call) -> None:
    for name in ("a.rb", "b.rb", "c.php", "d.txt"):
        (root / name).write_text("def f\nend\n")
    expected = "no symbol named f in the indexed languages; 2 .rb, 1 .php files are not indexed"
    assert call("find_symbol", name="f") == expected
    write(root, a="def f(): ...\n")
    assert call("find_symbol", name="f") == "a.py:1 def f"


def test_every_symbol_can_be_reached_by_a_next_page(root: Path, call: Call) -> None:
    write(root, a="def f(): ...\n" * 70)
    pages = [call("outline", path="a.py", start=start).split("\n") for start in (1, 61)]
    assert pages[0][-1] == "(+10 more)" and pages[1] == ["a.py: 70 symbols", *(f"{n} def f" for n in range(61, 71))]
    assert call("find_symbol", name="f", start=65) == "\n".join(f"a.py:{n} def f" for n in range(65, 71))
    assert call("find_symbol", name="f", start=71) == "error: f has 70 definitions; start=71 is past the end"
    assert call("outline", path="a.py", start=71) == "error: a.py has 70 symbols; start=71 is past the end"
