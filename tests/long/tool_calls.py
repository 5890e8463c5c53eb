"""Absurd tool calls on absurd trees: `python -m tests.long.tool_calls --calls 20000 --seed 1`.

After each call: a result came back, on one line if it is an error, as text that UTF-8 can hold; nothing outside the
workspace, and nothing of our own in it, has changed. The suite makes some hundreds.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.tools import Context, Workspace, run_tool, toolset

CALLS_PER_TREE = 100
SECRET = "TOP-SECRET-4711"
NAMES = (
    *(
        "a.py",
        "b.js",
        "A.PY",
        ".git",
        ".gitignore",
        ".ssh",
        "node_modules",
        "résumé.md",
        "re\u0301sume\u0301.md",
        "配置.txt",
        "x.h",
    ),
    *(
        "1\u202fPM.png",
        "a\u00a0b",
        "\u3000",
        "\U0001f468\u200d\U0001f469",
        "\u202etxt.exe",
        "two\nlines",
        "\x1b[31m",
        "back\\slash",
    ),
    *(
        "like\\n",
        "latin\udce9",
        "-rf",
        "~",
        "$HOME",
        " ",
        "...",
        "key.",
        "x" * 255,
        "HEAD",
        "objects",
        "refs",
        "config",
        "c.java",
    ),
)
IGNORES = (
    "!",
    "\\",
    "[z-a]",
    "*",
    "**/",
    "a*a*a*a*b",
    "[[:alpha:]]",
    "/",
    "#",
    "\\!x",
    "caf\udce9",
    "*.py\n!a.py",
    "\0",
    "[",
    "{a,b}",
)
CONTENTS = (
    *(
        "",
        "x = 1\n",
        "def f():\n    return x\n",
        "class A:\n  def f(self): pass\n",
        ",",
        "a,b,c\n" * 500,
        "\n" * 2000,
        "x\r\ny\r\n",
    ),
    *(
        "\ufeffbom\n",
        "読取配置\n",
        "a" * 900,
        "{a:" * 300,
        "(" * 300,
        "A<" * 200,
        "<｜User｜>",
        "\x1b]52;c;x\x07",
        "\u2028x\u2029",
        "\0",
        "\ud83d",
    ),
)
PATHS = (
    *(
        ".",
        "..",
        "/",
        "../out/key",
        "a/../../out/key",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "//etc/passwd",
        "out",
        "~/x",
    ),
    *(
        "link",
        "link/key",
        "loop",
        "pipe",
        "hard",
        "home/token",
        "\0",
        "",
        "a" * 5000,
        "a/" * 500,
        "\\x00",
        "\\udead",
        "\\U00110000",
        "\ud83d",
    ),
)


def fuzz(num_calls: int, seed: int, directory: Path) -> int:
    """Make that many calls in trees below an empty directory; how many succeeded. Raises AssertionError."""
    rng, num_ok = random.Random(seed), 0
    for start in range(0, num_calls, CALLS_PER_TREE):
        place = directory / f"tree-{start}"
        make_place(rng, place)
        workspace = Workspace(place / "ws", own=(place / "ws" / "home",), backups=place / "ws" / "home" / "backups")
        tools = toolset(workspace, lambda query, limit: ())
        before = outside(place)
        paths = [*PATHS, *(os.path.relpath(path, place / "ws") for path in everything(place / "ws"))]
        for n in range(start, min(start + CALLS_PER_TREE, num_calls)):
            name, arguments = random_call(rng, paths)
            result = asyncio.run(run_tool(tools, name, arguments, Context(workspace)))
            told = f"seed {seed}, call {n}: {name} {arguments!a} gave {result!a}"
            assert result.output.encode() is not None, told
            assert result.ok or (result.output.startswith("error: ") and "\n" not in result.output), told
            assert "fault of its own" not in result.output and SECRET not in result.output, told
            assert outside(place) == before, told
            num_ok += result.ok
        workspace.close()
        open_up(place)
        shutil.rmtree(place)
    return num_ok


def make_place(rng: random.Random, place: Path) -> None:
    """A workspace `ws` with odd names, links and modes, our own files in `ws/home`, and somebody's secret beside it."""
    for folder in ("out", "ws", "ws/home"):
        (place / folder).mkdir(parents=True)
    for secret in (place / "out" / "key", place / "ws" / "home" / "token"):
        secret.write_text(f"{SECRET}\n")
    (place / "out" / "notes").write_text("x = 1\n")  # a hard link to it may be read, and not written through
    folders = [place / "ws"]
    for _ in range(rng.randint(2, 25)):
        path = rng.choice(folders) / rng.choice(NAMES)
        with suppress(OSError):  # the name is taken
            if rng.random() < 0.3:
                path.mkdir()
                folders.append(path)
            else:
                path.write_bytes(rng.choice(CONTENTS).encode(errors="replace") * rng.choice([1, 1, 3]))
        if rng.random() < 0.3:
            with suppress(OSError):
                (rng.choice(folders) / ".gitignore").write_bytes(os.fsencode("\n".join(rng.choices(IGNORES, k=3))))
    for name, target in (("link", "../out"), ("loop", "loop"), ("alias", "a.py"), ("mine", "home")):
        with suppress(OSError):
            (place / "ws" / name).symlink_to(target)
    os.mkfifo(place / "ws" / "pipe")
    os.link(place / "out" / "notes", place / "ws" / "hard")
    for path in [p for p in reversed(everything(place / "ws")) if not p.is_relative_to(place / "ws" / "home")]:
        if rng.random() < 0.15 and not path.is_symlink() and path.name != "hard":
            path.chmod(rng.choice([0o000, 0o111, 0o444, 0o4755, 0o222, 0o555]))


def everything(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        found += [Path(folder) / name for name in (*folders, *files)]
    return sorted(found)


def outside(place: Path) -> list[tuple[str, bytes | None, int]]:
    """All that no call may change: names, contents and modes outside the workspace, and our own inside."""
    kept = [*everything(place / "out"), *everything(place / "ws" / "home"), *sorted(place.iterdir())]
    return [(str(p), p.read_bytes() if p.is_file() and os.access(p, os.R_OK) else None, p.stat().st_mode) for p in kept]


def open_up(place: Path) -> None:
    place.chmod(0o700)
    for folder, folders, _ in os.walk(place):
        for name in folders:
            if not (Path(folder) / name).is_symlink():
                (Path(folder) / name).chmod(0o700)


def random_call(rng: random.Random, paths: list[str]) -> tuple[str, str]:
    texts = [*CONTENTS, *NAMES, "x", "f", "return", ",", "\n", "a" * 10_000]
    values: dict[str, Any] = {
        "path": rng.choice(paths),
        "old": rng.choice(texts),
        "new": rng.choice(texts),
        "text": rng.choice(texts),
        "name": rng.choice(texts),
        "query": rng.choice(texts),
        "start": rng.choice([1, 2, 0, -1, 10**30, "1", 501, 2.5]),
        "end": rng.choice([1, 5, None, 10**9]),
        "column": rng.choice([1, 501, 10**9]),
        "all": rng.choice([True, False, "yes"]),
        "brief": rng.random() < 0.5,
        "limit": rng.choice([1, 60, 61]),
    }
    fitting = {
        "read": ["path", "start", "end", "column"],
        "outline": ["path", "limit"],
        "find_symbol": ["name"],
        "recall": ["query"],
        "search": ["text", "path", "brief"],
        "edit": ["path", "old", "new", "all"],
    }
    name = rng.choice([*fitting, "edit", "read"])
    needed = {"read": 1, "outline": 1, "find_symbol": 1, "recall": 1, "search": 1, "edit": 3}[name]
    chosen = fitting[name][: rng.randint(needed, len(fitting[name]))]
    arguments = {key: values[key] for key in chosen}
    if rng.random() < 0.1:
        arguments[rng.choice([*values, "\ud800", ""])] = rng.choice(
            [None, [], {"a": ["\ud83d"]}, 1e400, rng.choice(texts)]
        )
    text = json.dumps(arguments, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.05:
        text = rng.choice([text[:-1], "[" * 10_000, text + "x", "", "null", "\ud83d", text.replace('"', "'")])
    return (name if rng.random() > 0.02 else rng.choice(["rm", "", "\x1b", "\ud83d"])), text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        num_ok = fuzz(args.calls, args.seed, Path(directory).resolve())
    print(
        f"{args.calls:,} calls, {num_ok:,} of them succeeded; no exception, and nothing outside the workspaces changed"
    )


if __name__ == "__main__":
    main()
