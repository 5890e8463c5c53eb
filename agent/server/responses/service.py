"""All responses of a server: making, running, cancelling and deleting them. One per process.

Owns what is under way and how it ends. Must not know HTTP or sockets, nor how a model is run.
"""

import asyncio
import errno
import logging
import secrets
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from holdfast.agent.app import App
from holdfast.agent.encoding.encode import EncodingError
from holdfast.agent.server.access import User
from holdfast.agent.server.conversations.kept import KeptConversations
from holdfast.agent.server.fairness import Slots
from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.metrics import Metrics
from holdfast.agent.server.quotas import Quotas
from holdfast.agent.server.responses.agent_model import AGENT_MODEL, AgentModel, Turn
from holdfast.agent.server.responses.agent_model import run as run_turn
from holdfast.agent.server.responses.cache import ResponseCache
from holdfast.agent.server.responses.conversation import Base, Conversations, going_on
from holdfast.agent.server.responses.format import sampling_of
from holdfast.agent.server.responses.generation import Plan, run
from holdfast.agent.server.responses.items import fingerprints, normal_items, talk_of
from holdfast.agent.server.responses.output import response_object
from holdfast.agent.server.responses.request import OWN_EVENTS, Create, is_hosted
from holdfast.agent.server.responses.resident import Sequences
from holdfast.agent.server.responses.response import Response
from holdfast.agent.server.responses.transcript import answer_of, digests
from holdfast.agent.server.stall import watch
from holdfast.agent.server.validation import Names
from holdfast.engine import EngineError, TooManyTokens
from holdfast.memory import ResponseStore, StoredResponse, StoreError

log = logging.getLogger("holdfast.server")
MAX_ACTIVE = 32  # sampled at a time; the others wait
MAX_WAITING = 1024
COMPACT_REQUEST = "Sum up this conversation: what was asked, what was found and done, and what is still open."
KEPT_MESSAGES = 4  # of the user that stay word for word when a conversation is made short


def failure(error: Exception) -> ApiError:
    """What a client gets to know of a failure that is not its own: the disk, the model."""
    if is_disk_full(error):
        return ApiError(507, f"{error}: the server's disk is full, its owner must make room", "insufficient_storage")
    return ApiError(500, str(error), "server_error")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether it was raised for want of room, by the system or by SQLite."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        error = error.__cause__
    return False


def _bytes_of(app: App, store: ResponseStore, name: str) -> int:
    """What a user's responses and sessions take on the disk."""
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
        """On an open app; at the end whatever still runs is cancelled, and all state is saved."""
        sequences = Sequences(app.engine, app.snapshots)
        app.park_other = sequences.park
        async with asyncio.TaskGroup() as group:
            store = ResponseStore(app.database, app.store)
            cache = ResponseCache(store, app.engine.identity)
            quotas = Quotas(lambda name: _bytes_of(app, store, name))
            conversations, kept = Conversations(app, cache), KeptConversations(cache)
            service = cls(app, model, cache, conversations, kept, sequences, agent, quotas, Metrics(), group)
            is_busy = lambda: service.slots.num_held > 0 or agent.sessions.is_running  # noqa: E731
            watching = group.create_task(watch(service.metrics.loop_stall_s, is_busy))
            try:
                yield service
            finally:
                watching.cancel()
                service.is_stopping = True
                for response in service.cache.in_flight():
                    service.stop(response)
        await sequences.aclose()

    async def create(
        self, user: User, request: Create, local: dict[str, Response] | None = None, prompt: list[int] | None = None
    ) -> Response:
        """Begin a response. `local` are responses that only this connection can go on from; `prompt` are tokens to go on
        from as they are, instead of a conversation. Raises ApiError."""
        if request.conversation_id is None:
            return await self._create(user, request, local or {}, prompt)
        self.kept.hold(user.name, request.conversation_id)
        try:
            return await self._create(user, request, local or {}, prompt)
        except BaseException:
            self.kept.let_go(user.name, request.conversation_id)
            raise

    async def _create(
        self, user: User, request: Create, local: dict[str, Response], prompt: list[int] | None
    ) -> Response:
        if self.is_stopping:
            raise ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
        self.check_model(request.model)
        under_way = Counter(response.owner for response in self.cache.in_flight()) + self._preparing
        share = MAX_WAITING // max(
            len(under_way | Counter([user.name])), 1
        )  # nobody is kept out by what others wait for
        is_full = under_way.total() >= MAX_WAITING and under_way[user.name] >= share
        if under_way[user.name] >= user.max_waiting or is_full:
            raise ApiError(429, "too many responses are waiting: try again later", "rate_limit_exceeded")
        self._preparing[user.name] += 1
        try:
            if request.store:
                await self.quotas.check(user)
            work: Plan | Turn
            if request.model == AGENT_MODEL:
                before = await self.cache.previous(user, request.previous_response_id, local)
                session = await self.cache.session(user.name)
                find = lambda digest: self.cache.with_content(user, session, digest)  # noqa: E731
                history, asked = await self._with_history(user, request)
                response, work = await self.agent.begin(user, asked, before, session, find)
                response.input = response.input[len(history) :]
            else:
                response, work = await self._prepare(user, request, local, prompt)
            if request.background:
                await asyncio.to_thread(lambda: self.cache.store.put_body(response.row(response.object)))
        except (StoreError, EngineError, EncodingError) as e:
            raise failure(e) from e
        finally:
            self._preparing[user.name] -= 1
        response.emit("response.created", {"response": response.object})
        if hosted := [tool["type"] for tool in request.tools if is_hosted(tool)]:
            response.emit_own("notice", {"message": f"this server does not have {', '.join(hosted)}: left out"})
        self.cache.remember(response)
        self.group.create_task(self._run(response, work))
        return response

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that this server does not have."""
        if name not in (self.model, AGENT_MODEL):
            text = f"The model '{name[:100]}' does not exist: this server has '{self.model}' and '{AGENT_MODEL}'."
            raise ApiError(404, text, "model_not_found", "model")

    async def delete(self, user: User, id: str) -> bool:
        response = await self.cache.get(user, id)
        row = await asyncio.to_thread(self.cache.store.get, id, user.name)
        if response is None:
            return False
        if not response.is_over:
            self.stop(response)
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

    def stop(self, response: Response) -> None:
        """End a response that runs; it is over a moment later."""
        response.is_cancelled = True
        if response.task is not None:
            response.task.cancel()

    def leave(self, response: Response) -> None:
        """The client that asked for it is gone: it ends as incomplete, unless it runs in the background."""
        if not response.object["background"]:
            response.is_left = True
            self.stop(response)

    async def forget_local(self, response: Response) -> None:
        """The connection that it belonged to has ended."""
        if not response.is_over:
            self.stop(response)
            await response.over()
        self.cache.forget(response)
        await self.sequences.drop(response.id)

    async def count_input(self, user: User, request: Create) -> int:
        """Tokens that the model would read."""
        self._refuse_agent(request)
        given = await self.conversations.resolved(user, request.input, {})
        history = await self._history(user, request)
        base = await self.conversations.base(user, request, [*history, *normal_items(given, "in_")], {})
        before = base.before.ids if base.before else array("i")
        try:
            return len(before) + len((await self.conversations.encoded(base))[0])
        except TooManyTokens as e:
            raise ApiError(400, str(e), "context_length_exceeded", "input") from None

    async def compact(self, user: User, request: Create) -> Json:
        """The conversation in the model's own short words: items that another one can begin with."""
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
            "id": response.id, "object": "response.compaction", "created_at": int(response.created_at),
            "output": [*kept, summary], "usage": shown["usage"],
        }  # fmt: skip

    def _refuse_agent(self, request: Create) -> None:
        if request.model == AGENT_MODEL:
            raise unsupported(
                f"{AGENT_MODEL} keeps its conversations itself, and rolls them when they are long", "model"
            )

    async def _prepare(
        self, user: User, request: Create, local: dict[str, Response], prompt: list[int] | None
    ) -> tuple[Response, Plan]:
        id = f"resp_{secrets.token_hex(16)}"
        if prompt is None:
            given, base, ids, ahead = await self._said(user, request, id, local)
        else:
            given, base, ids, ahead = [], going_on(request, prompt), prompt[:], 0
        before = base.before
        known = before.ids if before else array("i")
        settings, limit = self.app.settings, self.app.engine.max_context
        total = len(known) + len(ids)
        if total + 1 > limit:
            text = f"This model's maximum context length is {limit} tokens, and the input has {total}."
            raise ApiError(400, text, "context_length_exceeded", "input")
        temperature = settings.temperature if request.temperature is None else request.temperature
        now = time.time()
        response = Response(
            id, user.name, await self.cache.session(user.name), now,
            response_object(id, request, base.opening, now, temperature), given, base.opening.digest(), base.digest,
            before, known[:], len(known), before.branch if before else 0, system=base.system,
            wants_own_events=OWN_EVENTS in request.include, num_input_tokens=total,
        )  # fmt: skip
        if not request.generate:
            response.pending = base.messages
            return response, Plan(ids[:ahead], None)
        params = await sampling_of(request, base.opening, self.app.engine, settings, temperature, limit - total)
        is_thinking = base.opening.thinking_mode == "thinking"
        return response, Plan(ids, params, is_thinking, tuple(request.stop))

    async def _said(
        self, user: User, request: Create, id: str, local: dict[str, Response]
    ) -> tuple[list[Json], Base, list[int], int]:
        """The items given, where their conversation stands, the tokens of what is new, and how many can be read ahead."""
        wanted = await self.conversations.resolved(user, request.input, local)
        given = await asyncio.to_thread(normal_items, wanted, f"in_{id[5:]}_")
        history = await self._history(user, request)
        said = [*history, *given]
        try:
            base = await self.conversations.base(user, request, said, local)
            if base.before and base.before.object["model"] == AGENT_MODEL:
                text = f"the previous response is {AGENT_MODEL}'s: go on with that model"
                raise bad(text, "previous_response_id")
            if not base.messages and request.generate:
                raise bad("input is empty: there is nothing to answer", "input", "missing_required_parameter")
            return given, *await self.conversations.fitting(user, request, said, local, base)
        except ApiError as e:
            names = [*(["conversation"] * len(history)), *(f"input[{number}]" for number in range(len(given)))]
            raise Names({}, names).said(e) from None

    async def _history(self, user: User, request: Create) -> list[Json]:
        """The items of the kept conversation that a request belongs to."""
        if request.conversation_id is None:
            return []
        return await self.kept.items(user.name, await self.kept.get(user.name, request.conversation_id, "conversation"))

    async def _with_history(self, user: User, request: Create) -> tuple[list[Json], Create]:
        """It, and the request with it before its own input."""
        history = await self._history(user, request)
        given = request.input
        items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
        return history, request.model_copy(update={"input": [*history, *items]}) if history else request

    async def _run(self, response: Response, work: Plan | Turn) -> None:
        started = time.monotonic()
        try:
            if isinstance(work, Turn):
                ended, usage = await run_turn(response, work)
                await self._finish(response, ended)
            else:
                if self.slots.are_taken:
                    response.emit("response.queued", {"response": {**response.object, "status": "queued"}})
                async with self.slots.one(response.owner):
                    usage = await run(response, work, self.app.engine, self.sequences, self._finish)
        except Exception:  # a fault of ours in one response must not end the others
            log.exception("%s failed", response.id)
            error = {"code": "server_error", "message": "the server made a mistake: its log says which"}
            if not response.is_over:
                await self._finish(response, {**response.object, "status": "failed", "error": error})
            return
        self.metrics.response_ended(response.object["status"], time.monotonic() - started, usage)

    async def _finish(self, response: Response, ended: Json) -> None:
        """Store the response if it is to be stored, then publish that it has ended. `ids` and `calls` are set."""
        is_agents = ended["model"] == AGENT_MODEL  # which has its log in a session
        if is_agents:
            response.digest = [response.digest, *digests(answer_of(ended["output"]), response.digest)][-1]
        elif said := talk_of(ended["output"], is_first=False, answers_calls=False).messages:
            response.digest = fingerprints(response.digest, said)[-1]
        kind = ended["status"] if ended["status"] != "cancelled" else "incomplete"
        fields: Json = {"response": ended}
        last = {"type": f"response.{kind}", **fields, "sequence_number": len(response.events)}
        stored = None
        try:
            if response.is_stored:
                stored = await asyncio.to_thread(self._store, response, ended, last)
                response.branch = stored.branch_id
            await self._keep(response, ended)
        except (StoreError, ApiError) as e:
            error = {"code": "server_error", "message": f"the response could not be stored: {e}"}
            ended, kind = {**ended, "status": "failed", "error": error}, "failed"
            fields = {"response": ended}
        response.before = None
        response.object = ended
        response.emit(f"response.{kind}", fields)
        if stored is not None:
            response.pack(stored.body)
        if (response.ids or is_agents) and ended["status"] != "failed":
            self.cache.ended(response)

    async def _keep(self, response: Response, ended: Json) -> None:
        """Add what was said to the conversation that it belongs to, if any."""
        if "conversation" not in ended:
            return
        id = ended["conversation"]["id"]
        try:
            if ended["status"] != "failed":
                await self.kept.add(response.owner, id, [*response.input, *ended["output"]])
        finally:
            self.kept.let_go(response.owner, id)

    def _store(self, response: Response, ended: Json, last_event: Json) -> StoredResponse:
        """Gives it with the branch of its log; one of the agent has its log in a session."""
        row = response.row(ended, last_event)
        if response.object["model"] == AGENT_MODEL:
            self.cache.store.put_body(row)
            return row
        return self.cache.store.put(row, response.ids, response.parent, response.known)
