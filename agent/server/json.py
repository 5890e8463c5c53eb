"""JSON from clients, and the shape of errors. Owns how deep, long and strict a body may be; must not know requests.

Strict on purpose: parsers disagree on a key given twice, on NaN and on half a surrogate pair.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

MAX_BODY_BYTES = 16 * 2**20  # a million tokens of text are four to six
MAX_DEPTH = 64
MAX_VALUES = 500_000

Json = dict[str, Any]


class ApiError(Exception):
    """The error that a client gets for its request. `code` is for programs, the message for people."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, type: str | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.type = type or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> Json:
        """The `error` object."""
        return {"message": str(self), "type": self.type, "param": self.param, "code": self.code}


def bad(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """The error for an invalid request."""
    return ApiError(400, message, code, param)


def unsupported(message: str, param: str) -> ApiError:
    """The error for a valid request that this server does not support."""
    return ApiError(400, message, "unsupported", param)


def parse(data: bytes | str) -> Json:
    """One JSON object. Raises ApiError with code `invalid_json` for anything else."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
    except UnicodeDecodeError:
        raise bad("the body is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise bad(f"the JSON is nested deeper than {MAX_DEPTH}", code="invalid_json") from None
    except ValueError as e:
        raise bad(f"the body is not JSON: {str(e)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad("the body is not a JSON object", code="invalid_json")
    _check(value)
    return value


def dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice[:60]!a} is given twice in one object")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]} is too large")
    return value


def _check(value: Json) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level: list[Any] = [value]
    num_values = 0
    for _ in range(MAX_DEPTH + 1):
        num_values += len(level)
        if num_values > MAX_VALUES:
            raise bad(f"the JSON has more than {MAX_VALUES} values", code="invalid_json")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
        if not deeper:
            return
        level = deeper
    raise bad(f"the JSON is nested deeper than {MAX_DEPTH}", code="invalid_json")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad("a text has half of a surrogate pair: it is not Unicode", code="invalid_json") from None
