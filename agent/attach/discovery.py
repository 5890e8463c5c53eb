"""Where the server of a data directory is: the server writes it to `server.json` while it runs.

The server holds a lock on the file, which the system frees when the process ends in any way: the file of a killed
server is ignored. The file is locked before it gets its name, so an old one never looks valid. A data directory has
one server (`server.lock`), so that a terminal needs no choice. Two models need two data directories, or one of them
runs without a server. Must not know what is served.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from holdfast.agent.config import UsageError

FILE, LOCK = "server.json", "server.lock"
ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # listened on, and what to connect to


class Server(BaseModel):
    """A server that runs: `url` without a path, and its model as `Settings.model_name` has it."""

    model_config = ConfigDict(frozen=True, strict=True)

    url: Annotated[str, StringConstraints(pattern=r"^http://[^/\s]+$")]
    pid: int
    model: str


@contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Hold the lock of the data directory's server until the block ends. Raises UsageError if another process has
    it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise UsageError(f"data directory {home} cannot be used: {e.strerror}; set HOLDFAST_HOME") from None
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{_other(home)}: use that one, stop it, or set HOLDFAST_HOME to another") from None
        yield
    finally:
        os.close(lock_fd)


def _other(home: Path) -> str:
    server = find_server(home)
    where = f"at {server.url} (pid {server.pid}, model {server.model})" if server else "(it is starting or stopping)"
    return f"the data directory {home} has a server already {where}"


@contextmanager
def announced(home: Path, url: str, model: str) -> Iterator[None]:
    """Write `server.json` until the block ends; inside `only_server`. Raises UsageError if it cannot be written."""
    host, colon, port = url.removeprefix("http://").rpartition(":")
    address = f"http://{ANYWHERE.get(host, host)}{colon}{port}"
    server = Server(url=address, pid=os.getpid(), model=model)
    fd = _written(home / FILE, server)
    try:
        yield
        (home / FILE).unlink(missing_ok=True)
    finally:
        os.close(fd)


def _written(path: Path, server: Server) -> int:
    """Write the file; gives the descriptor that holds its lock."""
    fresh = path.with_name(f"{FILE}.new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(fd, server.model_dump_json().encode())
            os.rename(fresh, path)
        except BaseException:
            os.close(fd)
            raise
    except OSError as e:
        raise UsageError(f"{fresh} cannot be written: {e.strerror}; make room there, or set HOLDFAST_HOME") from None
    return fd


def find_server(home: Path) -> Server | None:
    """The server that runs on this data directory, None without one.

    Raises UsageError if another user could have written the file: a client sends its token to that server.
    """
    path = home / FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd) as file:
        found = os.fstat(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # the process that wrote it runs
        else:
            return None
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(f"{path} can be written by others, so it is not believed: chmod 600 it, or remove it")
        try:
            return Server.model_validate_json(file.read())
        except (ValidationError, UnicodeDecodeError):
            raise UsageError(f"{path} does not say where the server is: restart the server") from None
