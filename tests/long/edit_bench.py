"""Edits as a model asks for them, on real source: `python -m tests.long.edit_bench --edits 600 --seed 1`.

Each mutation of a file is asked for in one of the forms that the tools take, the model having read the file as far as
the form needs it. A well-formed request must make exactly the mutation at the first attempt. A request whose file
changed meanwhile, whose text is there twice or not at all, or whose lines were not read, must be refused and change
nothing. The suite makes some tens.
"""

import argparse
import asyncio
import json
import random
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.tools import Context, Result, Workspace, run_tool, toolset
from holdfast.tools.matching import Matches

REPOSITORY = Path(__file__).parents[2]
SUFFIXES = {
    "py": ".py",
    "js": ".js",
    "c": ".h",
    "cpp": ".hpp",
    "css": ".css",
    "md": ".md",
    "html": ".html",
    "pyi": ".pyi",
}
FORMS = ("exact", "lines", "insert", "all", "several", "write")
WRONG = ("stale exact", "stale lines", "stale write", "ambiguous", "not found", "never read", "several with one wrong")
NEW_LINES = ("x = 1", "    return None", "// done", "", "\tvalue: 'a',", "  é = “ü”  # ｜ <b>", "}")


class Bench:
    """Edits of copies of real files, each in a workspace of one file."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng, self.directory = random.Random(seed), directory
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def one(self, source: str, suffix: str) -> None:
        """One well-formed request, and one that must be refused."""
        for kind in (self.rng.choice(FORMS), self.rng.choice(WRONG)):
            self.file = self.directory / f"file{suffix}"
            self.file.write_bytes(source.encode())
            self.workspace = Workspace(self.directory)
            self.tools = toolset(self.workspace, lambda query, limit: ())
            if kind in FORMS:
                self._well_formed(kind, source)
            else:
                self._wrong(kind, source)
            self.workspace.close()

    def call(self, name: str, **arguments: Any) -> Result:
        text = json.dumps({"path": self.file.name, **arguments})
        return asyncio.run(run_tool(self.tools, name, text, Context(self.workspace)))

    def read(self, first: int, last: int) -> None:
        assert self.call("read", from_line=first, to_line=last).ok

    def _well_formed(self, kind: str, source: str) -> None:
        wanted, name, arguments = self._request(kind, source)
        result = self.call(name, **arguments)
        after = self.file.read_bytes().decode()
        self.counts["well-formed"] += 1
        if not result.ok:
            assert after == source, (kind, arguments, result)
            self.failures.append(f"{kind}: {result.output[:200]}")
        elif after != wanted:
            self.counts["wrong place"] += 1
            self.failures.append(f"WRONG PLACE {kind}: {arguments!a:.300}")
        else:
            self.counts["applied"] += 1

    def _request(self, kind: str, source: str) -> tuple[str, str, dict[str, Any]]:
        """What the file is to become, and the call that asks for it."""
        lines = source.splitlines(keepends=True)
        first = self.rng.randint(1, len(lines))
        last = min(len(lines), first + self.rng.choice([0, 0, 1, 4]))
        new = self._new(lines)
        if kind == "write":
            self.read(1, len(lines))
            text = "".join([*lines[: first - 1], *new, *lines[last:]])
            return text, "write", {"content": text}
        if kind == "lines":
            self.read(max(1, first - 3), min(len(lines), last + 3))
            text = "".join([*lines[: first - 1], *new, *lines[last:]])
            return text, "edit", {"from_line": first, "to_line": last, "new": "".join(new)}
        if kind == "insert":
            self.read(max(1, first - 3), min(len(lines), first + 3))
            text = "".join([*lines[: first - 1], *new, *lines[first - 1 :]])
            return text, "edit", {"from_line": first, "to_line": first - 1, "new": "".join(new)}
        if kind == "all":
            word = self.rng.choice([word for line in lines for word in line.split() if word.isidentifier()] or ["x"])
            return (
                Matches(word, source).replaced("renamed_4711"),
                "edit",
                {"old": word, "new": "renamed_4711", "all": True},
            )
        old, at = self._unique(source, lines)
        text = source[:at] + "".join(new) + source[at + len(old) :]
        edits: list[dict[str, Any]] = [{"old": old, "new": "".join(new)}]
        if kind == "exact":
            return text, "edit", edits[0]
        end_line = source.count("\n", 0, at + len(old)) + 2  # the line after those, if there is one
        if end_line <= len(lines):
            self.read(end_line, end_line)
            edits.append({"from_line": end_line, "new": "changed\n"})
            tail = source[at + len(old) :].splitlines(keepends=True)
            skipped = end_line - (source.count("\n", 0, at + len(old)) + 1)
            rest = "".join([*tail[:skipped], "changed\n", *tail[skipped + 1 :]])
            text = source[:at] + "".join(new) + rest
        self.rng.shuffle(edits)
        return text, "edit", {"edits": edits}

    def _new(self, lines: list[str]) -> list[str]:
        made = [f"{line}\n" for line in self.rng.choices(NEW_LINES, k=self.rng.randint(1, 4))]
        return [
            *made,
            "// unlike anything before 4711\n",
            *([self.rng.choice(lines)] if self.rng.random() < 0.3 else []),
        ]

    def _unique(self, source: str, lines: list[str]) -> tuple[str, int]:
        """Whole lines that are in the file once, as few as it takes from a random place on, and where they are."""
        first = self.rng.randrange(len(lines))
        for last in range(first + 1, len(lines) + 1):
            old = "".join(lines[first:last])
            if old.strip() and Matches(old, source).count() == 1:
                return old, source.index(old)
        return source, 0

    def _wrong(self, kind: str, source: str) -> None:
        """A request that must be refused."""
        lines = source.splitlines(keepends=True)
        old, _ = self._unique(source, lines)
        first = self.rng.randint(1, len(lines))
        new = "".join(self._new(lines))
        name = "edit"
        arguments: dict[str, Any] = {"old": old, "new": new}
        if kind.startswith("stale"):
            self.read(1, len(lines))
            self._change(lines, first, is_moving=kind == "stale lines")
            if kind == "stale lines":
                later = self.rng.randint(first, len(lines))
                arguments = {"from_line": later, "new": new}
            elif kind == "stale write":
                name, arguments = "write", {"content": new}
        elif kind == "ambiguous":
            self.file.write_bytes((source + "\nx4711 y\nx4711 y\n").encode())
            arguments = {"old": self.rng.choice(["x4711", "x4711 y\n", "y"]), "new": new}
            if arguments["old"] == "y":
                arguments["old"] = "4711 y"
        elif kind == "not found":
            arguments = {"old": self.rng.choice([f"{old}4711", f"4711{old}", old.swapcase() + "4711"]), "new": new}
        elif kind == "never read":
            arguments = {"from_line": first, "new": new}
        else:
            arguments = {"edits": [arguments, {"old": "not there 4711 ", "new": ""}]}
        before = self.file.read_bytes()
        result = self.call(name, **arguments)
        self.counts["wrong"] += 1
        if result.ok or self.file.read_bytes() != before:
            self.counts["wrong accepted"] += 1
            self.failures.append(f"ACCEPTED {kind}: {arguments!a:.300} gave {result.output:.200}")

    def _change(self, lines: list[str], first: int, is_moving: bool) -> None:
        """Somebody else changes the file: lines come, go or change from line `first` on."""
        how = self.rng.choice(["insert", "delete"] if is_moving else ["insert", "delete", "change"])
        changed = {
            "insert": [*lines[: first - 1], "somebody 4711\n", *lines[first - 1 :]],
            "delete": [*lines[: first - 1], *lines[first:]],
            "change": [*lines[: first - 1], "somebody 4711\n", *lines[first:]],
        }[how]
        self.file.write_bytes("".join(changed).encode())


def sources(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Language, suffix and text of real files: of this repository and of the packages that it is installed with."""
    roots = [
        REPOSITORY / "agent",
        REPOSITORY / "tools",
        Path(sysconfig.get_paths()["purelib"]),
        Path(sysconfig.get_paths()["stdlib"]),
    ]
    found: dict[str, list[Path]] = {language: [] for language in SUFFIXES}
    for root in roots:
        for language, suffix in SUFFIXES.items():
            found[language] += [path for path, _ in zip(root.rglob(f"*{suffix}"), range(200), strict=False)]
    languages = [language for language in found if found[language]]
    while True:
        language = rng.choice(languages)
        text = readable(rng.choice(found[language]))
        if text is not None:
            yield language, SUFFIXES[language], text


def readable(path: Path) -> str | None:
    """A file of some lines that a tool can read whole; its lines end with LF, the last one too."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
    lines = text.splitlines(keepends=True)
    is_plain = all(line.endswith("\n") and line.count("\n") == 1 and len(line) <= 400 for line in lines)
    return (
        text
        if 5 <= len(lines) <= 900 and is_plain and len(text) < 50_000 and not {"\0", "\r", "\ufeff"} & set(text)
        else None
    )


def bench(num_edits: int, seed: int, directory: Path) -> tuple[Bench, Counter[str]]:
    made, languages = Bench(seed, directory), Counter[str]()
    for _, (language, suffix, text) in zip(range(num_edits), sources(made.rng), strict=False):
        made.one(text, suffix)
        languages[language] += 1
    return made, languages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        made, languages = bench(args.edits, args.seed, Path(directory).resolve())
    counts = made.counts
    print(f"{counts['applied']} of {counts['well-formed']} well-formed requests applied at the first attempt")
    print(
        f"{counts['wrong place']} in a wrong place; {counts['wrong accepted']} of {counts['wrong']} wrong ones accepted"
    )
    print(f"files: {dict(languages)}")
    print(*made.failures[:20], sep="\n")


if __name__ == "__main__":
    main()
