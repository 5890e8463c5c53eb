"""Source trees for training and evaluation: copies of installed packages' files, and generated repositories.

Held out: the packages in HELD_OUT_PACKAGES, and every word whose checksum falls into the test share. Names made
up for training use no such word; copied training files are whole, and may contain some.
"""

import asyncio
import functools
import json
import random
import re
import shutil
import sysconfig
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from holdfast.tools import Context, ToolChoice, Workspace, run_tool, toolset

HELD_OUT_PACKAGES = ("rich", "networkx", "jinja2", "prompt_toolkit", "yarl", "fsspec", "click", "sqlite_utils")
SKIPPED_PACKAGES = ("pip", "setuptools", "torchgen", "test", "idlelib", "lib2to3", "functorch")
FOLDERS = [
    "src",
    "lib",
    "core",
    "app",
    "agent",
    "engine",
    "memory",
    "tools",
    "api",
    "server",
    "utils",
    "model",
    "web",
    "data",
    "cli",
    "net",
]


@dataclass(frozen=True)
class Symbol:
    path: str
    line: int
    kind: str
    name: str


def _is_test_word(word: str) -> bool:
    return zlib.crc32(word.lower().encode()) % 6 == 0


@functools.cache
def source_files(split: str) -> dict[str, list[Path]]:
    """Package name -> its Python files of a size pocket can handle (400 bytes to 14 kB)."""
    found: dict[str, list[Path]] = {}
    paths = sysconfig.get_paths()
    for base in (Path(paths["stdlib"]), Path(paths["purelib"])):
        for file in sorted(base.rglob("*.py")):
            parts = file.relative_to(base).parts
            if "site-packages" in parts or "tests" in parts or parts[0] in SKIPPED_PACKAGES:
                continue
            package = parts[0].removesuffix(".py") if len(parts) > 1 else "top"
            if (package in HELD_OUT_PACKAGES) == (split == "test") and 400 <= file.stat().st_size <= 14_000:
                found.setdefault(package, []).append(file)
    return {name: files for name, files in found.items() if len(files) >= 8}


@functools.cache
def words(split: str) -> list[str]:
    """Lower-case words of 3 to 9 letters taken from identifiers of installed code."""
    rng = random.Random(7)
    pool: set[str] = set()
    files = [f for fs in source_files("train").values() for f in fs]
    for file in rng.sample(files, min(400, len(files))):
        for identifier in re.findall(r"[A-Za-z_]{4,40}", file.read_text("utf-8", "ignore")):
            pool.update(w.lower() for w in re.findall(r"[A-Z]?[a-z]+", identifier))
    return sorted(w for w in pool if 3 <= len(w) <= 9 and _is_test_word(w) == (split == "test"))


def _made_up(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))
    ) + rng.choice(["", "n", "r", "x", "t", "l", "m"])


def make_name(split: str, rng: random.Random, style: str) -> str:
    """A new identifier: style is "snake", "Camel", "camel" or "UPPER"."""
    pool = words(split)
    parts = [rng.choice(pool) if rng.random() < 0.75 else _made_up(rng) for _ in range(rng.choice([1, 2, 2, 2, 3]))]
    if style == "UPPER":
        return "_".join(parts).upper()
    if style == "snake":
        return ("_" if rng.random() < 0.08 else "") + "_".join(parts)
    camel = "".join(p.capitalize() for p in parts)
    return camel if style == "Camel" else camel[0].lower() + camel[1:]


def _style(name: str) -> str:
    if name.isupper():
        return "UPPER"
    if "_" in name or name.islower():
        return "snake"
    return "Camel" if name[0].isupper() else "camel"


class Repo:
    """A small repository on disk with the agent's real tools on it. Use as a context manager: it is deleted."""

    def __init__(self, split: str, rng: random.Random):
        self.split = split
        self.root = Path(tempfile.mkdtemp(prefix="pocket-")).resolve()
        if rng.random() < 0.45:
            _write_generated(self.root, split, rng)
        else:
            _copy_installed(self.root, split, rng)
        self._workspace = Workspace(self.root)
        self._tools = toolset(self._workspace, lambda query, limit: (), ToolChoice(form="simple"))
        self.paths = sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*.py"))
        self.symbols: list[Symbol] = []
        for path in self.paths:
            output = self.call("outline", {"path": path})
            for line in output.splitlines()[1:]:
                if not line.startswith("(+"):
                    number, kind, name = line.split(" ", 2)
                    self.symbols.append(Symbol(path, int(number), kind, name))

    def __enter__(self) -> "Repo":
        return self

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def call(self, tool: str, arguments: dict[str, object]) -> str:
        """What the tool prints."""
        return asyncio.run(run_tool(self._tools, tool, json.dumps(arguments), Context(self._workspace))).output

    def symbol(self, rng: random.Random) -> Symbol:
        return rng.choice(self.symbols)

    def path(self, rng: random.Random) -> str:
        return rng.choice(self.paths)

    def absent_name(self, rng: random.Random) -> str:
        return make_name(self.split, rng, rng.choice(["snake", "Camel", "camel", "UPPER"]))

    def absent_path(self, rng: random.Random) -> str:
        folder = rng.choice([*FOLDERS, ""])
        return f"{folder}/{make_name(self.split, rng, 'snake')}.py".lstrip("/")

    def fresh_name(self, rng: random.Random, like: str) -> str:
        return str(rng.randint(2, 99999)) if like.isdigit() else make_name(self.split, rng, _style(like))

    def used_name(self, rng: random.Random) -> str:
        if rng.random() < 0.6:
            return self.symbol(rng).name.rsplit(".", 1)[-1]
        return self.word_in(self.path(rng), rng) or self.symbol(rng).name

    def word_in(self, path: str, rng: random.Random) -> str | None:
        """An identifier (now and then a number) that occurs in the file and is worth renaming."""
        text = Path(self.root, path).read_text("utf-8", "ignore")
        pattern = r"\b\d{2,5}\b" if rng.random() < 0.1 else r"\b[A-Za-z_][A-Za-z0-9_]{3,30}\b"
        found = re.findall(pattern, text)
        return rng.choice(found) if found else None

    def lines_of(self, path: str, rng: random.Random) -> tuple[int, int]:
        count = max(1, len(Path(self.root, path).read_text("utf-8", "ignore").splitlines()))
        start = rng.randint(1, count)
        return start, min(count, start + rng.choice([0, 0, 0, 1, 1, 2, 3]))


def _copy_installed(root: Path, split: str, rng: random.Random) -> None:
    packages = source_files(split)
    package = rng.choice(sorted(packages))
    for file in rng.sample(packages[package], min(rng.randint(5, 14), len(packages[package]))):
        folders = file.parent.parts[-rng.randint(0, 2) :] if rng.random() < 0.5 else (rng.choice(FOLDERS),)
        if rng.random() < 0.15 or any(not re.fullmatch(r"[\w.]+", f) for f in folders) or "python3.11" in folders:
            folders = ()
        target = root.joinpath(*folders, file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text("utf-8", "ignore")
        target.write_text(text, "utf-8")


def _write_generated(root: Path, split: str, rng: random.Random) -> None:
    """Modules with classes, functions and constants of random names that call each other."""
    snake = partial(make_name, split, rng, "snake")
    functions = [snake() for _ in range(rng.randint(6, 24))]
    folders = [*rng.sample(FOLDERS, 3), make_name(split, rng, "snake")]
    for _ in range(rng.randint(4, 10)):
        lines = [f"from {rng.choice(folders)} import {rng.choice(functions)}", ""]
        for _ in range(rng.randint(0, 2)):
            lines += [f"{make_name(split, rng, 'UPPER')} = {rng.choice([rng.randint(1, 9999), repr(snake())])}"]
        for _ in range(rng.randint(0, 2)):
            lines += ["", "", f"class {make_name(split, rng, 'Camel')}:"]
            for _ in range(rng.randint(1, 4)):
                lines += _function(
                    snake() if rng.random() < 0.7 else rng.choice(functions), functions, "    ", rng, snake
                )
        for _ in range(rng.randint(1, 4)):
            lines += ["", *_function(rng.choice(functions), functions, "", rng, snake)]
        target = root.joinpath(
            *rng.choice([(), (rng.choice(folders),), tuple(folders[-2:])]), f"{snake().strip('_')}.py"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines) + "\n", "utf-8")


def _function(name: str, functions: list[str], indent: str, rng: random.Random, snake: Callable[[], str]) -> list[str]:
    argument, local = snake(), snake()
    receiver = "self, " if indent else ""
    body = [f"{indent}def {name}({receiver}{argument}):"]
    for _ in range(rng.randint(1, 3)):
        body.append(f"{indent}    {local} = {rng.choice(functions)}({argument}, {rng.randint(0, 500)})")
    return ["", *body, f"{indent}    return {local}"]
