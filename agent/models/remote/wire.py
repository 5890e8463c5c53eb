"""Requests to an endpoint and the events of its answer: retries, silence, refusals, keys.

Owns HTTP. A request is sent again only while nothing of an answer has come. The key is in one header, and in no text
that leaves here. Must not know what is asked or answered.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from holdfast.agent.config import UsageError, printable
from holdfast.agent.models.remote.endpoint import Endpoint
from holdfast.engine import ContextFull, EngineError

Json = dict[str, Any]
CONNECT_S = 10.0
SILENCE_S = 120.0  # a comment or an empty line ends it too: servers send them while a request waits for its turn
MAX_TRIES = 6
UNREACHED_TRIES = 3  # an address that nothing listens at, or a name that means nothing, seldom gets better
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_WISH_S = 0.5, 30.0, 120.0
BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MAX_LINE_BYTES = 16 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_SHOWN_CHARS = 300
OVERFLOW_CODES = {
    "context_length_exceeded",
    "exceed_context_size_error",
    "context_window_exceeded",
    "string_above_max_length",
}
NOT_OVERFLOW = re.compile(r"rate.?limit|quota|throttl|per minute|tokens per|billing", re.IGNORECASE)
OVERFLOW = re.compile(
    r"context.{0,20}(length|window|size|limit)|maximum.{0,20}(context|tokens|length)|prompt is too long|too many tokens"
    r"|input.{0,20}(too long|exceeds)|exceeds.{0,40}(context|token)|longer than the (model|context)|reduce the length",
    re.IGNORECASE | re.DOTALL,
)
OUT_OF_MONEY = re.compile(r"insufficient.?(quota|balance|funds)|billing|credit", re.IGNORECASE)


class RemoteError(EngineError):
    """An endpoint that refuses, breaks off or is silent; one line that names it."""


class _Retry(Exception):
    """Nothing of an answer has come: the request may be sent again, after a wish of the endpoint if it has one."""

    def __init__(self, why: str, wish_s: float | None = None, tries: int = MAX_TRIES):
        super().__init__(why)
        self.wish_s, self.tries = wish_s, tries


class Wire:
    """One endpoint. `tell` gets a line where it makes us wait. Raises UsageError for a key that must not be sent."""

    def __init__(self, endpoint: Endpoint, tell: Callable[[str], None]):
        self._endpoint, self._tell = endpoint, tell
        try:
            self._key = endpoint.key()
        except ValueError as e:
            raise UsageError(str(e)) from None
        self._http: aiohttp.ClientSession | None = None

    async def events(
        self, path: str, body: Json, headers: dict[str, str], begins: Callable[[Json], bool]
    ) -> AsyncGenerator[Json, None]:
        """The JSON events of the answer to a POST; one for an answer that is no stream. Closing it ends the request.

        `begins`: whether an event has a part of the answer in it, after which the request is not sent again. Raises
        ContextFull for a request that is too long, RemoteError for all else.
        """
        for number in range(1, MAX_TRIES + 1):
            has_begun = False
            try:
                async with aclosing(self._once(path, body, headers)) as events:
                    async for event in events:
                        has_begun = has_begun or begins(event)
                        yield event
                if has_begun:
                    return
                raise _Retry("an empty answer")
            except _Retry as e:
                if has_begun:
                    raise self._error(f"broke off its answer ({e}): what came is kept; ask again to go on") from None
                if number >= e.tries:
                    raise self._error(f"does not answer ({e}), tried {number} times: try again later") from None
                await self._pause(number, e)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _once(self, path: str, body: Json, headers: dict[str, str]) -> AsyncGenerator[Json, None]:
        if self._http is None:
            self._http = aiohttp.ClientSession()
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            async with self._http.post(
                self._endpoint.url + path,
                data=json.dumps(body, ensure_ascii=False).encode(errors="replace"),
                headers={"Content-Type": "application/json", "Accept": "text/event-stream", **headers, **authorization},
                timeout=timeout,
                allow_redirects=False,  # a redirect would take the key, and the conversation, to another host
            ) as answer:
                if answer.status != 200:
                    await self._refused(answer)
                async with aclosing(_events(answer)) as events:
                    async for event in events:
                        if error := event.get("error"):
                            self._failed(answer.status, error, None)
                        yield event
        except aiohttp.ClientConnectorCertificateError as e:
            raise self._error(
                f"has a certificate that does not hold ({self._safe(str(e.certificate_error))})"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            why = (
                f"silent for {SILENCE_S:.0f} s"
                if isinstance(e, TimeoutError)
                else self._safe(str(e)) or type(e).__name__
            )
            raise _Retry(
                why, tries=UNREACHED_TRIES if isinstance(e, aiohttp.ClientConnectorError) else MAX_TRIES
            ) from None

    async def _refused(self, answer: aiohttp.ClientResponse) -> None:
        if 300 <= answer.status < 400:
            raise self._error(f"answers {answer.status}, a redirect, which is not followed: name the right address")
        data = await answer.content.read(MAX_ERROR_BYTES)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = data.decode(errors="replace")
        error = value.get("error", value.get("detail", value)) if isinstance(value, dict) else value
        self._failed(answer.status, error, _wish(answer.headers))

    def _failed(self, status: int, error: Any, wish_s: float | None) -> None:
        """Raise what an error object or text means."""
        fields = error if isinstance(error, dict) else {}
        message = self._safe(str(fields.get("message", error)))
        codes = {str(fields.get(name)) for name in ("code", "type")}
        is_throttled = NOT_OVERFLOW.search(message) is not None or status == 429
        if codes & OVERFLOW_CODES or status == 413 or (not is_throttled and status < 500 and OVERFLOW.search(message)):
            raise ContextFull(f"{self._name} says that the context is full: {message}")
        if status == 429 and (OUT_OF_MONEY.search(message) or "insufficient_quota" in codes):
            raise self._error(f"refuses: {message}")
        if status in BUSY or (status == 200 and codes & {"server_error", "overloaded_error", "429", "502", "503"}):
            raise _Retry(f"{status}: {message}" if status != 200 else message, wish_s)
        if status in (401, 403):
            has = "has no value" if self._key is None else "is not accepted"
            raise self._error(f"refuses ({status}): {message}; the key of {self._endpoint.key_env} {has}")
        if status == 404:
            raise self._error(f"has no such place or model (404): {message}; check the address and the model's name")
        raise self._error(f"refuses ({status}): {message}")

    async def _pause(self, number: int, retry: _Retry) -> None:
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (number - 1)) * random.uniform(0.75, 1.25)
        if retry.wish_s is not None:
            if retry.wish_s > LONGEST_WISH_S:
                raise self._error(f"wants {retry.wish_s:.0f} s of patience ({retry}): try again then")
            pause_s = max(retry.wish_s, 0.05)
        if pause_s >= 1:
            self._tell(f"{self._name} does not answer yet ({retry}): asking again in {pause_s:.0f} s")
        await asyncio.sleep(pause_s)

    @property
    def _name(self) -> str:
        return f"{self._endpoint.url}#{self._endpoint.model}"

    def _error(self, what: str) -> RemoteError:
        return RemoteError(f"{self._name} {what}")

    def _safe(self, text: str) -> str:
        """Text of the endpoint, on one line and without the key."""
        text = printable(" ".join(text.split()))
        if self._key:
            text = text.replace(self._key, "[key]")
        return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"


def _wish(headers: Any) -> float | None:
    """Seconds of the headers Retry-After-Ms and Retry-After, the latter a number or a date."""
    try:
        if (value := headers.get("Retry-After-Ms")) is not None:
            return max(0.0, float(value) / 1000)
        if (value := headers.get("Retry-After")) is None:
            return None
        return max(
            0.0, float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, TypeError, OverflowError):
        return None


async def _events(answer: aiohttp.ClientResponse) -> AsyncGenerator[Json, None]:
    """Data of server-sent events, up to `[DONE]`; the whole of a JSON body. Raises _Retry for what is neither."""
    if answer.content_type == "application/json":
        yield _json(await answer.read())
        return
    data: list[bytes] = []
    async for line in _lines(answer):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            if (text := b"\n".join(data)) == b"[DONE]":
                return
            data = []
            yield _json(text)
    if data and (text := b"\n".join(data)) != b"[DONE]":
        yield _json(text)


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    waiting = b""
    async for chunk in answer.content.iter_any():
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(waiting) > MAX_LINE_BYTES:
            raise _Retry(f"a line of more than {MAX_LINE_BYTES:,} bytes")
    if waiting:
        yield waiting.rstrip(b"\r")


def _json(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _Retry("its answer is no JSON") from None
    if not isinstance(value, dict):
        raise _Retry("its answer is no JSON object")
    return value
