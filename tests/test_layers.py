"""The rules of the tree: who may import whom, one home per third-party package, no cycles, no work at import.

A rule is a function from a source tree to its faults, one sentence each. Every rule is shown to fail on a small made-up
tree before the real tree is held against it.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "agent": {"tools", "engine", "memory"},
    "tools": {"memory"},
    "engine": {"kernels"},
    "memory": set(),
    "kernels": set(),
}

# A name stands for itself and for what continues it with an underscore: tree_sitter_c, pydantic_core.
HOMES = {
    "torch": ("engine", "kernels", "agent.pocket"),
    "numpy": ("engine", "kernels", "agent.pocket"),
    "triton": ("kernels.gpu",),
    "safetensors": ("engine",),
    "transformers": ("engine",),
    "tokenizers": ("engine", "agent.pocket"),  # pocket trains its own, the engine reads any
    "llguidance": ("engine.constraint",),
    "sqlite_utils": ("memory",),
    "tree_sitter": ("tools",),
    "watchfiles": ("tools",),
    "pydantic": ("agent", "tools"),
    "aiohttp": ("agent",),
    "rich": ("agent",),
    "prompt_toolkit": ("agent",),
    "numba": ("kernels.cpu",),
    "llvmlite": ("kernels.cpu",),
    "platformdirs": ("agent", "kernels.cpu"),
}

# Modules with imports inside functions, and why.
LATE_IMPORTS = {
    "engine.bench.speed": "transformers is a development dependency: only a comparison with it needs it",
    "engine.model": "Triton may be absent, and is loaded only where a model runs on a GPU",
    "engine.placement": "as engine.model",
    "engine.state.cache": "as engine.model",
    "memory.db": "sqlite-utils takes a fifth of a second to load: only a file that lacks a migration pays it",
    "agent.cli.main": "`holdfast --help` must not wait for torch: a subcommand loads the engine when it needs it",
    "agent.cli.sessions": "a session that a server holds needs pydantic and aiohttp, a rewind of files the tools",
}


@dataclass(frozen=True)
class Import:
    module: str  # who imports, "engine.cache"; names of modules stand here without `holdfast.`
    line: int
    target: str  # what, "kernels.quant"
    name: str | None  # the name taken from the target; None where the target itself is what is imported
    late: bool  # inside a function

    def __str__(self) -> str:
        what = f"from {self.target} import {self.name}" if self.name else f"import {self.target}"
        return f"{self.module}:{self.line}: {what}"


@dataclass(frozen=True)
class Tree:
    root: Path
    modules: dict[str, ast.Module]  # by dotted name; a package goes by its own name
    imports: list[Import]


def read_tree(root: Path) -> Tree:
    paths = {path.relative_to(root): path for package in MAY_IMPORT for path in sorted((root / package).rglob("*.py"))}
    modules = {dotted(path): ast.parse(full.read_text(), str(path)) for path, full in paths.items()}
    imports = [
        found
        for path in paths
        for node, late in import_nodes(modules[dotted(path)], False)
        for found in read_import(path, node, late, modules)
    ]
    return Tree(root, modules, imports)


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_nodes(node: ast.AST, late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late
        else:
            yield from import_nodes(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def read_import(
    path: Path, node: ast.Import | ast.ImportFrom, late: bool, modules: dict[str, ast.Module]
) -> Iterator[Import]:
    module = dotted(path)
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, node.lineno, short(alias.name), None, late)
        return
    above = path.parent.parts[: len(path.parent.parts) + 1 - node.level] if node.level else ()
    target = short(".".join([*above, *([node.module] if node.module else [])]), bool(node.level))
    for alias in node.names:
        if f"{target}.{alias.name}" in modules:
            yield Import(module, node.lineno, f"{target}.{alias.name}", None, late)
        else:
            yield Import(module, node.lineno, target, alias.name, late)


def short(name: str, is_relative: bool = False) -> str:
    """`engine.cache` for `holdfast.engine.cache`; `bare engine.cache` for a bare one, another's package."""
    if name.startswith("holdfast."):
        return name.removeprefix("holdfast.")
    return f"bare {name}" if name.split(".")[0] in MAY_IMPORT and not is_relative else name


def layer_faults(tree: Tree) -> list[str]:
    """Imports against the table of layers; the agent sees only the names that engine/__init__ lists."""
    faults = []
    public = public_names(tree.modules["engine"]) if "engine" in tree.modules else set()
    for found in tree.imports:
        package, target = found.module.split(".")[0], found.target.split(".")[0]
        if target.startswith("bare "):
            faults.append(f"{found}: import it as holdfast.{found.target.removeprefix('bare ')}")
        if target not in MAY_IMPORT or target == package:
            continue
        if target not in MAY_IMPORT[package]:
            faults.append(f"{found}: {package} must not import {target}")
        elif target == "engine" and (found.target != "engine" or found.name not in public):
            faults.append(f"{found}: {package} may only import names listed in engine/__init__")
    return faults


def public_names(module: ast.Module) -> set[str]:
    values = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    return set(ast.literal_eval(values[0])) if values else set()


def cycle_faults(tree: Tree) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in tree.modules}
    for found in tree.imports:
        if found.target in graph and found.target != found.module:
            graph[found.module].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        return [f"import cycle: {' <- '.join(e.args[1])}"]
    return []


def home_faults(tree: Tree) -> list[str]:
    faults = []
    for found in tree.imports:
        top = found.target.split(".")[0]
        if top in MAY_IMPORT or top.startswith("bare ") or top in sys.stdlib_module_names:
            continue
        package = next((p for p in HOMES if top == p or top.startswith(f"{p}_")), None)
        if package is None:
            faults.append(f"{found}: {top} has no home yet")
        elif not any(f"{found.module}.".startswith(f"{home}.") for home in HOMES[package]):
            faults.append(f"{found}: {package} belongs to {', '.join(HOMES[package])}")
    return faults


def late_faults(tree: Tree) -> list[str]:
    return [f"{i}: inside a function" for i in tree.imports if i.late and i.module not in LATE_IMPORTS]


# Runs in a fresh interpreter and prints one line per side effect. Third-party packages come first: what they do at
# import is theirs.
WATCH = """
import contextlib, importlib, io, os, sys, threading

root, third_party, modules = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
for name in third_party:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
EFFECTS = (
    "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.system", "os.truncate", "shutil.", "socket.bind", "socket.connect", "sqlite3.connect", "subprocess.",
    "tempfile.",
)
effects = []


def watch(event, args):
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or event.startswith(EFFECTS):
        effects.append(f"{event} {args}")


def watched_start(thread, start=threading.Thread.start):  # Python 3.11 has no event for it
    effects.append(f"starts {thread}")
    start(thread)


sys.path.insert(0, root)
sys.addaudithook(watch)
threading.Thread.start = watched_start
for name in modules:
    effects.clear()
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        importlib.import_module(name)
    for effect in effects + ([f"prints {said.getvalue()!r}"] if said.getvalue() else []):
        print(f"{name} at import: {effect}")
effects.clear()
"""


def import_faults(tree: Tree, third_party: Iterable[str] = HOMES) -> list[str]:
    """Imports every module, writing no byte code; reports files written, threads, processes, connections, output."""
    quiet = {"engine.bench.transformers_reference"}  # only benches and tests import it: transformers opens files
    watched = " ".join(f"holdfast.{module}" for module in tree.modules.keys() - quiet)
    command = [sys.executable, "-B", "-c", WATCH, str(tree.root), " ".join(third_party), watched]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree.root)
    return done.stdout.splitlines() + done.stderr.splitlines()


Rule = Callable[[Tree], list[str]]
STATIC_RULES: list[Rule] = [layer_faults, cycle_faults, home_faults, late_faults]


@pytest.mark.parametrize("rule", [*STATIC_RULES, import_faults])
def test_the_tree_follows_the_rules(rule: Rule) -> None:
    tree = read_tree(ROOT)
    assert tree.modules.keys() > MAY_IMPORT.keys()
    assert rule(tree) == []


def made_up(root: Path, **files: str) -> Tree:
    """A tree from file=source pairs; `engine__cache` is engine/cache.py, `engine` is engine/__init__.py.

    In the sources `import tools` means `import holdfast.tools`.
    """
    for name, source in files.items():
        package, _, module = name.partition("__")
        path = root.joinpath(*package.split("_"), f"{module or '__init__'}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(rf"(from|import) ({'|'.join(MAY_IMPORT)})\b", r"\1 holdfast.\2", source))
    (root / "holdfast").mkdir(exist_ok=True)
    (root / "holdfast" / "__init__.py").touch()
    for package in MAY_IMPORT:
        if not (root / "holdfast" / package).is_symlink():
            (root / "holdfast" / package).symlink_to(root / package)
    return read_tree(root)


ENGINE = "from .cache import Cache\n__all__ = ['Cache']\nhidden = 1\n"


@pytest.mark.parametrize(
    "files",
    [
        {"memory__db": "import tools"},
        {"memory__db": "from engine import Cache"},
        {"kernels__norm": "import agent.loop"},
        {"kernels__norm": "from memory.db import open"},
        {"tools__files": "from engine import Cache"},
        {"tools__files": "def f():\n    import kernels"},
        {"engine__cache": "from memory import db", "memory": "", "memory__db": ""},
        {"agent__loop": "from kernels import norm"},
        {"agent__loop": "import engine"},
        {"agent__loop": "import engine.cache"},
        {"agent__loop": "from engine.cache import Cache"},
        {"agent__loop": "from engine import cache"},
        {"agent__loop": "from engine import hidden"},
        {"agent__loop": "from engine import *"},
        {"agent_pocket__net": "import kernels"},
    ],
)
def test_an_import_against_the_layers_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    tree = made_up(tmp_path, **{"engine": ENGINE, "engine__cache": "", "engine__page": ""} | files)
    assert len(layer_faults(tree)) == 1


def test_the_imports_of_the_table_are_allowed(tmp_path: Path) -> None:
    tree = made_up(
        tmp_path,
        agent__loop="from engine import Cache\nimport tools.files\nfrom memory import db\n"
        "from . import app\nfrom .app import run",
        agent__app="",
        tools__files="from memory.db import open\nimport sys",
        engine=ENGINE,
        engine__cache="import kernels.norm\nfrom engine.page import Page",
        engine__page="",
        memory="",
        memory__db="",
        kernels__norm="",
    )
    assert [fault for rule in STATIC_RULES for fault in rule(tree)] == []


@pytest.mark.parametrize(
    "files",
    [
        {"engine__a": "from engine import b", "engine__b": "import engine.a"},
        {"engine": "from .a import A", "engine__a": "from engine import B"},
        {
            "engine__a": "from .b import B",
            "engine__b": "from . import c",
            "engine__c": "def f():\n    from .a import A",
        },
        {"agent__a": "from .pocket import net", "agent_pocket__net": "from ..a import A"},
    ],
)
def test_an_import_cycle_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    assert len(cycle_faults(made_up(tmp_path, **files))) == 1


@pytest.mark.parametrize(
    "files",
    [
        {"agent__loop": "import torch.nn.functional as F"},
        {"agent_pocketed__net": "from torch import nn"},
        {"tools__files": "import numpy as np"},
        {"engine__cache": "import triton.language as tl"},
        {"kernels__norm": "from safetensors.torch import load_file"},
        {"engine__cache": "from pydantic import BaseModel"},
        {"memory__db": "from pydantic_core import ErrorDetails"},
        {"agent__loop": "import sqlite_utils"},
        {"agent__loop": "import tree_sitter_python"},
        {"tools__files": "from aiohttp import web"},
        {"agent__loop": "import requests"},
    ],
)
def test_a_package_away_from_home_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    assert len(home_faults(made_up(tmp_path, **files))) == 1


def test_an_import_inside_a_function_is_found_except_in_the_cli(tmp_path: Path) -> None:
    source = "class A:\n    async def f(self):\n        if self:\n            import json\n"
    tree = made_up(tmp_path, agent_cli__main=source, agent__loop=source)
    assert late_faults(tree) == ["agent.loop:4: import json: inside a function"]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("print('hello')", "agent.a at import: prints 'hello"),
        ("import sys\nsys.stderr.write('hello')", "agent.a at import: prints 'hello"),
        ("import os\nos.write(1, b'hello')", "hello"),
        ("open('x', 'w').close()", "agent.a at import: open ('x', 'w'"),
        ("import pathlib\npathlib.Path('x').mkdir()", "agent.a at import: os.mkdir"),
        ("import threading\nthreading.Thread(target=int).start()", "agent.a at import: starts <Thread"),
        ("import subprocess\nsubprocess.run(['true'])", "agent.a at import: subprocess.Popen"),
        ("raise ValueError('broken')", "ValueError: broken"),
    ],
)
def test_work_at_import_is_found(tmp_path: Path, source: str, fault: str) -> None:
    faults = import_faults(made_up(tmp_path, agent="", agent__a=source, agent__b="import json"), third_party=())
    assert any(fault in line for line in faults)
    assert not any("agent.b" in line for line in faults)


def sees_kernels(path: Path) -> bool:
    """Whether transformers, run with `path` in front, takes a package called `kernels` for the one it can use."""
    code = (
        f"import sys; sys.path.insert(0, {str(path)!r});"
        " import transformers.utils as u; print(u.is_kernels_available())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=path)
    return done.stdout.strip() == "True"


def test_transformers_does_not_take_our_kernels_for_the_package_of_that_name(tmp_path: Path) -> None:
    """Its probe reads the version of any distribution with a top-level `kernels`, ours too: 0.18 would be mistaken."""
    assert not sees_kernels(ROOT)
    made_up(tmp_path, kernels="")
    metadata = tmp_path / "kernels-0.18.5.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.5\n")
    assert sees_kernels(tmp_path)
