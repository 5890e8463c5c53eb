"""Checks a body against its pydantic model and reports a mistake in one line, under the client's name of the field.

Owns how errors of pydantic are worded, and how an error about one protocol's field names another protocol's. Must not
know any request.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from holdfast.agent.config import printable
from holdfast.agent.server.json import ApiError, Json, bad, unsupported

Short = Annotated[str, StringConstraints(max_length=512)]
Objects = Annotated[list[Json], Field(fail_fast=True)]  # a mistake in each of half a million takes seconds to tell
# A field that cannot be served -> the values that ask for nothing, and what to do instead.
Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]


class Body(BaseModel):
    """A request body. Unknown fields are ignored, as the protocols want; null counts as absent."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {key: value for key, value in data.items() if value is not None}


Kind = TypeVar("Kind", bound=Body)


def checked(kind: type[Kind], body: Json, without: Unsupported | None = None) -> Kind:
    """The body as its model. Raises ApiError that names the field, also for fields that are not supported."""
    for name, (neutral, way_out) in (without or {}).items():
        if body.get(name) is not None and body[name] not in neutral:
            raise unsupported(f"{name} is not supported: {way_out}", name)
    try:
        return kind.model_validate(body)
    except ValidationError as e:
        raise _refusal(e, body) from None


def _refusal(error: ValidationError, body: Json) -> ApiError:
    where, text, is_missing = what_is_wrong(error, body)
    return bad(f"{where}{text}", where, "missing_required_parameter" if is_missing else "invalid_value")


def what_is_wrong(error: ValidationError, given: Any) -> tuple[str, str, bool]:
    """The first field that is wrong: its name, the rest of a sentence that begins with the name, and whether it is
    missing. Errors about the alternatives of one field become one sentence."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    paths = [_path(e["loc"], given, is_missing=e["type"] == "missing") for e in errors]
    where = max((path for path in paths if path.startswith(paths[0])), key=len)
    of_field = [e for e, path in zip(errors, paths, strict=True) if path == where]
    if of_field[0]["type"] == "missing":
        return where, " is required", True
    said = list(dict.fromkeys(e["msg"].removeprefix("Value error, ") for e in of_field))
    start = "Input should be "
    if all(text.startswith(start) for text in said):
        return where, f" should be {' or '.join(text.removeprefix(start) for text in said)}", False
    return where, f": {said[0]}", False


def _path(place: tuple[int | str, ...], body: Any, *, is_missing: bool) -> str:
    """`messages[0].role`. Parts that are no key of the body name a branch of pydantic's own."""
    path, at = "", body
    for number, part in enumerate(place):
        if isinstance(part, int):
            path, at = f"{path}[{part}]", at[part] if isinstance(at, list) and part < len(at) else None
        elif isinstance(at, dict) and (part in at or (is_missing and number == len(place) - 1)):
            path, at = f"{path}.{printable(part)}", at.get(part)
    return path.removeprefix(".")[:100]


@dataclass(frozen=True)
class Names:
    """How a client knows the fields of a request that was translated: `items` are its names for the items of `input`,
    `fields` for the rest, beginnings of longer names included; what begins with a dot is the end of an item's name."""

    fields: Mapping[str, str]
    items: list[str] = field(default_factory=list)

    def said(self, error: ApiError) -> ApiError:
        """The same error with the client's name."""
        if error.param is None or (theirs := self._of(error.param)) == error.param:
            return error
        text = str(error)
        if text.startswith(error.param):
            text = theirs + text.removeprefix(error.param)
        return ApiError(error.status, text, error.code, theirs, error.type)

    def _of(self, param: str) -> str:
        if (item := re.match(r"input\[(\d+)\]", param)) and int(item[1]) < len(self.items):
            rest = param[item.end() :]
            return self.items[int(item[1])] + self.fields.get(rest, rest)
        for ours in sorted(self.fields, key=len, reverse=True):
            if re.match(rf"{re.escape(ours)}(?!\w)", param):
                return self.fields[ours] + param.removeprefix(ours)
        return param
