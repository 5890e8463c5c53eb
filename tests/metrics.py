"""`python -m tests.metrics`: how large and how documented the source is, by folder, and which folder imports which.

Sizes are lines that are not blank; of a function its docstring counts too. Public is what has no leading underscore.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.agent import __file__ as agent_file

ROOT = Path(agent_file).resolve().parents[1]
PACKAGES = ("agent", "tools", "engine", "memory", "kernels")
Function = ast.FunctionDef | ast.AsyncFunctionDef
HEAD = """\
| folder | files | LOC | file median / p90 / max | function median / p90 / max | comments / docstrings %\
 | public documented | typed | imports |
|---|---|---|---|---|---|---|---|---|"""


@dataclass
class Measured:
    """One folder without those below it, or all of them."""

    files: list[int] = field(default_factory=list)  # their sizes
    functions: list[int] = field(default_factory=list)
    num_comments: int = 0
    num_docstring_lines: int = 0
    documented: list[bool] = field(default_factory=list)  # of public modules, classes and functions
    typed: list[bool] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)  # folders

    def add(self, text: str) -> None:
        """A module."""
        tree = ast.parse(text)
        self.files.append(size(text))
        self.num_comments += sum(
            token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline)
        )
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | Function):
                continue
            docstring = ast.get_docstring(node)
            self.num_docstring_lines += size(docstring or "")
            if not getattr(node, "name", "module").startswith("_"):
                self.documented.append(docstring is not None)
            if isinstance(node, Function):
                self.functions.append(size(ast.get_source_segment(text, node) or ""))
                self.typed.append(node.returns is not None or node.name == "__init__")

    def row(self, name: str) -> str:
        num_lines = sum(self.files)
        comments, docstrings = (100 * n / num_lines for n in (self.num_comments, self.num_docstring_lines))
        cells = [
            name, f"{len(self.files)}", f"{num_lines:,}", spread(self.files), spread(self.functions),
            f"{comments:.1f} / {docstrings:.1f}", percent(self.documented), percent(self.typed), f"{len(self.imports)}",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def size(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def spread(sizes: list[int]) -> str:
    ordered = sorted(sizes) or [0]
    return " / ".join(f"{ordered[round(share * (len(ordered) - 1))]}" for share in (0.5, 0.9, 1.0))


def percent(marks: list[bool]) -> str:
    return f"{100 * sum(marks) / max(len(marks), 1):.0f} %"


def modules(root: Path, packages: tuple[str, ...]) -> Iterator[Path]:
    for package in packages:
        yield from sorted((root / package).rglob("*.py"))


def imported_folders(root: Path, path: Path) -> set[str]:
    """The folders of ours, other than its own, that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        targets = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        targets += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for target in targets:
            place = root.joinpath(*target.split(".")[1:])
            if target.startswith("holdfast.") and place != root:
                found.add(place if place.is_dir() else place.parent)
    return {str(folder.relative_to(root)) for folder in found - {path.parent}}


def measure(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Measured]:
    """Folders of the source, and all of them together under `source`."""
    folders: dict[str, Measured] = {}
    total = Measured()
    for path in modules(root, packages):
        folder = folders.setdefault(str(path.parent.relative_to(root)), Measured())
        text = path.read_text()
        folder.add(text)
        total.add(text)
        folder.imports |= imported_folders(root, path)
    total.imports = {f"{name} {target}" for name, each in folders.items() for target in each.imports}
    return {**folders, "source": total}


def report(root: Path = ROOT) -> str:
    """The table as Markdown."""
    rows = [each.row(name) for name, each in measure(root).items()]
    rows.append(measure(root, ("tests",))["source"].row("tests"))
    return "\n".join([HEAD, *rows])


if __name__ == "__main__":
    print(report())
