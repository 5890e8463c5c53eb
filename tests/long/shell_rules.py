"""`python -m tests.long.shell_rules [LINES] [SEED]`: random lines, what rules say of them, and real shells.

Every line that a rule allows is run by bash and by sh in a directory of its own, where each program is a stub that
notes how it was called. Then exactly one stub was called, with words that the rule has, and nothing else was made,
changed or printed to. Lines grow from plain commands by changes that shells give a meaning to, so that many are one
character away from two commands.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from holdfast.agent.permissions.command_line import STAR, allows, simple_command

PROGRAMS = ("pytest", "git", "make", "rm", "curl", "ls", "x")
PATTERNS = ("pytest *", "git diff *", "make test", "* x", "ls a *", "*")
PLAIN = (
    "pytest",
    "git",
    "diff",
    "make",
    "test",
    "ls",
    "a",
    "x",
    "-q",
    "--all",
    "a.py",
    "HEAD~1",
    "k=v",
    "'a b'",
    '"c d"',
    "d/*.py",
)
JOINTS = (
    *(
        "; ",
        ";",
        " && ",
        "&&",
        " || ",
        " | ",
        "|",
        " & ",
        "&",
        "\n",
        "\r",
        "\t",
        " ",
        "",
        "\x0b",
        "\u00a0",
        "\u2003",
        "\u200b",
        "\\\n",
    ),
    *(
        "$(",
        "${",
        "$[",
        "$((",
        "`",
        "<(",
        ">(",
        ")",
        "}",
        "]",
        "(",
        "{ ",
        "; }",
        "'",
        '"',
        "\\",
        "$'",
        '$"',
        "!",
        "#",
        " #",
        "~",
        "^",
    ),
    *(
        ">",
        ">>",
        "2>&1",
        "<",
        "<<",
        "<<<",
        "&>",
        ">|",
        "*",
        "?",
        "[a]",
        "{a,b}",
        "=",
        "A=b ",
        "A+=b ",
        "a[0]=",
        ":",
        "-",
        "--",
        "@(x)",
    ),
    *(
        " eval ",
        " exec ",
        " env ",
        "command ",
        "builtin ",
        "time ",
        "! ",
        "if ",
        "then ",
        ". ",
        "test ",
        "printf ",
        "cd ",
        "sh -c ",
    ),
    *(
        "function f { ",
        "x() { ",
        "coproc ",
        "trap ",
        "alias ",
        "export ",
        "let ",
        "unset ",
        "declare ",
        "set -- ",
        "$IFS",
        "${IFS}",
        "$x",
    ),
)
STUB = """#!/bin/sh
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } >> "$CALLS"
"""


def line_of(chance: random.Random) -> str:
    """A command that a rule may allow, with some changes that a shell may read in another way."""
    begin = chance.choice(
        [["pytest"], ["git", "diff"], ["make", "test"], ["ls", "a"], ["curl"], chance.choices(PLAIN, k=2)]
    )
    line = " ".join([*begin, *chance.choices(PLAIN, k=chance.randrange(4))])
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.choice((0, len(line), line.find(" "), chance.randrange(len(line) + 1)))
        added = chance.choice(JOINTS) + chance.choice(("", "", chance.choice(PROGRAMS), f"{chance.choice(PROGRAMS)} x"))
        line = line[:at] + added + line[at:]
    return line


class Shells:
    """A directory where programs are stubs, and shells that run lines in it."""

    def __init__(self, directory: Path):
        self.calls, self.place, programs = directory / "calls", directory / "place", directory / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            (programs / name).write_text(STUB)
            (programs / name).chmod(0o755)
        self._env = {
            "PATH": str(programs),
            "CALLS": str(self.calls),
            "HOME": str(directory / "place"),
            "LC_ALL": "C.UTF-8",
        }

    def run(self, shell: str, line: str) -> tuple[list[list[str]], bool]:
        """The calls that a line makes, and whether it left anything else behind."""
        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "d").mkdir(parents=True)
        for name in ("d/m.py", "d/-n.py", "-q.py"):
            (self.place / name).write_text("")
        before = self._state()
        self.calls.write_bytes(b"")
        done = subprocess.run(
            [shell, "-c", line],
            cwd=self.place,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
        )
        words = self.calls.read_bytes().decode(errors="surrogateescape").split("\0")
        calls: list[list[str]] = [[]]
        for word in words[:-1]:
            calls.append([]) if word == "\n" else calls[-1].append(word)
        return calls[:-1], self._state() != before or bool(done.stdout)

    def _state(self) -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_size) for path in self.place.rglob("*"))


def fits(pattern: str, call: list[str]) -> bool:
    """Whether the words of a call are those of a pattern."""
    wanted = [word.text for word in simple_command(pattern) or ()]
    if wanted[-1] == STAR:
        wanted, call = wanted[:-1], call[: len(wanted) - 1]
    return len(wanted) == len(call) and all(rule in (STAR, word) for rule, word in zip(wanted, call, strict=True))


def check(num_lines: int, seed: int, num_others: int = 0) -> Counter[str]:
    """Try this many lines, and run up to `num_others` of those that no rule allows, too: what was counted."""
    chance, counts = random.Random(seed), Counter[str]()
    shells = [shell for shell in ("bash", "sh", "zsh") if shutil.which(shell)]
    with tempfile.TemporaryDirectory() as directory:
        place = Shells(Path(directory))
        for _ in range(num_lines):
            line = line_of(chance)
            patterns = [pattern for pattern in PATTERNS if allows(pattern, line)]
            counts["lines"] += 1
            counts["allowed"] += bool(patterns)
            is_other = not patterns and "\0" not in line and counts["others run"] < num_others
            counts["others run"] += is_other
            for shell in shells if patterns or is_other else ():
                calls, has_more = place.run(os.fspath(shutil.which(shell) or shell), line)
                counts["several commands"] += len(calls) > 1
                if patterns:
                    is_there = line.split()[0] in PROGRAMS
                    assert len(calls) == is_there and not has_more, (shell, line, calls)
                    assert all(fits(pattern, call) for pattern in patterns for call in calls), (shell, line, calls)
    return counts


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    num_lines, seed = [*numbers, 20_000, 1][:2] if len(numbers) != 1 else (numbers[0], 1)
    print(check(num_lines, seed, num_lines // 20))
