"""Absurd tool calls on absurd trees: `python -m tests.long.tool_calls --calls 20000 --seed 1`.

After each call: a result came back, on one line if it is an error (a refused edit adds numbered lines of the file), as
text that UTF-8 can hold; nothing outside the workspace, and nothing of our own in it, has changed, nor a path that the
call does not name. After each tree the journal is undone, and every byte is as before. The suite makes some hundreds.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.tools import Context, Tool, ToolChoice, Workspace, run_tool, toolset
from holdfast.tools.workspace.names import from_text
from tests.tools.workspace.memory_journal import Entry, MemoryJournal, tree

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
        workspace.journal = journal = MemoryJournal(workspace)
        tools = toolset(workspace, lambda query, limit: (), ToolChoice(form=rng.choice(["full", "full", "simple"])))
        before, first = outside(place), tree(place / "ws")
        paths = [*PATHS, *(os.path.relpath(path, place / "ws") for path in everything(place / "ws"))]
        for n in range(start, min(start + CALLS_PER_TREE, num_calls)):
            name, arguments = random_call(rng, paths, tools)
            held = tree(place / "ws")
            result = asyncio.run(run_tool(tools, name, arguments, Context(workspace)))
            told = f"seed {seed}, call {n}: {name} {arguments!a} gave {result!a}"
            assert result.output.encode() is not None, told
            assert result.ok or result.output.startswith("error: "), told
            assert result.ok or name == "edit" or "\n" not in result.output, told
            assert "fault of its own" not in result.output and SECRET not in result.output, told
            assert outside(place) == before, told
            check_changes(workspace, held, tree(place / "ws"), told)
            num_ok += result.ok
        journal.undo()
        assert tree(place / "ws") == first, f"seed {seed}, tree {start}: {differences(tree(place / 'ws'), first)!a}"
        workspace.close()
        open_up(place)
        shutil.rmtree(place)
    return num_ok


def check_changes(workspace: Workspace, before: dict[str, Entry], after: dict[str, Entry], told: str) -> None:
    """What a call changed is what it says: below a path of a change, or a directory above one."""
    changes = workspace.take_changes()
    named = [from_text(path) for change in changes for path in (change.path, change.to) if path]
    for path in differences(before, after):
        is_named = any(path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/") for name in named)
        assert is_named, (
            f"{told}: {path!a} changed from {before.get(path)!a:.80} to {after.get(path)!a:.80}, not only {named!a}"
        )


def differences(one: dict[str, Entry], other: dict[str, Entry]) -> list[str]:
    return [path for path in sorted({*one, *other}) if one.get(path) != other.get(path)]


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


def random_call(rng: random.Random, paths: list[str], tools: Mapping[str, Tool]) -> tuple[str, str]:
    texts = [*CONTENTS, *NAMES, "x", "f", "return", ",", "\n", "a" * 10_000]
    lines = [1, 1, 2, 3, 0, 10**9, None, "1"]
    new_paths = [*paths, "new", "new/a/b.txt", "a.py", "b.js/x", ".git/x", "sub/HEAD", "sub/objects/x", "sub/refs/x"]

    def values() -> dict[str, Any]:
        return {
            **{key: rng.choice(new_paths) for key in ("path", "to")},
            **{key: rng.choice(texts) for key in ("old", "new", "text", "name", "query", "content")},
            **{key: rng.choice(lines) for key in ("from_line", "to_line")},
            "start": rng.choice([1, 2, 0, -1, 10**30, "1", 501, 2.5]),
            "end": rng.choice([1, 5, None, 10**9]),
            "column": rng.choice([1, 501, 10**9]),
            "all": rng.choice([True, False, "yes"]),
            "brief": rng.random() < 0.5,
            "limit": rng.choice([1, 60, 61]),
            "recursive": rng.random() < 0.7,
            "edits": [random_edit() for _ in range(rng.randint(0, 3))],
        }

    def random_edit() -> dict[str, Any]:
        names = rng.choice(
            [["old", "new"], ["old", "new", "all"], ["from_line", "new"], ["from_line", "to_line", "new"]]
        )
        return {
            name: {**one, "from_line": rng.choice([1, 2]), "to_line": rng.choice([1, 2, 3])}[name] for name in names
        }

    one = {"old": rng.choice(["x", ",", "\n", "a,b,c\n", "return"]), "new": rng.choice(texts), "all": True}
    given = values()
    name = rng.choice([*tools, "edit", "read", "write", "edit", "move"])
    schema = tools[name].schema()["parameters"] if name in tools else {"properties": {}}
    needed, others = (
        schema.get("required", []),
        [key for key in schema["properties"] if key not in schema.get("required", [])],
    )
    if name == "edit" and "edits" in others:
        chosen = [
            "path",
            *rng.choice([["edits"], ["old", "new"], ["old", "new", "all"], ["from_line", "to_line", "new"], others]),
        ]
    else:
        chosen = [*needed, *rng.sample(others, rng.randint(0, len(others)))]
    arguments = {key: given[key] for key in chosen}
    if rng.random() < 0.1:
        arguments[rng.choice([*given, "\ud800", ""])] = rng.choice(
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
