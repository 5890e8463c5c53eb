"""Events: what a turn tells the terminal, HTTP clients, `--json` and the event log.

Owns the wire format. Must not know where an event comes from or how it is drawn.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, computed_field

NOT_LOGGED = ("preview", "always_rule", "always_mode")


class Wire(BaseModel):
    """Base of what is sent and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(BaseModel):
    """What one turn read and wrote, in tokens and seconds; the turn under way counts it up.

    `new`: tokens of the user and of tools. `from_memory`: already in the live sequence. `from_disk`: state loaded from
    disk. `prefilled_again`: in the token log, but computed anew because of `why`. A turn's input and output together
    are the context, so `context_used` = `input_tokens` + `output_tokens`. `prefill_s` is the wait for first tokens.
    `requests` to an endpoint, and their `cost` by the user's prices; `from_memory` is then what it had cached.
    """

    new: int = 0
    from_memory: int = 0
    from_disk: int = 0
    prefilled_again: int = 0
    why: str | None = None
    output_tokens: int = 0
    context_used: int = 0
    context_limit: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tools_s: float = 0.0
    load_s: float = 0.0
    requests: int = 0
    cost: float | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def input_tokens(self) -> int:
        return self.new + self.from_memory + self.from_disk + self.prefilled_again


class UserMessage(Wire):
    """What the user said. In the event log only: who sends it knows it."""

    type: Literal["user"] = "user"
    text: str


class Rolled(Wire):
    """The oldest tokens left the window. In the event log only; see `engine.Roll`."""

    type: Literal["rolled"] = "rolled"
    position: int
    first_kept: int
    head_tokens: int


class Shown(Wire):
    """Which files the model was shown by a call: a digest of each, and all lines of it that it was shown whole.

    In the event log only; see `tools.Seen`.
    """

    type: Literal["shown"] = "shown"
    files: dict[str, int]
    lines: dict[str, tuple[tuple[int, int], ...]] = {}


class Text(Wire):
    """A piece of the answer; the event log has it whole."""

    type: Literal["text"] = "text"
    delta: str


class Thinking(Wire):
    """A piece of the model's reasoning; the event log has it whole."""

    type: Literal["thinking"] = "thinking"
    delta: str


class ToolCallMade(Wire):
    """A call as the model wrote it; `arguments` is JSON text, possibly wrong."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    arguments: str


class FileChange(Wire):
    """What was done to a file or directory: lines that are new in it, and gone from it; `to` is where it was moved."""

    path: str
    added: int
    removed: int
    what: Literal["changed", "created", "moved", "deleted"] = "changed"
    to: str = ""


class ToolOutput(Wire):
    """What a call that still runs has put out, a piece: the model reads the result. The event log does not keep it."""

    type: Literal["tool_output"] = "tool_output"
    id: str
    delta: str


class CommandEnd(Wire):
    """A command that a call ran. `exit_status` is None when it did not end by itself, or has not ended."""

    command: str
    exit_status: int | None
    seconds: float


class ToolResultGiven(Wire):
    """What the model reads as the result of a call.

    `changed` is what the call did on disk, `refused` that it was not allowed to run.
    """

    type: Literal["tool_result"] = "tool_result"
    id: str
    ok: bool
    output: str
    changed: tuple[FileChange, ...] = ()
    refused: bool = False
    command: CommandEnd | None = None


class ApprovalNeeded(Wire):
    """The call waits for the user. `preview` is what it would do, in lines.

    `always_rule` is the rule that the answer `always` writes for this workspace, `always_mode` the mode that it sets
    instead. The event log keeps none of these.
    """

    type: Literal["approval_needed"] = "approval_needed"
    id: str
    name: str
    arguments: str
    preview: tuple[str, ...] = ()
    always_rule: str = ""
    always_mode: str = ""


class Answer(Wire):
    """What the user says to it: once, `always`, or no, perhaps with a `reason` that the model gets to read."""

    approve: bool
    always: bool = False
    reason: str = ""


Ask = Callable[[ApprovalNeeded], Awaitable[Answer]]


class PrefillProgress(Wire):
    """Tokens of the prompt read so far."""

    type: Literal["prefill_progress"] = "prefill_progress"
    done: int
    total: int


class NotDone(Wire):
    """A call that should have changed something, and did not."""

    name: str
    path: str
    why: Literal["refused", "failed"]


class Changes(Wire):
    """What a turn did on disk, as the tools wrote it; the model's words play no part. `can_undo`: undo takes it back.

    Told before the end of the turn, and not logged. `num_commands` were run too, and what these changed is not known;
    `failed` are those that did not end well when they were run last.
    """

    type: Literal["changes"] = "changes"
    files: tuple[FileChange, ...]
    not_done: tuple[NotDone, ...]
    num_commands: int = 0
    failed: tuple[CommandEnd, ...] = ()
    can_undo: bool = False


class TurnDone(Wire):
    """The end of a turn that was answered; `text` is the answer after the last tool call."""

    type: Literal["turn_done"] = "turn_done"
    session: str
    turn: int
    text: str
    usage: Usage


class Notice(Wire):
    """Something the user should know; the turn goes on."""

    type: Literal["notice"] = "notice"
    message: str


class Error(Wire):
    """The end of a turn that failed: the thing, the value and the way out."""

    type: Literal["error"] = "error"
    message: str


Event: TypeAlias = (
    Text
    | Thinking
    | ToolCallMade
    | ToolOutput
    | ToolResultGiven
    | ApprovalNeeded
    | PrefillProgress
    | Changes
    | TurnDone
    | Notice
    | Error
)


def entry(event: Event | UserMessage | Rolled | Shown) -> tuple[str, dict[str, Any]]:
    """An event as the log keeps it: its type and the rest."""
    return event.type, event.model_dump(mode="json", exclude={"type", *NOT_LOGGED})
