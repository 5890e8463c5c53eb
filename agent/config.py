"""Paths and settings: where the data lie, which model, how a turn is bounded. Must not open any of them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from holdfast.agent.encoding.encode import ThinkingMode
from holdfast.agent.released import release_of

if TYPE_CHECKING:
    from holdfast.agent.models.remote.endpoint import Endpoint

POCKET = "pocket"
POCKET_DIR = Path(__file__).parent / "pocket" / "model"

MAX_PROMPT_CHARS = 12_000_000  # what a context of some million tokens can hold
MAX_GENERATION_CONFIG_BYTES = 1 << 20
MAX_OUTPUT_TOKENS = 8192  # of one answer or round of tool calls, for a model that does not say


class UsageError(Exception):
    """Bad input: one line for stderr, exit code 2."""


class Failure(Exception):
    """What was asked for cannot be done here: one line for stderr, exit code 1."""


@dataclass(frozen=True)
class Settings:
    """What does not change while the program runs.

    `max_output_tokens` bounds one answer or round of tool calls.

    `max_context` tokens at most are in the window (None: what the model supports); then the oldest roll out. State is
    saved when a turn ends, and in a long one every `save_every` tokens; on disk it takes `disk_bytes` at most. The
    model runs on `ranks` processes. With an `endpoint` the model is there, and `model_dir` has the vocabulary of our
    log.
    """

    home: Path
    model_dir: Path
    thinking_mode: ThinkingMode = "chat"
    temperature: float = 0.0
    max_steps: int = 24
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    save_every: int = 8192
    max_context: int | None = None
    disk_bytes: int = 20 * 2**30
    ranks: int = 1
    own_files: tuple[Path, ...] = ()  # outside `home`, that no tool may see
    endpoint: "Endpoint | None" = None

    @property
    def model_name(self) -> str:
        """The name of the model in this data directory: its real directory, or the endpoint's identity."""
        return self.endpoint.identity if self.endpoint else os.path.realpath(self.model_dir)


def data_home() -> Path:
    """`$HOLDFAST_HOME`, else the platform's data directory."""
    home = os.environ.get("HOLDFAST_HOME", "")
    return Path(home) if home else platformdirs.user_data_path("holdfast", appauthor=False)


def stored_home() -> Path:
    """The data directory, for a command that needs what is stored there.

    Raises UsageError where nothing is: a directory that vanished must not be taken for a new one.
    """
    home = data_home()
    if not any((home / name).exists() for name in ("holdfast.db", "locks")):
        raise UsageError(f"nothing is stored in {printable(str(home))}: begin a session, or set HOLDFAST_HOME")
    return home


def disk_budget() -> int:
    """Bytes that stored state may take: `$HOLDFAST_DISK_GB`, else 20 GiB."""
    value = os.environ.get("HOLDFAST_DISK_GB", "")
    if not value:
        return Settings.disk_bytes
    try:
        budget = int(float(value) * 1e9)
    except (ValueError, OverflowError):
        budget = 0
    if budget <= 0:
        raise UsageError(f"HOLDFAST_DISK_GB={printable(value)} is not a positive number of gigabytes")
    return budget


def model_directory(model: str) -> Path:
    """The directory of `pocket` or of a path; raises UsageError when there is no model."""
    directory = POCKET_DIR if model == POCKET else Path(model)
    if os.path.isfile(directory / "config.json"):
        return directory
    if model == POCKET:
        raise UsageError(f"this installation has no embedded model ({directory}): name a model directory with --model")
    if not os.path.exists(directory) and (release := release_of(model)):
        raise UsageError(release.how_to_get())
    what = "has no config.json" if os.path.isdir(directory) else "is not a directory"
    raise UsageError(
        f"model {printable(model)} {what}: name a directory with config.json, https://HOST/v1#MODEL, or {POCKET}"
    )


def output_limit(model_dir: Path) -> int:
    """`max_new_tokens` of the model's generation_config.json: where a model that repeats itself is stopped."""
    path = model_dir / "generation_config.json"
    if not path.exists():
        return MAX_OUTPUT_TOKENS
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file: download it again")
    try:
        if path.stat().st_size > MAX_GENERATION_CONFIG_BYTES:
            raise UsageError(f"{path} has {path.stat().st_size:,} bytes: download it again")
        limit = json.loads(path.read_text("utf-8")).get("max_new_tokens", MAX_OUTPUT_TOKENS)
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UsageError(f"{path} cannot be read as a JSON object") from None
    if not isinstance(limit, int) or limit < 1:
        raise UsageError(f"{path}: max_new_tokens={limit!r} must be a whole number of at least 1")
    return limit


def check_working_directory() -> None:
    """Raises UsageError when the working directory was removed: libraries that ask for it would abort."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory is gone: change to another") from None


def workspace_directory(workspace: str) -> Path:
    """The real path of an existing directory; raises UsageError otherwise."""
    directory = Path(os.path.realpath(workspace))
    if not os.path.exists(directory):
        raise UsageError(f"workspace {printable(workspace)} does not exist: name an existing directory")
    if not os.path.isdir(directory):
        raise UsageError(f"workspace {printable(workspace)} is not a directory: name an existing directory")
    if not is_text(str(directory)):
        raise UsageError(f"workspace {printable(str(directory))} has a name that is not UTF-8: rename it")
    return directory


def prompt_problem(prompt: str) -> str | None:
    """What makes a text unfit as a prompt, or None."""
    if not prompt.strip():
        return "the prompt is empty: say what to do"
    if len(prompt) > MAX_PROMPT_CHARS:
        return f"the prompt is too long: {MAX_PROMPT_CHARS:,} characters at most"
    return None if is_text(prompt) else "the prompt is not valid UTF-8 text"


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: bytes of arguments that are not UTF-8 arrive as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(value: str) -> str:
    """A value from outside, safe inside a one-line message."""
    return value if value.isprintable() else ascii(value)
