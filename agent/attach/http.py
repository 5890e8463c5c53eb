"""A client of this data directory's own server: requests with the owner's token, and its stream of events.

Owns HTTP: requests, timeouts, and which errors they become. Must not know what a session is.
"""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp

from holdfast.agent.attach.discovery import Server, find_server
from holdfast.agent.config import UsageError, printable
from holdfast.agent.server.access import own_token
from holdfast.memory import StoreError

Json = dict[str, Any]
CONNECT_S = 5.0
ANSWER_S = 60.0  # of one request; a cancel waits for the turn's end
SILENCE_S = 30.0  # of a stream: three of the server's keepalives
UNHEARD = (aiohttp.ClientError, TimeoutError, OSError)


class Refused(StoreError):
    """The server answered with an error; `code` is for programs, the message for people."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Unreachable(StoreError):
    """The server does not answer."""


class Connection:
    """A connection to the server of a data directory, which may be restarted between requests."""

    def __init__(self, home: Path, server: Server):
        self.server = server
        self._home = home
        token = own_token(home)
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request and its JSON answer. Raises Refused and Unreachable."""
        timeout = aiohttp.ClientTimeout(ANSWER_S, sock_connect=CONNECT_S)
        try:
            async with self._http.request(
                method, self._url(path), json=body, timeout=timeout, allow_redirects=False
            ) as answer:
                return await self._answer(answer)
        except UNHEARD as e:
            raise self._unreachable(e) from None

    async def frames(self, path: str, after: str | None) -> AsyncGenerator[tuple[str | None, Json], None]:
        """The events of a stream with their ids, from the one after `after` on. Raises as `call`."""
        timeout = aiohttp.ClientTimeout(None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        query = {} if after is None else {"after": after}
        try:
            async with self._http.get(self._url(path), params=query, timeout=timeout, allow_redirects=False) as answer:
                if answer.status != 200:
                    await self._answer(answer)
                waiting = b""
                async for chunk in answer.content.iter_any():
                    *blocks, waiting = (waiting + chunk).split(b"\n\n")
                    for block in blocks:
                        if frame := _frame(block.decode()):
                            yield frame
        except UNHEARD as e:
            raise self._unreachable(e) from None

    def _url(self, path: str) -> str:
        """The URL of the server as it runs now. Another program may have the address of one that has ended."""
        try:
            found = find_server(self._home)
        except UsageError as e:
            raise Unreachable(str(e)) from None
        if found is None or found.model != self.server.model:
            raise Unreachable(
                f"the server at {self.server.url} (pid {self.server.pid}) has ended: start it again, or run this again"
                " without it"
            )
        self.server = found
        return found.url + path

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._http.close()

    async def _answer(self, answer: aiohttp.ClientResponse) -> Json:
        try:
            value = json.loads(await answer.read())
            if answer.status < 300 and isinstance(value, dict):
                return value
            error = value["error"]
            raise Refused(answer.status, error["code"], printable(str(error["message"])))
        except (ValueError, TypeError, KeyError):
            raise Refused(answer.status, None, f"the server at {self.server.url} answers {answer.status}") from None

    def _unreachable(self, error: Exception) -> Unreachable:
        why = "it is silent" if isinstance(error, TimeoutError) else printable(str(error)) or type(error).__name__
        return Unreachable(
            f"the server at {self.server.url} (pid {self.server.pid}) does not answer ({why}): start it again, or end"
            " it and run this again without it"
        )


def _frame(block: str) -> tuple[str | None, Json] | None:
    """One event of a stream: its id, and its data as JSON; None for a comment."""
    fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
    return (fields.get("id"), json.loads(fields["data"])) if "data" in fields else None
