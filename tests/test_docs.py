"""The documentation names what is there: every file of the source, links with anchors, commands with options."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import docs_commands, metrics

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "engine/README.md", ROOT / "agent/pocket/README.md"]
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"(?<![\w./$-])[\w./-]+/[\w.-]+\.(?:py|js|md|json|jsonl|png|svg|toml)\b")
on_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def source_files() -> set[str]:
    """Python modules and the chat page's files, by their paths in the checkout."""
    found = [
        *metrics.modules(ROOT, metrics.PACKAGES),
        *(ROOT / "holdfast").glob("*.py"),
        *(ROOT / "agent/web").iterdir(),
    ]
    return {str(path.relative_to(ROOT)) for path in found}


def files_in_tree(text: str) -> list[str]:
    """Paths of a tree in which a folder stands at the margin and its files below it, each on a line."""
    folder, found = "", []
    for line in text.splitlines():
        if line.endswith("/") and not line.startswith(" "):
            folder = line
        elif line.startswith("  ") and folder:
            found.append(folder + line.split()[0])
    return found


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tree_names_every_source_file_once_and_no_other() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    (tree,) = (block for block in FENCED.findall(page) if "\nagent/\n" in block)
    named = files_in_tree(tree)
    assert sorted(named) == sorted(source_files())


def test_a_tree_that_lacks_a_file_is_seen() -> None:
    assert files_in_tree("a/\n  b.py   words\na/c/\n  d.js\n") == ["a/b.py", "a/c/d.js"]


@on_each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@on_each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", FENCED.sub("", page.read_text()))
    places = (ROOT, page.parent, ROOT / "tests")
    assert [name for name in NAMED_FILE.findall(text) if not any((place / name).exists() for place in places)] == []


@on_each_page
def test_functions_that_a_walk_names_are_in_the_source(page: Path) -> None:
    """A name in backquotes right after a file's: `path/file.py` `name`."""
    for name, words in re.findall(r"`([\w/]+\.py)` `([\w.]+)`", page.read_text()):
        for word in words.split("."):
            assert re.search(rf"\b(def|class) {word}\b", (ROOT / name).read_text()), f"{name} {word}"


def test_the_page_of_commands_is_what_the_command_line_has() -> None:
    assert docs_commands.PAGE.read_text() == docs_commands.page(), "run `python -m tests.docs_commands`"


def test_metrics_count_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "b.py").write_text("X = 1\n")
    (tmp_path / "agent" / "a.py").write_text(
        '"""Says so."""\nfrom holdfast.tools.b import X\n\n\ndef f() -> int:  # why\n    return X\n\n\ndef _g(): ...\n'
    )
    found = metrics.measure(tmp_path, ("agent", "tools"))
    agent = found["agent"]
    assert (agent.files, agent.functions, agent.num_comments, agent.imports) == ([5], [2, 1], 1, {"tools"})
    assert (agent.documented, agent.typed) == ([True, False], [True, False])
    assert found["source"].imports == {"agent tools"}


def test_the_scripts_run_as_modules() -> None:
    """From a checkout, as their docstrings say."""
    done = subprocess.run([sys.executable, "-m", "tests.metrics"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("| folder"), done.stderr
