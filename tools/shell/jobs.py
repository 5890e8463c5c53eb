"""Jobs: commands that go on while the model does other things, and the tool `jobs` that shows and ends them.

Owns which there are. They live no longer than the session is open in this process. Must not know how a command is run.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.shell.command import Ending, Place, run
from holdfast.tools.shell.output import Output, shown
from holdfast.tools.tool import Arguments, Context, Tool, reads

MAX_RUNNING = 8
MAX_KEPT = 32  # the oldest of those that have ended are forgotten
MAX_COMMAND_CHARS = 60  # in a list
CHECK_S = 0.1


class JobsArguments(Arguments):
    """`timeout_s` bounds `wait`."""

    action: Literal["list", "read", "wait", "kill"] = "list"
    id: int | None = Field(default=None, ge=1)
    timeout_s: int = Field(default=60, ge=1, le=600)


class Job:
    """One command in the background. Made by `Jobs.start`."""

    def __init__(self, id_: int, command: str, output: Output) -> None:
        self.id, self.command, self.output = id_, command, output
        self.cancelled = Cancellation()
        self.is_told = False  # the model knows that it has ended
        self._began = time.monotonic()
        self._ending: Ending | None = None
        self._failure = ""
        self._task: asyncio.Task[None] | None = None

    def begin(self, argv: Sequence[str], place: Place, context: Context) -> None:
        self._task = asyncio.ensure_future(self._run(argv, place, context))

    @property
    def is_running(self) -> bool:
        return self._ending is None and not self._failure

    @property
    def ok(self) -> bool:
        """It runs, or ended well."""
        return self.is_running or self.exit_status == 0

    @property
    def exit_status(self) -> int | None:
        return self._ending.exit_status if self._ending else None

    @property
    def seconds(self) -> float:
        """That it has run."""
        return self._ending.seconds if self._ending else time.monotonic() - self._began

    @property
    def line(self) -> str:
        """`job 2: runs for 3 s: npm test`"""
        command = " ".join(self.command.split())
        name = command if len(command) <= MAX_COMMAND_CHARS else f"{command[: MAX_COMMAND_CHARS - 1]}…"
        how = "runs for" if self.is_running else f"ended: {self._ending.words if self._ending else self._failure} after"
        return f"job {self.id} {how} {self.seconds:.0f} s: {name}"

    def told(self, context: Context) -> str:
        """How it stands, and what it has put out since the last time."""
        self.is_told = not self.is_running
        return f"{self.line}\n{shown(self.output.take_new().parts, self.output.name, context)}"

    async def wait(self, timeout_s: float, cancelled: Cancellation) -> None:
        """For its end, but no longer. Raises ToolError once `cancelled` is set."""
        assert self._task is not None
        until = time.monotonic() + timeout_s
        while self.is_running and (left_s := until - time.monotonic()) > 0:
            cancelled.check()
            await asyncio.wait({self._task}, timeout=min(CHECK_S, left_s))

    async def end(self) -> None:
        """Now, with all that it has started."""
        assert self._task is not None
        self.cancelled.set()
        await asyncio.wait({self._task})

    async def _run(self, argv: Sequence[str], place: Place, context: Context) -> None:
        try:
            self._ending = await run(argv, place, self.output, context)
        except ToolError as e:
            self._failure = str(e)
        except asyncio.CancelledError:
            self._failure = "interrupted"
            raise


class Jobs:
    """Those of one session. Open until `aclose`."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._num_started = 0

    def start(self, command: str, argv: Sequence[str], place: Place, output: Output, context: Context) -> Job:
        """Raises ToolError where too many run."""
        if len(self.running) >= MAX_RUNNING:
            raise ToolError(f"{MAX_RUNNING} jobs run already; end one first: jobs action=kill")
        self._num_started += 1
        job = Job(self._num_started, command, output)
        job.begin(argv, place, Context(context.workspace, job.cancelled))
        self._jobs[job.id] = job
        ended = [job.id for job in self._jobs.values() if not job.is_running]
        for id_ in ended[: max(len(ended) - MAX_KEPT, 0)]:
            del self._jobs[id_]
        return job

    @property
    def all(self) -> list[Job]:
        return list(self._jobs.values())

    @property
    def running(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.is_running]

    def ended(self) -> list[Job]:
        """Of whose end the model has not been told."""
        return [job for job in self._jobs.values() if not job.is_running and not job.is_told]

    def named(self, id_: int | None) -> Job:
        """The job of this number, or the only one. Raises ToolError."""
        known = ", ".join(map(str, self._jobs)) or "none"
        if id_ is None and len(self._jobs) != 1:
            raise ToolError(f"name a job with id; there are: {known}")
        job = self._jobs.get(id_ if id_ is not None else next(iter(self._jobs)))
        if job is None:
            raise ToolError(f"no job {id_}; there are: {known} (jobs end when the session is closed)")
        return job

    async def aclose(self) -> None:
        """End them all."""
        await asyncio.gather(*(job.end() for job in self.running))


def jobs_tool(jobs: Jobs) -> Tool:
    """`jobs`, for one session."""

    async def work(args: JobsArguments, context: Context) -> str:
        if args.action == "list":
            return "\n".join(job.line for job in jobs.all) or "there is no job"
        job = jobs.named(args.id)
        if args.action == "wait":
            await job.wait(args.timeout_s, context.cancelled)
        elif args.action == "kill":
            await job.end()
        return job.told(context)

    return Tool(
        "jobs",
        "Jobs that shell started with background=true: list them, read what one has put out since the last time,"
        " wait for its end (at most timeout_s), kill it. All end when the session is closed.",
        JobsArguments,
        "shows or ends commands that this session has started",
        reads,
        work,
    )
