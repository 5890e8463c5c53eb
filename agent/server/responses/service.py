"""All responses of a server: creates, runs, stores and deletes them. One per process.

Owns which responses are under way. Must not know HTTP or sockets, nor how a model is run.
"""

import asyncio
import errno
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from holdfast.agent.app import App
from holdfast.agent.encoding.encode import EncodingError
from holdfast.agent.events import Usage
from holdfast.agent.server.access import User
from holdfast.agent.server.conversations.kept import KeptConversations
from holdfast.agent.server.fairness import Slots
from holdfast.agent.server.json import ApiError, Json, unsupported
from holdfast.agent.server.metrics import Metrics, watch_loop
from holdfast.agent.server.quotas import Quotas
from holdfast.agent.server.responses.agent_model import AGENT_MODEL, AgentModel, Turn
from holdfast.agent.server.responses.agent_model import run as run_turn
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.agent.server.responses.conversation import Conversations, going_on
from holdfast.agent.server.responses.format import sampling_of, temperature_of
from holdfast.agent.server.responses.generation import Generation, run
from holdfast.agent.server.responses.items import normal_items
from holdfast.agent.server.responses.request import Create, is_hosted
from holdfast.agent.server.responses.resident import Sequences
from holdfast.agent.server.responses.response import End, Response, new_id, new_response
from holdfast.engine import EngineError
from holdfast.memory import ResponseStore, StoreError

log = logging.getLogger("holdfast.server")
MAX_ACTIVE = 32  # sampled at a time; the others wait
MAX_WAITING = 1024
COMPACT_REQUEST = "Sum up this conversation: what was asked, what was found and done, and what is still open."
KEPT_MESSAGES = 4  # of the user that stay word for word when a conversation is made short


def failure(error: Exception) -> ApiError:
    """The error that a client gets for a failure of the disk or the model."""
    if is_disk_full(error):
        return ApiError(507, f"{error}: the server's disk is full, its owner must make room", "insufficient_storage")
    return ApiError(500, str(error), "server_error")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the system or SQLite raised it because the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        error = error.__cause__
    return False


def _bytes_of(app: App, store: ResponseStore, name: str) -> int:
    """The bytes that a user's responses and sessions take on the disk."""
    sessions = [info.id for info in app.store.all() if info.owner == name]
    return app.snapshots.store.bytes_needed([*store.sessions_of(name), *sessions])


@dataclass(eq=False)
class Service:
    """Made by `open`."""

    app: App
    model: str  # its name for clients
    cache: ResponseCache
    conversations: Conversations
    kept: KeptConversations
    sequences: Sequences
    agent: AgentModel
    quotas: Quotas
    metrics: Metrics
    group: asyncio.TaskGroup
    slots: Slots = field(default_factory=lambda: Slots(MAX_ACTIVE))
    is_stopping: bool = False
    _preparing: "Counter[str]" = field(default_factory=Counter)  # requests that are not responses yet, by user

    @classmethod
    @asynccontextmanager
    async def open(cls, app: App, model: str, agent: AgentModel) -> AsyncIterator["Service"]:
        """A service on an open app. At the end responses that run are cancelled, and all state is saved."""
        sequences = Sequences(app.engine, app.snapshots)
        app.park_other = sequences.park
        async with asyncio.TaskGroup() as group:
            store = ResponseStore(app.database, app.store)
            cache = ResponseCache(store, app.engine.identity)
            quotas = Quotas(lambda name: _bytes_of(app, store, name))
            kept = KeptConversations(cache)
            conversations = Conversations(app, cache, kept)
            service = cls(app, model, cache, conversations, kept, sequences, agent, quotas, Metrics(), group)
            is_busy = lambda: service.slots.num_held > 0 or agent.sessions.is_running  # noqa: E731
            watching = group.create_task(watch_loop(service.metrics.loop_stall_s, is_busy))
            try:
                yield service
            finally:
                watching.cancel()
                service.is_stopping = True
                for response in service.cache.in_flight():
                    response.cancel()
        await sequences.aclose()

    async def create(
        self, user: User, request: Create, local: dict[str, Response] | None = None, prompt: list[int] | None = None
    ) -> Response:
        """Begin a response. `local` are responses that only this connection can go on from; `prompt` are tokens to
        continue instead of a conversation. Raises ApiError."""
        with ExitStack() as undo:
            if request.conversation_id is not None:
                self.kept.hold(user.name, request.conversation_id)
                undo.callback(self.kept.let_go, user.name, request.conversation_id)
            with self._admitted(user, request):
                try:
                    if request.store:
                        await self.quotas.check(user)
                    response, work = await self._begin(user, request, local or {}, prompt)
                    if request.background:
                        await self.cache.store_begun(response)
                except (StoreError, EngineError, EncodingError) as e:
                    raise failure(e) from e
            undo.pop_all()  # from now on its end lets the conversation go
        response.emit_object("response.created")
        if hosted := [tool["type"] for tool in request.tools if is_hosted(tool)]:
            response.emit_own("notice", {"message": f"this server does not have {', '.join(hosted)}: left out"})
        self.cache.remember(response)
        self.group.create_task(self._run(response, work))
        return response

    @contextmanager
    def _admitted(self, user: User, request: Create) -> Iterator[None]:
        """Count a request until it is a response. Raises ApiError if no response can begin now."""
        if self.is_stopping:
            raise ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
        self.check_model(request.model)
        under_way = Counter(response.owner for response in self.cache.in_flight()) + self._preparing
        num_users = len(under_way | Counter([user.name]))
        share = MAX_WAITING // max(num_users, 1)  # one user's responses keep no other user out
        is_full = under_way.total() >= MAX_WAITING and under_way[user.name] >= share
        if under_way[user.name] >= user.max_waiting or is_full:
            raise ApiError(429, "too many responses are waiting: try again later", "rate_limit_exceeded")
        self._preparing[user.name] += 1
        try:
            yield
        finally:
            self._preparing[user.name] -= 1

    async def _begin(
        self, user: User, request: Create, local: dict[str, Response], prompt: list[int] | None
    ) -> tuple[Response, Generation | Turn]:
        """The response, and the work that makes it. Raises ApiError."""
        if request.model == AGENT_MODEL:
            before = await self.cache.previous(user, request.previous_response_id, local)
            history = await self.kept.history(user.name, request.conversation_id)
            return await self.agent.begin(user, request, history, before, self.cache)
        id, engine, settings = new_id(), self.app.engine, self.app.settings
        if prompt is None:
            base = await self.conversations.start(user, request, id, local)
        else:
            base = going_on(request, prompt, engine.max_context)
        if request.generate:
            room = engine.max_context - base.num_tokens
            params = await sampling_of(request, base.opening, engine, settings, room=room)
            is_thinking = base.opening.thinking_mode == "thinking"
            work = Generation(base.ids, params, is_thinking, tuple(request.stop))
        else:
            work = Generation(base.ids[: base.num_ahead], None)
        response = new_response(
            id,
            request,
            base.opening,
            owner=user.name,
            session_id=await self.cache.session(user.name),
            input=base.given,
            digest=base.digest,
            temperature=temperature_of(request, settings),
            before=base.before,
            num_new_tokens=len(base.ids),
            system=base.system,
            pending=[] if request.generate else base.messages,
        )
        return response, work

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that this server does not have."""
        if name not in (self.model, AGENT_MODEL):
            text = f"The model '{name[:100]}' does not exist: this server has '{self.model}' and '{AGENT_MODEL}'."
            raise ApiError(404, text, "model_not_found", "model")

    async def delete(self, user: User, id: str) -> bool:
        """Delete a response with its stored state, cancelled first if it runs. Whether there was one."""
        response = await self.cache.get(user, id)
        row = await asyncio.to_thread(self.cache.store.get, id, user.name)
        if response is None:
            return False
        if not response.is_over:
            response.cancel()
            await response.over()
            row = await asyncio.to_thread(self.cache.store.get, id, user.name)
        self.cache.forget(response)
        await self.sequences.drop(id, save=False)
        self.sequences.beginnings.forget(response.owner)
        if row is not None:
            tails = await asyncio.to_thread(self.cache.store.remove, row)
            await asyncio.to_thread(self.app.snapshots.store.remove_unused, tails)
            self.quotas.forget(user)
        return True

    async def forget_local(self, response: Response) -> None:
        """Remove a response that is not stored: the connection that it belonged to has ended."""
        if not response.is_over:
            response.cancel()
            await response.over()
        self.cache.forget(response)
        await self.sequences.drop(response.id)

    async def count_input(self, user: User, request: Create) -> int:
        """The tokens that the model would read. Raises ApiError."""
        self._refuse_agent(request)
        return await self.conversations.count(user, request)

    async def compact(self, user: User, request: Create) -> Json:
        """Let the model sum a conversation up; gives items that another conversation can begin with."""
        self._refuse_agent(request)
        if request.conversation_id is not None:
            raise unsupported("conversation: send the items to make short as input", "conversation")
        item: Json = {"type": "message", "role": "user", "content": COMPACT_REQUEST}
        given = normal_items(request.input, "in_")
        wanted = {"input": [*given, item], "store": False, "generate": True, "tool_choice": "none"}
        response = await self.create(user, request.model_copy(update=wanted))
        await response.over()
        await self.forget_local(response)
        shown = response.object
        if shown["status"] == "failed":
            raise ApiError(500, shown["error"]["message"], "server_error")
        texts = [part["text"] for out in shown["output"] if out["type"] == "message" for part in out["content"]]
        summary = {"id": f"cmp_{response.id[5:]}", "type": "compaction", "encrypted_content": "".join(texts)}
        kept = [item for item in given if item.get("role") == "user"][-KEPT_MESSAGES:]
        return {
            "id": response.id,
            "object": "response.compaction",
            "created_at": int(response.created_at),
            "output": [*kept, summary],
            "usage": shown["usage"],
        }

    def _refuse_agent(self, request: Create) -> None:
        if request.model == AGENT_MODEL:
            raise unsupported(
                f"{AGENT_MODEL} keeps its conversations itself, and rolls them when they are long", "model"
            )

    async def _run(self, response: Response, work: Generation | Turn) -> None:
        """Make a response, from its first event to its last one."""
        started = time.monotonic()
        try:
            if isinstance(work, Turn):
                end = await run_turn(response, work)
                await self._finish(response, end)
            else:
                end = await self._generate(response, work)
        except Exception:  # a bug in one response must not end the others
            log.exception("%s failed", response.id)
            if not response.is_over:
                end = End(status="failed").failed("the server made a mistake: its log says which")
                await self._finish(response, end)
            return
        self.metrics.response_ended(response.status, time.monotonic() - started, end.usage or Usage())

    async def _generate(self, response: Response, work: Generation) -> End:
        """Wait for a slot and sample the response; what goes on from it waits until its sequence is given back."""
        if self.slots.are_taken:
            response.emit_object("response.queued", status="queued")
        async with self.slots.one(response.owner):
            end, seq = await run(response, work, self.app.engine, self.sequences)
            with self.sequences.settling(response):
                await self._finish(response, end)
                if seq is not None:
                    await self.sequences.give(response, seq)
        return end

    async def _finish(self, response: Response, end: End) -> None:
        """Store the response if it is to be stored, then publish its end."""
        try:
            stored = await self.cache.store_ended(response, end) if response.is_stored else None
            await self._keep(response, end)
        except (StoreError, ApiError) as e:
            response.finish(end.failed(f"the response could not be stored: {e}"))
            return
        response.finish(end, stored)
        if response.status != "failed" and (response.ids or response.agent_turn is not None):
            self.cache.ended(response)

    async def _keep(self, response: Response, end: End) -> None:
        """Add what was said to the conversation that the response belongs to, if any."""
        if "conversation" not in response.object:
            return
        id = response.object["conversation"]["id"]
        try:
            if end.status != "failed":
                await self.kept.add(response.owner, id, [*response.input, *end.output])
        finally:
            self.kept.let_go(response.owner, id)
