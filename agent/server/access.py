"""Who may talk to the server: tokens and users, and which Host and Origin a request may come with.

Owns the token file and every comparison with a token. A page of another site is kept out three times: it has no token,
its Origin is foreign, and its body would not be JSON. Must not know requests.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.agent.config import UsageError, printable
from holdfast.agent.server.json import ApiError

MAX_WAITING = 256  # responses under way of one user
OWNER = "owner"  # the user of the data directory, where the token is
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EXPOSED = "x-request-id, retry-after, x-should-retry"
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,31}://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,252})")


def stored_owner(name: str) -> str:
    """The owner of what a user stores, as memory and the engine know it: empty for the owner of the data directory."""
    return "" if name == OWNER else name


@dataclass(frozen=True)
class User:
    """One user of the server. `token_hash` is SHA-256; `workspaces` are the directories in which the agent may work for
    this user, None for all."""

    name: str
    token_hash: bytes
    max_waiting: int = MAX_WAITING
    disk_bytes: int | None = None  # that may be stored; None: as much as the server has
    workspaces: tuple[Path, ...] | None = None

    @property
    def session_owner(self) -> str:
        """The owner that is stored with this user's sessions. Sessions of the terminal belong to the data
        directory's."""
        return stored_owner(self.name)

    def may_work_in(self, workspace: Path) -> bool:
        """Whether a directory is one of the user's workspaces or inside one. Real paths."""
        return self.workspaces is None or any(workspace.is_relative_to(allowed) for allowed in self.workspaces)


@dataclass(frozen=True)
class Access:
    """The users, the host names that this server has, and the origins whose pages and extensions may send requests.
    An IP address is always allowed as Host: no site has one as its name."""

    users: tuple[User, ...]
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()

    def user(self, headers: Mapping[str, str]) -> User:
        """The user whose token the request has. Raises ApiError 401. Takes the same time for every token."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "").strip()
        given = hash_of(token) if token else b""
        found = [user for user in self.users if hmac.compare_digest(user.token_hash, given)]
        if not found:
            text = "send the server's token as 'Authorization: Bearer TOKEN', or as 'x-api-key: TOKEN'"
            raise ApiError(401, text, "invalid_api_key", type="authentication_error")
        return found[0]

    def check_sender(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 421 for a foreign Host, 403 for a foreign Origin."""
        host = headers.get("Host", "")
        if not self._is_ours(host):
            text = f"this server is not {printable(host[:100])}: if it is to be, start it with --name"
            raise ApiError(421, text, "wrong_host")
        origin = headers.get("Origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *self.origins):
            text = "requests from pages of other origins are refused, but for those that --allow-origin names"
            raise ApiError(403, text, "foreign_origin")

    def is_preflight(self, method: str, headers: Mapping[str, str]) -> bool:
        """Whether this is a CORS preflight from an allowed origin."""
        return (
            method == "OPTIONS" and headers.get("Origin") in self.origins and "Access-Control-Request-Method" in headers
        )

    def cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The CORS headers for an allowed origin; none for any other."""
        origin = headers.get("Origin")
        if origin not in self.origins or origin is None:
            return {}
        found = {"Access-Control-Allow-Origin": origin, "Vary": "Origin", "Access-Control-Expose-Headers": EXPOSED}
        if "Access-Control-Request-Method" not in headers:
            return found
        asked = headers.get("Access-Control-Request-Headers", "")
        allowed = asked if re.fullmatch(r"[A-Za-z0-9_, -]{1,2000}", asked) else "authorization, content-type"
        found |= {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Allow-Headers": allowed}
        if "Access-Control-Request-Private-Network" in headers:
            found["Access-Control-Allow-Private-Network"] = "true"
        return {**found, "Access-Control-Max-Age": "600"}

    def _is_ours(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True


def host_name(given: str) -> str:
    """A host name from the command line, checked. Raises UsageError."""
    name = given.lower()
    if not HOST_NAME.fullmatch(name):
        raise UsageError(f"--name {printable(given)} is no host name: give it without scheme and port")
    return name


def origin_of(given: str) -> str:
    """An origin from the command line, as browsers send it. Raises UsageError."""
    origin = given.lower().removesuffix("/")
    if not ORIGIN.fullmatch(origin):
        raise UsageError(f"--allow-origin {printable(given)} is no origin: give one like https://app.example")
    return origin


def hash_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def own_token(home: Path) -> str:
    """The token of this data directory, created if there is none. Raises UsageError if it cannot be stored."""
    path = home / "token"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            os.chmod(path, 0o600)
            token = path.read_text("ascii").strip()
            if len(token) < 16:
                raise UsageError(f"{path} holds no token: remove it, and a new one is made") from None
            return token
        token = secrets.token_urlsafe(32)
        with os.fdopen(fd, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(fd)
        return token
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"the token file {path} cannot be used: {e}") from None
