"""What a tool is: what it takes, what a call of it would do, and how it runs.

Owns Tool, Permission, Context, Result and Risk. Knows no particular tool, no approval policy and no wire format.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from holdfast.tools.errors import Cancellation, ToolError
from holdfast.tools.workspace.workspace import Workspace

MAX_SHOWN_VALUE_CHARS = 60
UNLISTED = "unlisted"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
log = logging.getLogger("holdfast.tools")


class Risk(Enum):
    """The worst a call can do; what is allowed without asking is the agent's policy."""

    READ = "read"
    EDIT = "edit"
    EXECUTE = "execute"


class Arguments(BaseModel):
    """Base of every tool's parameters: an argument that no tool declares is an error, and so is text that UTF-8 cannot hold."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _holds_characters(cls, value: Any) -> Any:
        if isinstance(value, str) and LONE_SURROGATE.search(value):
            raise ValueError("it has half a character (a lone surrogate), which no file and no name can have")
        return value


def unlisted(default: int) -> Any:
    """A whole number of at least 1 that the schema does not list: an output names it where there is more (`continue with column=501`)."""
    return Field(default=default, ge=1, json_schema_extra={UNLISTED: True})


@dataclass(frozen=True)
class Permission:
    """What one call would do, read from the whole call before it runs.

    `subjects` are what rules of permission match: the paths that it touches, relative to the workspace, or its command line.
    `preview` is lines for the person who decides, `digest` names the file contents that the preview was made of. `refusal` is
    why the call would fail: nobody need be asked about it.
    """

    risk: Risk
    subjects: tuple[str, ...] = ()
    preview: tuple[str, ...] = ()
    digest: int | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class CommandEnd:
    """A command that a call ran, as a fact. `exit_status` is None when it did not end by itself, or has not ended."""

    command: str
    exit_status: int | None
    seconds: float


@dataclass(frozen=True)
class Result:
    """What goes back to the model. A failed call has `ok=False` and an output starting with `error: `, unless it is a command that failed."""

    output: str
    ok: bool
    command: CommandEnd | None = None


@dataclass(frozen=True)
class Budget:
    """The most tokens that a result may have, and how they are counted."""

    tokens: int
    count: Callable[[str], int]


def unheard(output: str) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What a call runs in. A tool that runs for long checks `cancelled` every tenth of a second and ends within a second of it;
    what it calls `emit` with reaches the caller in order, before the result does. `permitted` is what was asked about."""

    workspace: Workspace
    cancelled: Cancellation = field(default_factory=Cancellation)
    emit: Callable[[str], None] = unheard
    budget: Budget | None = None
    permitted: Permission | None = None

    def result(self, output: str, ok: bool) -> Result:
        """As text that the model can read: valid Unicode, and no longer than the budget."""
        output = output.encode(errors="replace").decode()
        num_tokens = self.budget.count(output) if self.budget else 0
        if self.budget and num_tokens > self.budget.tokens:
            left = max(self.budget.tokens, 0)
            self.workspace.shown.take_back()
            output = (
                f"(the call ran, but its output of {num_tokens} tokens does not fit into the {left} left; ask for less)"
            )
        return Result(output, ok)


def reads(args: Any, context: Context) -> Permission:
    """The permission of a tool that changes nothing."""
    return Permission(Risk.READ)


@dataclass(frozen=True)
class Tool:
    """One tool. `about` tells people in one line what a call costs and risks. `permission` reads the whole call, on a thread; `work`
    runs it. Both take an instance of `parameters`, and raise ToolError to refuse."""

    name: str
    description: str
    parameters: type[Arguments]
    about: str
    permission: Callable[[Any, Context], Permission]
    work: Callable[[Any, Context], Awaitable[str | Result]]

    async def run(self, args: Arguments, context: Context) -> Result:
        """Any failure gives `ok=False`, never an exception: only a caller that is cancelled itself gets none."""
        try:
            done = await self.work(args, context)
            return done if isinstance(done, Result) else context.result(done, ok=True)
        except (Exception, SystemExit, asyncio.CancelledError) as e:
            return context.result(f"error: {self.reason(e)}", ok=False)

    def reason(self, error: BaseException) -> str:
        """One line on why a call failed. A fault of ours is logged with its traceback, and our caller's cancellation raised again."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error
        if isinstance(error, ToolError):
            return str(error)
        if isinstance(error, OSError):
            return f"{self.name} failed: {error.strerror or shown(str(error))}"
        log.error("the tool %s failed", self.name, exc_info=error)
        return f"{self.name} failed by a fault of its own ({type(error).__name__})"

    def schema(self) -> dict[str, Any]:
        """Name, description and JSON schema of the arguments, with nothing the model does not need."""
        full = self.parameters.model_json_schema()
        listed = {name: prop for name, prop in full.get("properties", {}).items() if not prop.get(UNLISTED)}
        definitions = full.get("$defs", {})
        properties = {name: _trimmed(prop, definitions) for name, prop in listed.items()}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if full.get("required"):
            parameters["required"] = full["required"]
        return {"name": self.name, "description": self.description, "parameters": parameters}


def shown(value: str) -> str:
    """A value of the model's, safe inside a one-line message."""
    one_line = value if value.isprintable() else ascii(value)
    return one_line if len(one_line) <= MAX_SHOWN_VALUE_CHARS else one_line[:MAX_SHOWN_VALUE_CHARS] + "…"


def _trimmed(prop: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Drop titles and spell an optional argument as its plain type: leaving it out is how to say null."""
    kept = {key: value for key, value in prop.items() if key not in ("title", "anyOf", "default")}
    for option in prop.get("anyOf", []):
        if option.get("type") != "null":
            kept.update(option)
    if "$ref" in kept.get("items", {}):
        item = definitions[kept["items"]["$ref"].rpartition("/")[2]]
        properties = {name: _trimmed(part, definitions) for name, part in item["properties"].items()}
        kept["items"] = {"type": "object", "properties": properties, "additionalProperties": False}
    if prop.get("default") is not None:
        kept["default"] = prop["default"]
    return kept
