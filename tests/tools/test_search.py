"""Promises of `search`: literal, whole identifiers, exact format."""

from collections.abc import Callable
from pathlib import Path

from holdfast.tools import Context, Workspace
from holdfast.tools.search import SearchArguments, search

Call = Callable[..., str]


def test_search_lists_matching_lines_by_path_and_line(root: Path, call: Call) -> None:
    (root / "b.py").write_text("run()\nrerun()\n")
    (root / "a").mkdir()
    (root / "a" / "z.py").write_text("x\n    run(run)  \r\nRun\n")
    assert call("search", text="run") == "2 matches in 2 files\na/z.py:2: run(run)\nb.py:1: run()"
    assert call("search", text="run(") == "3 matches in 2 files\na/z.py:2: run(run)\nb.py:1: run()\nb.py:2: rerun()"
    assert call("search", text="rerun") == "1 match in 1 file\nb.py:2: rerun()"
    assert call("search", text="walk") == "no matches for walk"


def test_search_treats_text_literally(root: Path, call: Call) -> None:
    (root / "a.py").write_text("abc\na.c [x] \\d\n")
    for text in ("a.c", "[x]", "\\d", " [x]"):
        assert call("search", text=text) == "1 match in 1 file\na.py:2: a.c [x] \\d"


def test_search_can_be_restricted(root: Path, call: Call) -> None:
    (root / "pkg").mkdir()
    for path in ("pkg/a.py", "pkg.py", "pkg2.py"):
        (root / path).write_text("word\n")
    assert call("search", text="word", path="pkg") == "1 match in 1 file\npkg/a.py:1: word"
    assert call("search", text="word", path="pkg/") == "1 match in 1 file\npkg/a.py:1: word"
    assert call("search", text="word", path="pkg.py") == "1 match in 1 file\npkg.py:1: word"
    assert call("search", text="word", path=".").startswith("3 matches in 3 files\n")
    assert call("search", text="word", path="pkg2") == "error: no file pkg2; did you mean pkg2.py?"


def test_search_shows_20_lines_of_80_characters(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("  " + "ab " * 50 + "\n" + "ab\n" * 20)
    lines = call("search", text="ab").split("\n")
    assert lines[0] == "21 matches in 1 file" and lines[-1] == "(+1 more)" and len(lines) == 22
    assert lines[1] == "a.txt:1: " + ("ab " * 50)[:80]


def test_search_skips_binary_and_ignored_files(root: Path, call: Call) -> None:
    (root / ".gitignore").write_text("out/\n")
    (root / "out").mkdir()
    (root / "out" / "a.txt").write_text("word\n")
    (root / "b").write_bytes(b"word\0")
    (root / "c").write_bytes(b"word \xff\n")
    skipped = "(1 file skipped: 1 not UTF-8: c)\n(ignored, not searched: out/; give one as path to search it)"
    assert call("search", text="word") == f"no matches for word\n{skipped}"
    assert call("search", text="other").startswith("no matches for other\n(ignored")
    assert call("search", text="word", path="out") == "1 match in 1 file\nout/a.txt:1: word"
    assert call("search", text="word", path="out/a.txt") == "1 match in 1 file\nout/a.txt:1: word"
    assert call("search", text="word", path="b") == "error: b is not UTF-8 text"


def test_search_refuses_text_that_no_line_can_hold(call: Call) -> None:
    assert call("search", text="") == "error: text is empty; give the text to search for"
    assert call("search", text="a\nb") == "error: text has several lines; search for one line of it"


def test_files_past_the_shown_lines_do_not_count_as_shown(root: Path) -> None:
    (root / "a.txt").write_text("word\n" * 20)
    (root / "b.txt").write_text("word\n")
    workspace = Workspace(root)
    assert search(SearchArguments(text="word"), Context(workspace)).endswith("(+1 more)")
    (root / "b.txt").write_text("other\n")
    workspace.check_fresh(workspace.read_text("b.txt"))


def test_only_ascii_identifiers_match_as_a_whole(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("读取配置文件\n读config文\nreconfig config2 _config\nnaïve\n")
    assert call("search", text="配置") == "1 match in 1 file\na.txt:1: 读取配置文件"
    assert call("search", text="config") == "1 match in 1 file\na.txt:2: 读config文"
    assert call("search", text="naïv") == "1 match in 1 file\na.txt:4: naïve"


def test_the_match_is_shown_however_long_its_line_is(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("  " + "x" * 900 + " word " + "y" * 900 + "\n" + "x" * 80 + " word\n")
    lines = call("search", text="word").split("\n")
    assert lines[1] == "a.txt:1: …" + "x" * 19 + " word " + "y" * 54 and len(lines[1]) == len("a.txt:1: ") + 80
    assert lines[2] == "a.txt:2: …" + "x" * 19 + " word"


def test_every_match_can_be_reached_by_a_next_page(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("word\n" * 15)
    (root / "b.txt").write_text("word\n" * 10)
    lines = call("search", text="word", start=21).split("\n")
    assert lines == ["25 matches in 2 files", *(f"b.txt:{n}: word" for n in range(6, 11))]
    assert call("search", text="word", brief=True, start=2) == "25 matches in 2 files\nb.txt: 1, 2, 3, 4, 5, ..."
    assert call("search", text="word", start=26) == "error: word has 25 matches; start=26 is past the end"


def test_what_is_skipped_is_said_unless_it_is_binary(root: Path, call: Call) -> None:
    (root / "a.txt").write_text("word\n")
    (root / "large.csv").write_text("x," * 2**20 + "word")
    (root / "model.bin").write_bytes(b"\0" * (2**21 + 1))
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    assert call("search", text="word") == "1 match in 1 file\na.txt:1: word\n(1 file skipped: 1 over 2 MB: large.csv)"
    assert (
        call("search", text="é")
        == "no matches for é\n(2 files skipped: 1 over 2 MB: large.csv, 1 not UTF-8: latin.txt)"
    )
    (root / "large.csv").unlink()
    assert call("search", text="word") == "1 match in 1 file\na.txt:1: word"
