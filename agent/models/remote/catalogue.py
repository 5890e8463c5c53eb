"""Which endpoint `--model` means: an address with a name, or an entry of `models.toml` in the data directory.

Owns the file and how its mistakes are told. Must not connect to anything.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from holdfast.agent.config import POCKET, UsageError, printable
from holdfast.agent.models.remote.endpoint import Endpoint

FILE = "models.toml"
ADDRESS = re.compile(r"https?://", re.IGNORECASE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_BYTES = 1 << 20


def endpoint_of(model: str, home: Path) -> Endpoint | None:
    """The endpoint that a value of `--model` means; None when it is no address and no entry. Raises UsageError."""
    if ADDRESS.match(model):
        url, _, name = model.partition("#")
        if not name:
            raise UsageError(
                f"--model {printable(model)} names no model: write it after a #, as in {printable(url)}#NAME"
            )
        return _checked({"url": url, "model": name}, f"--model {printable(model)}")
    return endpoints(home).get(model) if NAME.fullmatch(model) else None


def endpoints(home: Path) -> dict[str, Endpoint]:
    """All entries of the file, by name; none without a file. Raises UsageError."""
    path = home / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES:,} bytes")
        entries = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise UsageError(f"{path} is not TOML: {printable(str(e))}") from None
    found = {}
    for name, values in entries.items():
        if not isinstance(values, dict):
            raise UsageError(f"{path}: {printable(name)} is not a table: write [{printable(name)}] above its values")
        if not NAME.fullmatch(name) or name == POCKET:
            raise UsageError(f"{path}: [{printable(name)}] cannot be the name of a model: take letters, digits, . _ -")
        found[name] = _checked(values, f"{path}: [{name}]")
    return found


def _checked(values: dict[str, Any], where: str) -> Endpoint:
    try:
        return Endpoint.model_validate(values)
    except ValidationError as e:
        mistake = e.errors()[0]
        field = ".".join(str(part) for part in mistake["loc"])
        raise UsageError(f"{where}: {printable(field)}: {mistake['msg'].removeprefix('Value error, ')}") from None
