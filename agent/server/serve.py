"""`holdfast serve`: start, say where, run until told to stop, stop gracefully."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from agent import streams
from agent.app import App
from agent.config import POCKET, POCKET_DIR, Settings, UsageError
from agent.presence import announced, only_server
from agent.server.access import LOOPBACK, OWNER, Access, User, hash_of, own_token, users_of
from agent.server.agent_model import AgentModel
from agent.server.chat import create_chat
from agent.server.http import SERVICE, application
from agent.server.live import LiveSessions
from agent.server.service import Service
from agent.server.sessions import SESSIONS, WORKSPACE, routes
from agent.server.socket import SOCKETS, close_all
from agent.text import neutral

IDLE_S = 60.0  # of a connection that has not sent a whole request head
STOP_S = 5.0  # for responses under way to end by themselves


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    service: Service


def access_of(settings: Settings, host: str, users: Path | None) -> tuple[Access, str | None]:
    """Who may use the server, and the token to show when there is only one user. Raises UsageError.

    Whoever owns the data directory always may: their terminal attaches with the token that lies there.
    """
    hosts = tuple({*LOOPBACK, host.lower()})
    token = own_token(settings.home)
    owner = User(OWNER, hash_of(token))
    path = users or settings.home / "users.json"
    if users is None and not path.exists():
        return Access((owner,), hosts), token
    return Access((owner, *users_of(path)), hosts), None


def model_name(settings: Settings) -> str:
    return POCKET if settings.model_dir == POCKET_DIR else settings.model_dir.resolve().name


@asynccontextmanager
async def running(settings: Settings, access: Access, host: str, port: int, workspace: Path) -> AsyncIterator[Running]:
    """A server on this event loop; port 0 takes a free one. Raises UsageError when the address cannot be had.

    New agent sessions of whoever has the data work in `workspace`. Who connects while the model is loaded waits for it.
    """
    with closing(_listening(host, port)) as listener:
        async with (
            App.open(settings, lambda notice: streams.say(notice.message)) as app,
            LiveSessions.opened(app) as sessions,
            Service.open(app, model_name(settings), AgentModel(sessions, workspace)) as service,
        ):
            web_app = application(service, access)
            web_app[SESSIONS], web_app[WORKSPACE] = sessions, workspace
            web_app.add_routes(routes())
            web_app[SOCKETS] = set()
            web_app.router.add_post("/v1/chat/completions", create_chat)
            runner = web.AppRunner(
                web_app, access_log=None, handler_cancellation=True, shutdown_timeout=STOP_S, keepalive_timeout=IDLE_S
            )
            await runner.setup()
            try:
                await web.SockSite(runner, listener).start()
                shown = f"[{host}]" if ":" in host else host
                yield Running(f"http://{shown}:{listener.getsockname()[1]}", service)
                await _stop(web_app)
            finally:
                await runner.cleanup()


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        why = str(e.strerror).partition(" (while")[0]
        raise UsageError(f"{host}:{port} cannot be listened on: {why}; choose another --port or --host") from None


async def _stop(app: web.Application) -> None:
    """Take nothing new, let what runs end for a moment, and tell WebSocket clients to come back."""
    service = app[SERVICE]
    service.is_stopping = True
    ending = [asyncio.ensure_future(record.over()) for record in service.responses.in_flight()]
    if ending:
        await asyncio.wait(ending, timeout=STOP_S)
    for record in service.responses.in_flight():
        service.stop(record)
    await app[SESSIONS].aclose()
    await close_all(app)


def _set_aside_what_stays() -> None:
    """Modules and the model live as long as the process: a collection that looks at them stops everything for 0.2 s."""
    gc.collect()
    gc.freeze()


def serve(settings: Settings, host: str, port: int, users: Path | None, workspace: Path) -> int:
    """Until SIGINT or SIGTERM."""
    logging.basicConfig(format="holdfast: %(message)s")
    with only_server(settings.home):
        is_first = not (settings.home / "token").exists()
        access, token = access_of(settings, host, users)
        try:
            asyncio.run(_until_told(settings, access, token, is_first, host, port, workspace))
        except BaseExceptionGroup as group:  # raised inside task groups
            raise _innermost(group) from None
    return 0


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _until_told(
    settings: Settings, access: Access, token: str | None, is_first: bool, host: str, port: int, workspace: Path
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with running(settings, access, host, port, workspace) as server:
        _set_aside_what_stays()
        with announced(settings.home, server.url, settings.model_dir):
            name, path = neutral(model_name(settings)), neutral(str(settings.home / "token"))
            print(f"{name} at {server.url}/v1", flush=True)
            if token is None:
                print(f"{len(access.users) - 1} users, and the owner: token in {path}", flush=True)
                print(f"chat page {server.url}", flush=True)
            elif is_first:  # shown once: what is on a screen, or in a log, is seen by others
                print(f"token {token} (shown this once, kept in {path})", flush=True)
                print(f"chat page {server.url}/#token={token}", flush=True)
            else:
                print(f"token in {path}", flush=True)
                print(f"chat page {server.url}", flush=True)
            await stopped.wait()
        print("stopping: saving sessions", flush=True)
