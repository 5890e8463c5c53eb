"""The file of users that the owner of a server writes: a JSON list of {"name", "token" or "token_sha256"}, with
"max_waiting", "disk_gb" and "workspaces" if any.

Owns its fields and how a mistake is reported. Must not know requests.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, RootModel, ValidationError, model_validator

from holdfast.agent.config import UsageError
from holdfast.agent.server.access import MAX_WAITING, OWNER, User, hash_of
from holdfast.agent.server.validation import Body, what_is_wrong

FORM = 'it must be [{"name": NAME, "token": TOKEN}, ...]'
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MIN_TOKEN_CHARS = 16


def _is_user_name(name: str) -> str:
    if not NAME.fullmatch(name) or name == OWNER:
        raise ValueError(f"{name!a} must be 1-32 letters, digits, '_' or '-', and not {OWNER}")
    return name


def _is_directory(path: str) -> str:
    if "\0" in path or not os.path.isdir(path):
        raise ValueError(f"{path[:200]!a} must be a directory that exists")
    return path


class Entry(Body):
    name: Annotated[str, AfterValidator(_is_user_name)]
    token: str | None = None
    token_sha256: str | None = None
    max_waiting: int = Field(MAX_WAITING, ge=1)
    disk_gb: float | None = Field(None, gt=0, lt=1e9, allow_inf_nan=False)
    workspaces: list[Annotated[str, AfterValidator(_is_directory)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_a_token(self) -> "Entry":
        is_digest = self.token_sha256 is not None and DIGEST.fullmatch(self.token_sha256)
        if not is_digest and (self.token is None or len(self.token) < MIN_TOKEN_CHARS):
            text = f"it needs a token of at least {MIN_TOKEN_CHARS} characters, or its token_sha256 in hex"
            raise ValueError(text)
        return self

    def user(self) -> User:
        if self.token is not None and len(self.token) >= MIN_TOKEN_CHARS:
            token_hash = hash_of(self.token)
        else:
            token_hash = bytes.fromhex(self.token_sha256 or "")
        disk_bytes = None if self.disk_gb is None else int(self.disk_gb * 1e9)
        workspaces = tuple(Path(os.path.realpath(path)) for path in self.workspaces)
        return User(self.name, token_hash, self.max_waiting, disk_bytes, workspaces)


class Entries(RootModel[list[Entry]]):
    pass


def users_of(path: Path) -> tuple[User, ...]:
    """Raises UsageError that says in one line which user's field is wrong, and what it may be."""
    given: Any = None
    try:
        given = json.loads(path.read_text("utf-8"))
        users = tuple(entry.user() for entry in Entries.model_validate(given).root)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}; name the file of users with --users") from None
    except ValidationError as e:
        raise UsageError(f"{path} is no list of users with name and token: {_mistake(e, given)}") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is no list of users with name and token: {str(e)[:200]}") from None
    for what, values in (("names", {u.name for u in users}), ("tokens", {u.token_hash for u in users})):
        if not users or len(values) != len(users):
            raise UsageError(f"{path}: the {what} of its users must be different, and there must be one at least")
    return users


def _mistake(error: ValidationError, given: Any) -> str:
    """With the user's name instead of a place in the list, where there is one."""
    where, text, _ = what_is_wrong(error, given)
    place = re.match(r"\[(\d+)\]\.?", where)
    entry = given[int(place[1])] if place else None
    if place is None or not isinstance(entry, dict):
        return FORM
    field = where[place.end() :]
    name = entry.get("name")
    whose = f"user {name}" if isinstance(name, str) and NAME.fullmatch(name) else f"user number {int(place[1]) + 1}"
    return f"{f'{field} of ' if field else ''}{whose}{text}"
