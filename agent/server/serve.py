"""`holdfast serve`: start, print the address, run until a signal comes, stop gracefully."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from holdfast.agent import streams
from holdfast.agent.app import App
from holdfast.agent.attach.discovery import ANYWHERE, announced, only_server
from holdfast.agent.config import POCKET, POCKET_DIR, Settings, UsageError
from holdfast.agent.server.access import LOOPBACK, OWNER, Access, User, hash_of, host_name, origin_of, own_token
from holdfast.agent.server.connections import Connections, Site, connection_limit
from holdfast.agent.server.conversations.routes import routes as conversation_routes
from holdfast.agent.server.http import CONNECTIONS, SERVICE, application
from holdfast.agent.server.log import PERIOD_S, BoundedHandler
from holdfast.agent.server.responses.agent_model import AgentModel
from holdfast.agent.server.responses.service import Service
from holdfast.agent.server.responses.websocket import SOCKETS, close_all
from holdfast.agent.server.sessions.hub import SessionHub
from holdfast.agent.server.sessions.routes import SESSIONS, WORKSPACE, routes
from holdfast.agent.server.translations.chat_completions import create_chat
from holdfast.agent.server.translations.completions import create_completion
from holdfast.agent.server.translations.messages import add_messages
from holdfast.agent.server.users import users_of
from holdfast.agent.terminal.sanitize import neutral

IDLE_S = 60.0  # of a connection that has not sent a whole request head
STOP_S = 5.0  # for responses under way to end by themselves


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    service: Service
    connections: Connections


def access_of(
    settings: Settings, host: str, users: Path | None, names: Iterable[str] = (), origins: Iterable[str] = ()
) -> tuple[Access, str | None]:
    """Who may use the server, and the token to show when there is only one user. Raises UsageError.

    The owner of the data directory always may: the terminal attaches with the token stored there.
    """
    hosts = (*map(host_name, names), *LOOPBACK, host.lower())
    allowed = tuple(map(origin_of, origins))
    token = own_token(settings.home)
    owner = User(OWNER, hash_of(token))
    path = users or settings.home / "users.json"
    if users is None and not path.exists():
        return Access((owner,), hosts, allowed), token
    return Access((owner, *users_of(path)), hosts, allowed), None


def model_name(settings: Settings) -> str:
    return POCKET if settings.model_dir == POCKET_DIR else settings.model_dir.resolve().name


@asynccontextmanager
async def running(settings: Settings, access: Access, host: str, port: int, workspace: Path) -> AsyncIterator[Running]:
    """A server on this event loop; port 0 takes a free one. Raises UsageError when the address cannot be had.

    New agent sessions of the data directory's owner work in `workspace`. A client that connects while the model is
    loaded waits for it.
    """
    with closing(_listening(host, port)) as listener:
        async with (
            App.open(settings, lambda notice: streams.say(notice.message)) as app,
            SessionHub.opened(app) as sessions,
            Service.open(app, model_name(settings), AgentModel(sessions, workspace)) as service,
        ):
            web_app = routed(service, access, sessions, workspace)
            options = {"access_log": None, "keepalive_timeout": IDLE_S, "auto_decompress": False}
            web_app[CONNECTIONS] = connections = Connections(connection_limit(), options)
            runner = web.AppRunner(web_app, handler_cancellation=True, shutdown_timeout=STOP_S)
            await runner.setup()
            try:
                await Site(runner, listener, connections).start()
                shown = f"[{host}]" if ":" in host else host
                yield Running(f"http://{shown}:{listener.getsockname()[1]}", service, connections)
                await _stop(web_app)
            finally:
                await runner.cleanup()


def routed(service: Service, access: Access, sessions: SessionHub, workspace: Path) -> web.Application:
    """The application with the routes of all APIs."""
    app = application(service, access)
    app[SESSIONS], app[WORKSPACE], app[SOCKETS] = sessions, workspace, set()
    app.add_routes([*routes(), *conversation_routes()])
    app.router.add_post("/v1/chat/completions", create_chat)
    app.router.add_post("/v1/completions", create_completion)
    add_messages(app)
    return app


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        why = str(e.strerror).partition(" (while")[0]
        raise UsageError(f"{host}:{port} cannot be listened on: {why}; choose another --port or --host") from None


async def _stop(app: web.Application) -> None:
    """Refuse new responses, give those that run a moment to end, and tell WebSocket clients to reconnect."""
    service = app[SERVICE]
    service.is_stopping = True
    ending = [asyncio.ensure_future(response.over()) for response in service.cache.in_flight()]
    if ending:
        await asyncio.wait(ending, timeout=STOP_S)
    for response in service.cache.in_flight():
        response.cancel()
    await app[SESSIONS].aclose()
    await close_all(app)


def _set_aside_what_stays() -> None:
    """Exclude modules and the model from garbage collection: they are never freed, and scanning them takes 0.2 s."""
    gc.collect()
    gc.freeze()


def serve(
    settings: Settings,
    host: str,
    port: int,
    users: Path | None,
    workspace: Path,
    names: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> int:
    """Run the server until SIGINT or SIGTERM; gives the exit code. Raises UsageError."""
    logging.basicConfig(handlers=[BoundedHandler()])
    settings = replace(settings, own_files=(users,) if users else ())
    with only_server(settings.home):
        is_first = not (settings.home / "token").exists()
        access, token = access_of(settings, host, users, names, origins)
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
        logged = loop.create_task(_say_what_the_log_left_out())
        with announced(settings.home, server.url, settings.model_name):
            _print_where(settings, reachable(server.url, access.hosts), access, token, is_first)
            await stopped.wait()
        logged.cancel()
        print("stopping: saving sessions", flush=True)


def _print_where(settings: Settings, url: str, access: Access, token: str | None, is_first: bool) -> None:
    name, path = neutral(model_name(settings)), neutral(str(settings.home / "token"))
    print(f"{name} at {url}/v1", flush=True)
    if token is None:
        print(f"{len(access.users) - 1} users, and the owner: token in {path}", flush=True)
        print(f"chat page {url}", flush=True)
    elif is_first:  # shown once: what is on a screen, or in a log, is seen by others
        print(f"token {token} (shown this once, kept in {path})", flush=True)
        print(f"chat page {url}/#token={token}", flush=True)
    else:
        print(f"token in {path}", flush=True)
        print(f"chat page {url}", flush=True)


def reachable(url: str, hosts: Sequence[str]) -> str:
    """The server's URL as a browser can open it. Where it listens on every address, that is its first --name, or this
    machine's address."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    if host not in ANYWHERE:
        return url
    name = hosts[0] if hosts and hosts[0] not in LOOPBACK else _own_address() if host == "0.0.0.0" else ANYWHERE[host]
    return f"http://{name}:{port}"


def _own_address() -> str:
    """This machine's address in its network, that of the way out; loopback without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation: connecting a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


async def _say_what_the_log_left_out() -> None:
    while True:
        await asyncio.sleep(PERIOD_S)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, BoundedHandler):
                handler.say_left_out()
