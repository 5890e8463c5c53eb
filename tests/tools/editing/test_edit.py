"""Promises of `edit` in its full form: two ways to name a place, several edits or none, and refusals that show the real text."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., str]
BEFORE = "def f():\n    return 1\n\n\ndef g():\n    return 2\n"


@pytest.fixture
def file(root: Path) -> Path:
    (root / "a.py").write_text(BEFORE)
    return root / "a.py"


def test_lines_that_were_read_are_replaced_by_number(file: Path, full: Call) -> None:
    full("read", path="a.py")
    assert full("edit", path="a.py", from_line=2, new="    x = 1\n    return x\n") == (
        "edited a.py: 1 replacement\n1|def f():\n2|    x = 1\n3|    return x\n4|\n5|"
    )
    assert full("edit", path="a.py", from_line=6, to_line=7, new="") == "edited a.py: 1 replacement\n4|\n5|"
    assert full("edit", path="a.py", from_line=1, to_line=0, new="import os\n\n") == (
        "edited a.py: 1 replacement\n1|import os\n2|\n3|def f():\n4|    x = 1"
    )
    assert file.read_text() == "import os\n\ndef f():\n    x = 1\n    return x\n\n\n"


@pytest.mark.parametrize(
    ("before", "arguments", "after"),
    [
        ("a\nb", {"from_line": 2, "new": "c\n"}, "a\nc"),
        ("a\nb", {"from_line": 2, "new": ""}, "a"),
        ("a\nb", {"from_line": 3, "to_line": 2, "new": "c"}, "a\nb\nc"),
        ("a\r\nb\r\n", {"from_line": 2, "new": "c\nd"}, "a\r\nc\r\nd\r\n"),
        ("\ufeffa\n", {"from_line": 1, "new": "b"}, "\ufeffb\n"),
        ("a\n", {"from_line": 1, "new": ""}, ""),
        ("a\n", {"from_line": 1, "to_line": 0, "new": "\n"}, "\na\n"),
    ],
)
def test_line_ends_stay_as_they_are(
    root: Path, full: Call, before: str, arguments: dict[str, object], after: str
) -> None:
    (root / "a").write_bytes(before.encode())
    full("read", path="a")
    full("edit", path="a", **arguments)
    assert (root / "a").read_bytes().decode() == after


def test_several_edits_are_of_one_state_and_made_together(file: Path, full: Call) -> None:
    full("read", path="a.py")
    edits = [{"old": "return", "new": "yield", "all": True}, {"from_line": 1, "new": "def ff():"}]
    assert full("edit", path="a.py", edits=edits).startswith("edited a.py: 3 replacements\n1|def ff():\n2|    yield 1")
    after = file.read_text()
    assert full("edit", path="a.py", edits=[{"old": "ff", "new": "f"}, {"old": "gone", "new": ""}]).startswith(
        "error: edit 2 of 2: not found: old is not in a.py"
    )
    assert full("edit", path="a.py", edits=[{"old": "def ff", "new": "x"}, {"from_line": 1, "new": ""}]) == (
        "error: edits 1 and 2 change the same text; make one edit of them"
    )
    assert file.read_text() == after


def test_a_refused_edit_says_why_and_shows_the_real_text(file: Path, full: Call) -> None:
    assert full("edit", path="a.py", from_line=2, new="x") == (
        "error: never read: line 2 of a.py was not shown; read it, then edit"
    )
    assert full("edit", path="a.py", old="return", new="x") == (
        "error: ambiguous: old is 2 times in a.py, at lines 2, 6; give more of the text around it, or pass all=true"
    )
    assert full("edit", path="a.py", old="def g():\n\treturn 2", new="x") == (
        "error: not found: old is not in a.py; with other spaces or tabs it is:\n5|def g():\n6|    return 2"
    )
    assert full("edit", path="a.py", old="def g():\n    return 3", new="x") == (
        "error: not found: old is not in a.py; the closest text is at line 5:\n5|def g():\n6|    return 2"
    )
    assert full("edit", path="a.py", old="def", new="def").startswith("error: identical: ")
    full("read", path="a.py")
    assert full("edit", path="a.py", from_line=2, new="    return 1").startswith("error: identical: ")
    file.write_text("import os\n" + BEFORE)
    assert (
        full("edit", path="a.py", old="return 1", new="x")
        == "error: stale: a.py changed on disk since it was read; read it again"
    )
    assert full("edit", path="a.py", from_line=2, new="x").startswith("error: stale: ")
    assert file.read_text() == "import os\n" + BEFORE


def test_lines_keep_their_numbers_where_only_others_changed(file: Path, full: Call) -> None:
    full("read", path="a.py")
    file.write_text(BEFORE + "\n\ndef h():\n    pass\n")
    assert full("edit", path="a.py", from_line=2, new="    return 10").startswith("edited a.py")
    full("read", path="a.py")
    file.write_text(file.read_text().replace("def f", "def F"))
    assert full("edit", path="a.py", from_line=6, new="    return 20").startswith("edited a.py")
    assert "return 10" in file.read_text() and "return 20" in file.read_text()


def test_an_edit_through_a_link_changes_its_target_and_keeps_the_link(root: Path, file: Path, full: Call) -> None:
    (root / "link").symlink_to("a.py")
    (root / "out").symlink_to(root.parent / "secret" / "key")
    full("edit", path="link", old="def f", new="def ff")
    assert file.read_text().startswith("def ff") and (root / "link").is_symlink()
    assert full("edit", path="out", old="TOP", new="x").startswith("error: out is outside the workspace")
    os.link(root.parent / "secret" / "key", root / "hard")
    full("read", path="hard")
    full("edit", path="hard", from_line=1, new="x")
    assert (root.parent / "secret" / "key").read_text() == "TOP SECRET\n"
