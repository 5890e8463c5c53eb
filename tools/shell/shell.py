"""The tool `shell`, and what the commands of a session share: the sandbox, the directory they are in, outputs and jobs.

Must not know who allowed a command, nor how a sandbox holds it.
"""

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import Field

from holdfast.tools.errors import ToolError
from holdfast.tools.programs import program
from holdfast.tools.sandbox.choose import Kind, Sandbox, choose
from holdfast.tools.sandbox.confinement import Confinement
from holdfast.tools.sandbox.process import SandboxError
from holdfast.tools.shell.command import Ending, Place, run
from holdfast.tools.shell.jobs import Jobs
from holdfast.tools.shell.output import Output, Outputs, shown, visible
from holdfast.tools.threads import off_loop
from holdfast.tools.tool import Arguments, CommandEnd, Context, Permission, Result, Risk, Tool
from holdfast.tools.workspace.workspace import Workspace

DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S = 120, 600
MAX_COMMAND_BYTES = 100_000  # Linux takes 128 KiB in one argument
MAX_NAME_BYTES = 4096
FIRST_LOOK_S = 1.0  # at a job: what fails at once is told at once
# What the shell does before and after the command: it leaves behind where it ended. The variable is not exported.
SCRIPT = "holdfast_left=$TMPDIR/{name}; trap 'pwd -P >|\"$holdfast_left\" 2>/dev/null' EXIT\neval {command}"


class ShellArguments(Arguments):
    """`directory` is relative to the workspace and holds for this command alone."""

    command: str
    timeout_s: int = Field(default=DEFAULT_TIMEOUT_S, ge=1, le=MAX_TIMEOUT_S)
    directory: str | None = None
    background: bool = False


class Shell:
    """What the commands of one session share. No command runs before `open` and after `aclose`."""

    def __init__(self, workspace: Workspace, outputs: Path) -> None:
        """`outputs` is where long outputs are kept; it is made when one is."""
        self.workspace, self.outputs = workspace, Outputs(outputs)
        workspace.kept_output = self.outputs.read  # so that `read` opens them
        self.jobs = Jobs()
        self.bash = program("bash", workspace.root)
        self._sandbox: Sandbox | None = None
        self._confinement: Confinement | None = None
        self._why_none = "the session is not open"
        self._directory = "."
        self._num_run = 0

    async def open(self, hidden: Iterable[Path] = (), denied: Iterable[Path] = (), kind: Kind = "auto") -> None:
        """Choose a sandbox. No command sees what is `hidden`, nor what is `denied` where the sandbox can hold that.

        Where there is none that works, every command is refused and told why.
        """
        tmp = Path(await off_loop(partial(tempfile.mkdtemp, prefix="holdfast-")))
        hidden, denied = tuple(hidden), tuple(denied)
        for unseen in {
            hidden + denied: None,
            hidden: None,
        }:  # Landlock hides nothing of a workspace, and is better than none
            self._confinement = Confinement(self.workspace.root, tmp, unseen)
            try:
                self._sandbox = await choose(kind, self._confinement)
            except SandboxError as e:
                self._why_none = str(e)
            if self._sandbox is not None and self._sandbox.name != "none":
                return

    @property
    def sandbox(self) -> Sandbox:
        """Raises ToolError where no command can run."""
        if self._sandbox is None:
            raise ToolError(f"no command can run here: {self._why_none}")
        return self._sandbox

    @property
    def confinement(self) -> Confinement:
        """As `sandbox`."""
        if self._confinement is None:
            raise ToolError(f"no command can run here: {self._why_none}")
        return self._confinement

    @property
    def directory(self) -> str:
        """Where the next command runs, relative to the workspace: the root when that directory is gone."""
        return self._directory if self._is_inside(self._directory) else "."

    def place(self, directory: str | None) -> Place:
        """Raises ToolError for a directory that is not one of the workspace."""
        chosen = self.directory if directory is None else self.workspace.resolve(directory)
        if not self.workspace.is_dir(chosen):
            raise ToolError(f"{chosen} is not a directory of the workspace")
        return Place(self.sandbox, self.confinement, self.workspace.root / chosen)

    def script(self, command: str) -> tuple[list[str], Path]:
        """What runs a command, and the file that tells where it ended."""
        self._num_run += 1
        name = f".directory-{self._num_run}"
        script = SCRIPT.format(name=name, command=shlex.quote(command))
        return [*self.interpreter, "-c", script], self.confinement.tmp / name

    @property
    def interpreter(self) -> list[str]:
        return [self.bash, "--noprofile", "--norc"] if self.bash else ["/bin/sh"]

    def move(self, left: Path) -> str:
        """Take the directory in which a command ended for the next one; what there is to say of it."""
        ended = _told(left)
        if ended is None:  # `exec` leaves nothing behind
            return ""
        if not ended:
            return "the directory in which it ended is gone; the next command runs in the workspace's root"
        try:
            inside = str(Path(ended).relative_to(self.workspace.root))
        except ValueError:
            return f"it ended in {ended}, outside the workspace; the next command runs in {self.directory}"
        if not self._is_inside(inside):
            return ""
        has_moved, self._directory = inside != self._directory, inside
        return f"the next command runs in {inside}" if has_moved else ""

    async def aclose(self) -> None:
        """End every job, and remove temporary files. Kept outputs stay with the session."""
        await self.jobs.aclose()
        self._sandbox, self._why_none = None, "the session is closed"
        if self._confinement is not None:
            await off_loop(partial(shutil.rmtree, self._confinement.tmp, ignore_errors=True))

    def _is_inside(self, directory: str) -> bool:
        try:
            return self.workspace.is_dir(self.workspace.resolve(directory))
        except ToolError:
            return False


def shell_tool(shell: Shell) -> Tool:
    """`shell`, for one session."""

    def permission(args: ShellArguments, context: Context) -> Permission:
        _check(args.command)
        place = shell.place(args.directory)
        how_long = "runs in the background until it ends" if args.background else f"ends after {args.timeout_s} s"
        preview = (
            *(f"$ {visible(line)}" for line in args.command.split("\n")),
            f"in {visible(str(place.directory))}",
            f"sandbox: {shell.sandbox.level}",
            how_long,
        )
        return Permission(Risk.EXECUTE, (args.command,), preview)

    async def work(args: ShellArguments, context: Context) -> Result:
        _check(args.command)
        if args.background:
            return await _start_job(shell, args, context)
        place = shell.place(args.directory)
        argv, left = shell.script(args.command)
        output = Output(shell.outputs)
        ending = await run(argv, place, output, context, args.timeout_s)
        moved = shell.move(left) if args.directory is None and ending.exit_status is not None else ""
        with suppress(OSError):
            left.unlink()
        hint = "; background=true starts a job that goes on" if ending.words.startswith("timed out") else ""
        head = "; ".join(filter(None, (f"{ending.words} after {ending.seconds:.1f} s{hint}", *ending.notes, moved)))
        return told(context, args.command, ending, head, output)

    name = "bash" if shell.bash else "/bin/sh"
    return Tool(
        "shell",
        f"Run a command with {name} in the workspace; shows exit status and output, the middle of a long one left out."
        " cd lasts for later commands; variables do not, and nothing that it started outlives it."
        " background=true starts a job that goes on: see the tool jobs. No command can ask for input.",
        ShellArguments,
        "runs a command in the sandbox: it can do there all that a program can",
        permission,
        work,
    )


async def _start_job(shell: Shell, args: ShellArguments, context: Context) -> Result:
    place = shell.place(args.directory)
    argv, _ = shell.script(args.command)
    job = shell.jobs.start(args.command, argv, place, Output(shell.outputs), context)
    await job.wait(FIRST_LOOK_S, context.cancelled)
    return Result(job.told(context), job.ok, CommandEnd(args.command, job.exit_status, round(job.seconds, 3)))


def told(context: Context, command: str, ending: Ending, head: str, output: Output) -> Result:
    """The result of a command: how it ended, then what it put out, as much of it as the model is shown."""
    result = context.result(f"{head}\n{shown(output.parts, output.name, context)}", ok=ending.exit_status == 0)
    return Result(result.output, result.ok, CommandEnd(command, ending.exit_status, round(ending.seconds, 3)))


def _check(command: str) -> None:
    """Raises ToolError for what no shell can run."""
    if not command.strip():
        raise ToolError("command is empty; give a command line")
    if "\0" in command:
        raise ToolError("command has a NUL character, which no command line can hold")
    if len(shlex.quote(command).encode()) > MAX_COMMAND_BYTES:
        raise ToolError(f"command is too long ({len(command)} characters); write it into a file and run that")


def _told(left: Path) -> str | None:
    """What the shell wrote there, nothing for a directory that was gone. The command could put anything in its place: a link or a
    pipe is not followed."""
    try:
        fd = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        name = os.read(fd, MAX_NAME_BYTES + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    text = name.removesuffix(b"\n").decode(errors="replace")
    return text if text.isprintable() and len(name) <= MAX_NAME_BYTES else None
