"""Runs git so that a hostile repository runs nothing and leads nowhere: its hooks, filters, drivers and helpers are off.

Owns the configuration and environment of every git process, and which repository is the workspace's. Must not know what git is asked.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.programs import program
from holdfast.tools.shell.command import Place, run
from holdfast.tools.shell.output import readable
from holdfast.tools.shell.shell import Shell
from holdfast.tools.threads import off_loop
from holdfast.tools.tool import Context, unheard

TIMEOUT_S = 60
MAX_ANSWER_CHARS = 2**20  # of what we read ourselves
MAX_FILTERS = 200
# A setting that names a program is a way to run one. What git is asked brings its own `--no-ext-diff` and `--no-textconv`.
SETTINGS = {
    "core.hooksPath": "/dev/null", "core.fsmonitor": "false", "core.pager": "cat", "core.editor": "false",
    "sequence.editor": "false", "core.sshCommand": "false", "core.askPass": "false", "core.gitProxy": "false",
    "core.alternateRefsCommand": "false", "credential.helper": "", "gpg.program": "false", "gpg.ssh.program": "false",
    "gpg.x509.program": "false", "commit.gpgSign": "false", "log.showSignature": "false", "interactive.diffFilter": "cat",
    "gc.auto": "0", "maintenance.auto": "false", "protocol.allow": "never", "submodule.recurse": "false",
    "diff.ignoreSubmodules": "dirty", "status.submoduleSummary": "false", "diff.submodule": "short",
    "core.quotePath": "false", "color.ui": "false", "safe.directory": "*", "user.useConfigOnly": "true",
}  # fmt: skip
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1", "GIT_PAGER": "cat", "GIT_EDITOR": "false", "GIT_ASKPASS": "false",
    "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "C.UTF-8",
}  # fmt: skip
FILTERS = r"^filter\..*\.(clean|smudge|process|required)$"


class Lines:
    """Lines from one number on, as many as are shown; told to end as soon as there are more."""

    def __init__(self, first: int, max_lines: int, max_chars: int, full: Cancellation) -> None:
        self.num_bytes = 0
        self.lines: list[str] = []
        self.has_more = False
        self._first, self._max_lines, self._room, self._full = first, max_lines, max_chars, full
        self._number, self._rest = 0, ""

    def add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > 2 * self._room:  # a line without end
            self._rest = self._rest[: self._room]

    def close(self) -> None:
        if self._rest:
            self._take(self._rest)

    def _take(self, line: str) -> None:
        self._number += 1
        if self.has_more or self._number < self._first:
            return
        if len(self.lines) >= self._max_lines or (self.lines and len(line) > self._room):
            self.has_more = True
            self._full.set()
            return
        self.lines.append(line[: self._room])
        self._room -= len(self.lines[-1])


@dataclass(frozen=True)
class Repository:
    """The workspace's. Made by `found`."""

    shell: Shell
    git: str
    place: Place
    filters: tuple[str, ...]
    is_whole: bool  # the workspace is all of it

    @classmethod
    async def found(cls, shell: Shell, context: Context) -> "Repository":
        """Raises ToolError where there is none, or the workspace's `.git` leads to one that does not know the workspace."""
        git = program("git", shell.workspace.root)
        if git is None:
            raise ToolError("git is not installed here")
        bare = cls(shell, git, shell.place("."), (), True)
        answer = await bare.ask(context, "rev-parse", "--show-toplevel", "--absolute-git-dir", "--git-common-dir")
        top, git_dir, common = (Path(line) for line in answer.splitlines()[:3])
        root = shell.workspace.root
        common = (root / common).resolve()
        if not root.is_relative_to(top):
            raise ToolError(f"the repository's work tree is {readable(str(top))}, not the workspace")
        if not await off_loop(partial(_belongs, root, top, git_dir, common)):
            raise ToolError(f".git leads to {readable(str(git_dir))}, a repository of another directory")
        outside = tuple(path for path in (git_dir, common) if not path.is_relative_to(root))
        confinement = replace(shell.confinement, writable=(*shell.confinement.writable, *outside))
        names = await bare.ask(context, "config", "--null", "--name-only", "--get-regexp", FILTERS, may_fail=True)
        filters = tuple(dict.fromkeys(name for name in names.split("\0") if name))
        if len(filters) > MAX_FILTERS:
            raise ToolError(f"the repository configures {len(filters)} filters, more than {MAX_FILTERS}")
        return cls(shell, git, replace(bare.place, confinement=confinement), filters, top == root)

    async def ask(self, context: Context, *arguments: str, may_fail: bool = False) -> str:
        """What git answers. Raises ToolError with its first line where it fails."""
        lines = Lines(1, MAX_ANSWER_CHARS, MAX_ANSWER_CHARS, Cancellation())
        await self.run(context, lines, arguments, may_fail)
        return "\n".join(lines.lines)

    async def run(
        self,
        context: Context,
        lines: Lines,
        arguments: Sequence[str],
        may_fail: bool = False,
        full: Cancellation | None = None,
    ) -> None:
        """Run git, its output into `lines`. It is ended when `full` is set. Raises ToolError where it fails."""
        ours = full or Cancellation()
        quiet = replace(context, emit=unheard, cancelled=_Either(context.cancelled, ours))
        argv = [*self._environment(arguments[0] == "commit"), self.git, "--no-pager", *arguments]
        ending = await run(argv, self.place, lines, quiet, TIMEOUT_S)
        context.cancelled.check()
        if ending.exit_status == 0 or may_fail or ours.is_set:
            return
        said = [readable(line) for line in lines.lines if line.startswith(("fatal: ", "error: "))] or lines.lines[:1]
        raise ToolError(f"git {arguments[0]}: {re.sub('^(fatal|error): ', '', said[0]) if said else ending.words}")

    def _environment(self, writes: bool) -> list[str]:
        settings = {**SETTINGS, **{name: "false" if name.endswith(".required") else "" for name in self.filters}}
        values = {**ENVIRONMENT, "GIT_CONFIG_COUNT": str(len(settings))} | (
            {} if writes else {"GIT_OPTIONAL_LOCKS": "0"}
        )
        for number, (name, value) in enumerate(settings.items()):
            values |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        return [program("env", self.shell.workspace.root) or "/usr/bin/env", *(f"{k}={v}" for k, v in values.items())]


class _Either(Cancellation):
    """Set once one of two is."""

    def __init__(self, one: Cancellation, other: Cancellation) -> None:
        super().__init__()
        self._both = (one, other)

    @property
    def is_set(self) -> bool:
        return any(cancellation.is_set for cancellation in self._both)


def _belongs(root: Path, top: Path, git_dir: Path, common: Path) -> bool:
    """Whether this repository is that of the work tree: a `.git` that only points at another's must not open it."""
    if (top / ".git").is_symlink():
        return False
    if git_dir.is_relative_to(root) or (git_dir == top / ".git" and git_dir.is_dir()):
        return common == git_dir or common.is_relative_to(root)
    if common not in (git_dir, *git_dir.parents):  # `commondir` may name any repository
        return False
    try:
        back = (git_dir / "gitdir").read_text()  # of a linked work tree
        return Path(back.strip()).resolve() == (top / ".git").resolve()
    except OSError:
        pass
    try:
        settings = (git_dir / "config").read_text()  # of a submodule
    except OSError:
        return False
    named = re.search(r"^\s*worktree\s*=\s*(.+?)\s*$", settings, re.MULTILINE)
    return named is not None and (git_dir / named[1]).resolve() == top
