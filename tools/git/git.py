"""The tool `git`: status, diff, log, show and blame, a page at a time, and commits of named files.

Must not know how git is kept from running what a repository names (repository). It never pushes and never rewrites.
"""

import shlex
from contextlib import suppress
from typing import Literal

from pydantic import Field

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.git.repository import Lines, Repository
from holdfast.tools.shell.output import readable, visible
from holdfast.tools.shell.shell import Shell
from holdfast.tools.tool import Arguments, Context, Permission, Risk, Tool, unlisted
from holdfast.tools.workspace.names import from_text

MAX_LINES, MAX_CHARS = 400, 24_000  # of one page
NO_PROGRAMS = ("--no-ext-diff", "--no-textconv")
LOG_FORMAT = "--format=%h %ad %an:%d %s"


class GitArguments(Arguments):
    """`revision` is a commit or a range, `paths` files of the workspace. `line` is where an output goes on."""

    action: Literal["status", "diff", "log", "show", "blame", "commit"]
    paths: list[str] = Field(default_factory=list, max_length=200)
    revision: str | None = None
    staged: bool = False
    message: str | None = None
    line: int = unlisted(1)


def git_tool(shell: Shell) -> Tool:
    """`git`, for one session."""

    def permission(args: GitArguments, context: Context) -> Permission:
        paths = _paths(args, shell)
        _check(args)
        if args.action != "commit":
            return Permission(Risk.READ, (shlex.join(["git", *_reading(args, paths)]),))
        assert args.message is not None
        preview = (
            f"commit {len(paths)} file{'s' * (len(paths) > 1)}, and nothing else that is staged:",
            *(f"  {visible(path)}" for path in paths),
            *(f"message: {visible(line)}" for line in args.message.strip().split("\n")),
            "hooks and filters of the repository are not run",
        )
        return Permission(Risk.EXECUTE, (shlex.join(["git", "commit", "-m", args.message, "--", *paths]),), preview)

    async def work(args: GitArguments, context: Context) -> str:
        paths = _paths(args, shell)
        _check(args)
        repository = await Repository.found(shell, context)
        if args.action == "commit":
            return await _commit(repository, args, paths, context)
        if not paths and not repository.is_whole and ":" not in (args.revision or ""):
            paths = ["."]  # what is outside the workspace is not shown
        full = Cancellation()
        lines = Lines(args.line, MAX_LINES, MAX_CHARS, full)
        await repository.run(context, lines, _reading(args, paths), full=full)
        text = readable("\n".join(lines.lines)) or _nothing(args)
        more = f"\n(more; continue with line={args.line + len(lines.lines)})" if lines.has_more else ""
        return text + more

    return Tool(
        "git",
        "The workspace's repository: status, diff (staged=true: of what is staged; revision: against it), log, show"
        " (revision), blame (paths), and commit of the named paths with a message. It never pushes or rewrites.",
        GitArguments,
        "reads the repository, or commits named files; runs none of its hooks",
        permission,
        work,
    )


def _paths(args: GitArguments, shell: Shell) -> list[str]:
    return [from_text(shell.workspace.resolve(path)) for path in args.paths]


def _check(args: GitArguments) -> None:
    """Raises ToolError for what cannot be done."""
    revision = args.revision
    if revision is not None and (not revision.strip() or revision.startswith("-") or not revision.isprintable()):
        raise ToolError(f"revision={revision!a} is none; give a commit, a branch or a range as main..HEAD")
    if args.action == "blame" and len(args.paths) != 1:
        raise ToolError("blame needs paths with one file")
    if args.action != "commit":
        return
    if not args.paths:
        raise ToolError("commit needs paths: the files to commit")
    if args.message is None or not args.message.strip() or "\0" in args.message:
        raise ToolError("commit needs a message")
    if revision is not None or args.staged:
        raise ToolError("commit takes paths and message alone")


def _reading(args: GitArguments, paths: list[str]) -> list[str]:
    revision = [args.revision] if args.revision else []
    where = ["--", *paths] if paths or ":" not in (args.revision or "") else []
    match args.action:
        case "status":
            return ["status", "--short", "--branch", "--ignore-submodules=dirty", *where]
        case "diff":
            return ["diff", *NO_PROGRAMS, *(["--cached"] if args.staged else []), *revision, *where]
        case "log":
            return ["log", *NO_PROGRAMS, "--date=short", LOG_FORMAT, *revision, *where]
        case "show":
            return ["show", *NO_PROGRAMS, "--stat", "--patch", *revision, *where]
    return ["blame", "--no-textconv", "--date=short", *revision, *where]


def _nothing(args: GitArguments) -> str:
    return "(no output)" if args.line == 1 else f"(nothing from line {args.line} on)"


async def _commit(repository: Repository, args: GitArguments, paths: list[str], context: Context) -> str:
    """Commits these files as they are now. What else is staged stays staged; where it fails the index is as before."""
    assert args.message is not None
    for path in paths:
        if repository.shell.workspace.is_dir(path):
            raise ToolError(f"{path} is a directory; name the files to commit")
    await _check_filters(repository, paths, context)
    with_author = await repository.ask(context, "var", "GIT_AUTHOR_IDENT", may_fail=True)
    if "<" not in with_author or with_author.startswith(("fatal", "error")) or "tell me who you are" in with_author:
        raise ToolError("git knows no author here: the user must set user.name and user.email with git config --global")
    tracked = await repository.ask(context, "ls-files", "-z", "--", *paths)
    new = [path for path in paths if path not in tracked.split("\0")]
    if new:
        await repository.ask(context, "add", "--intent-to-add", "--", *new)
    try:
        options = ("--only", "--quiet", "--no-verify", "--no-gpg-sign", "--cleanup=whitespace")
        await repository.ask(context, "commit", *options, "-m", args.message, "--", *paths)
    except ToolError:
        if new:
            with suppress(ToolError):
                await repository.ask(Context(context.workspace), "rm", "--cached", "--quiet", "--", *new)
        raise
    said = await repository.ask(context, "show", *NO_PROGRAMS, "--stat", "--format=committed %h on%d: %s", "HEAD")
    return f"{readable(said)}\n(hooks of the repository were not run)"


async def _check_filters(repository: Repository, paths: list[str], context: Context) -> None:
    """A file that a filter changes (as git-lfs does) would be committed raw: its filter is not run. Raises ToolError."""
    said = (await repository.ask(context, "check-attr", "-z", "filter", "--", *paths)).split("\0")
    for path, value in zip(said[::3], said[2::3], strict=False):
        if any(name.startswith(f"filter.{value}.") for name in repository.filters):
            raise ToolError(f"{path} passes through the filter {value}, which is not run here: the user must commit it")
