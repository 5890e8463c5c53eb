"""All responses of a server: making, finding, following, cancelling and deleting them. One per process.

Owns which records are in memory and who may see them. Must not know HTTP or sockets, nor how a model is run.
"""

import asyncio
import logging
import re
import secrets
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agent.app import App
from agent.encoding import EncodingError
from agent.server.access import User
from agent.server.agent_model import AGENT_MODEL, AgentModel, Turn
from agent.server.agent_model import run as run_turn
from agent.server.generation import Plan, run
from agent.server.items import Message, Opening, encode, fingerprints, normal_items, opening_of, talk_of
from agent.server.metrics import Metrics
from agent.server.output import response_object
from agent.server.quotas import Quotas
from agent.server.record import Record, record_of
from agent.server.requests import Create
from agent.server.sampling import forced_prefix, sampling_of
from agent.server.sequences import Sequences
from agent.server.slots import Slots
from agent.server.stall import watch
from agent.server.truncation import LEFT_SHARE, shortened
from agent.server.wire import ApiError, Json, bad, unsupported
from engine import EngineError
from memory import ResponseStore, StoredResponse, StoreError

log = logging.getLogger("holdfast.server")
ITEM_ID = re.compile(r"(?:rs|msg|fc|in)_([0-9a-f]{32})_?[0-9a-f]{1,5}")
MAX_ACTIVE = 32  # sampled at a time; the others wait
MAX_WAITING = 1024
MAX_RECORDS = 512  # in memory
MAX_RECORD_TOKENS = 2**23
COMPACT_REQUEST = "Sum up this conversation: what was asked, what was found and done, and what is still open."
KEPT_MESSAGES = 4  # of the user that stay word for word when a conversation is made short


def failure(error: Exception) -> ApiError:
    """What a client gets to know of a failure that is not its own: the disk, the model."""
    return ApiError(500, str(error), "server_error")


def _bytes_of(app: App, store: ResponseStore, name: str) -> int:
    """What a user's responses and sessions take on the disk."""
    sessions = [info.id for info in app.store.all() if info.owner == name]
    return app.keeper.snapshots.bytes_needed([*store.sessions_of(name), *sessions])


@dataclass
class Base:
    """What a request goes on from, and what is new in it."""

    opening: Opening
    system: list[str]
    messages: list[Message]
    digest: bytes  # of everything, the new messages included
    before: Record | None = None


@dataclass(eq=False)
class Service:
    """Made by `open`."""

    app: App
    model: str  # its name for clients
    store: ResponseStore
    sequences: Sequences
    agent: AgentModel
    quotas: Quotas
    metrics: Metrics
    group: asyncio.TaskGroup
    slots: Slots = field(default_factory=lambda: Slots(MAX_ACTIVE))
    records: "OrderedDict[str, Record]" = field(default_factory=OrderedDict)
    is_stopping: bool = False
    _by_digest: "OrderedDict[tuple[int, bytes], Record]" = field(default_factory=OrderedDict)
    _sessions: dict[str, int] = field(default_factory=dict)
    _preparing: "Counter[str]" = field(default_factory=Counter)  # requests that are not responses yet, by user

    @classmethod
    @asynccontextmanager
    async def open(cls, app: App, model: str, agent: AgentModel) -> AsyncIterator["Service"]:
        """On an open app; at the end whatever still runs is cancelled, and all state is saved."""
        sequences = Sequences(app.engine, app.keeper)
        app.park_other = sequences.park
        async with asyncio.TaskGroup() as group:
            store = ResponseStore(app.database, app.store)
            quotas = Quotas(lambda name: _bytes_of(app, store, name))
            service = cls(app, model, store, sequences, agent, quotas, Metrics(), group)
            is_busy = lambda: service.slots.num_held > 0 or agent.sessions.is_running  # noqa: E731
            watching = group.create_task(watch(service.metrics.loop_stall_s, is_busy))
            try:
                yield service
            finally:
                watching.cancel()
                service.is_stopping = True
                for record in service.in_flight():
                    service.stop(record)
        await sequences.aclose()

    def in_flight(self) -> list[Record]:
        return [record for record in self.records.values() if not record.is_over]

    async def create(self, user: User, request: Create, local: dict[str, Record] | None = None) -> Record:
        """Begin a response. `local` are responses that only this connection can go on from. Raises ApiError."""
        if self.is_stopping:
            raise ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
        self.check_model(request.model)
        under_way = Counter(record.owner for record in self.in_flight()) + self._preparing
        if under_way[user.name] >= user.max_waiting or under_way.total() >= MAX_WAITING:
            raise ApiError(429, "too many responses are waiting: try again later", "rate_limit_exceeded")
        self._preparing[user.name] += 1
        try:
            if request.store:
                await self.quotas.check(user)
            work: Plan | Turn
            if request.model == AGENT_MODEL:
                before = await self._previous(user, request.previous_response_id, local or {})
                record, work = await self.agent.begin(user, request, before, await self._session(user))
            else:
                record, work = await self._prepare(user, request, local or {})
            if request.background:
                await asyncio.to_thread(lambda: self.store.put_body(record.row(record.response)))
        except (StoreError, EngineError, EncodingError) as e:
            raise failure(e) from e
        finally:
            self._preparing[user.name] -= 1
        record.emit("response.created", {"response": record.response})
        self._remember(record)
        self.group.create_task(self._run(record, work))
        return record

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that this server does not have."""
        if name not in (self.model, AGENT_MODEL):
            text = f"The model '{name[:100]}' does not exist: this server has '{self.model}' and '{AGENT_MODEL}'."
            raise ApiError(404, text, "model_not_found", "model")

    async def get(self, user: User, id: str, local: dict[str, Record] | None = None) -> Record | None:
        """The response with this id, if this user may see it."""
        if local and id in local:
            return local[id]
        if (held := self.records.get(id)) is not None:
            return held if held.owner == user.name and held.is_stored else None
        row = await asyncio.to_thread(self.store.get, id, user.name)
        if row is None:
            return None
        ids = await asyncio.to_thread(self.store.ids, row.branch_id) if row.branch_id else array("i")
        record = await asyncio.to_thread(record_of, row, ids)
        if id not in self.records:  # nobody was faster
            self._remember(record)
        return self.records[id]

    async def delete(self, user: User, id: str) -> bool:
        record = await self.get(user, id)
        row = await asyncio.to_thread(self.store.get, id, user.name)
        if record is None:
            return False
        if not record.is_over:
            self.stop(record)
            await record.over()
            row = await asyncio.to_thread(self.store.get, id, user.name)
        self.forget(record)
        await self.sequences.drop(id, save=False)
        if row is not None:
            tails = await asyncio.to_thread(self.store.remove, row)
            await asyncio.to_thread(self.app.keeper.snapshots.remove_unused, tails)
            self.quotas.forget(user)
        return True

    def stop(self, record: Record) -> None:
        """End a response that runs; it is over a moment later."""
        record.is_cancelled = True
        if record.task is not None:
            record.task.cancel()

    def forget(self, record: Record) -> None:
        """Nobody can go on from it any more, unless it is stored."""
        self.records.pop(record.id, None)
        if self._by_digest.get((record.session_id, record.digest)) is record:
            del self._by_digest[record.session_id, record.digest]

    async def forget_local(self, record: Record) -> None:
        """The connection that it belonged to has ended."""
        if not record.is_over:
            self.stop(record)
            await record.over()
        self.forget(record)
        await self.sequences.drop(record.id)

    async def count_input(self, user: User, request: Create) -> int:
        """Tokens that the model would read."""
        self._refuse_agent(request)
        given = await self._resolved(user, request.input, {})
        base = await self._base(user, request, normal_items(given, "in_"), {})
        before = base.before.ids if base.before else array("i")
        return len(before) + len((await self._encoded(base))[0])

    async def compact(self, user: User, request: Create) -> Json:
        """The conversation in the model's own short words: items that another one can begin with."""
        self._refuse_agent(request)
        item: Json = {"type": "message", "role": "user", "content": COMPACT_REQUEST}
        given = normal_items(request.input, "in_")
        wanted = {"input": [*given, item], "store": False, "generate": True, "tool_choice": "none"}
        record = await self.create(user, request.model_copy(update=wanted))
        await record.over()
        await self.forget_local(record)
        response = record.response
        if response["status"] == "failed":
            raise ApiError(500, response["error"]["message"], "server_error")
        texts = [part["text"] for out in response["output"] if out["type"] == "message" for part in out["content"]]
        summary = {"id": f"cmp_{record.id[5:]}", "type": "compaction", "encrypted_content": "".join(texts)}
        kept = [item for item in given if item.get("role") == "user"][-KEPT_MESSAGES:]
        return {
            "id": record.id, "object": "response.compaction", "created_at": int(record.created_at),
            "output": [*kept, summary], "usage": response["usage"],
        }  # fmt: skip

    def _refuse_agent(self, request: Create) -> None:
        if request.model == AGENT_MODEL:
            raise unsupported(
                f"{AGENT_MODEL} keeps its conversations itself, and rolls them when they are long", "model"
            )

    async def _prepare(self, user: User, request: Create, local: dict[str, Record]) -> tuple[Record, Plan]:
        id = f"resp_{secrets.token_hex(16)}"
        wanted = await self._resolved(user, request.input, local)
        given = await asyncio.to_thread(normal_items, wanted, f"in_{id[5:]}_")
        base = await self._base(user, request, given, local)
        if base.before and base.before.response["model"] == AGENT_MODEL:
            raise bad(f"the previous response is {AGENT_MODEL}'s: go on with that model", "previous_response_id")
        if not base.messages and request.generate:
            raise bad("there is nothing to answer: input is empty", "input", "missing_required_parameter")
        base, ids, ahead = await self._fitting(user, request, given, local, base)
        before = base.before
        known = before.ids if before else array("i")
        settings, limit = self.app.settings, self.app.engine.max_context
        prefix = forced_prefix(request, base.opening)
        if prefix and request.generate:
            ids += self.app.engine.tokenizer.encode_protocol(prefix)
        total = len(known) + len(ids)
        if total + 1 > limit:
            text = f"This model's maximum context length is {limit} tokens, and the input has {total}."
            raise ApiError(400, text, "context_length_exceeded", "input")
        temperature = settings.temperature if request.temperature is None else request.temperature
        now = time.time()
        record = Record(
            id, user.name, await self._session(user), now,
            response_object(id, request, base.opening, now, temperature), given, base.opening.digest(), base.digest,
            before, known[:], len(known), before.branch if before else 0, system=base.system,
        )  # fmt: skip
        if not request.generate:
            record.pending = base.messages
            return record, Plan(ids[:ahead], None)
        params = await sampling_of(request, base.opening, self.app.engine, settings, temperature, limit - total)
        is_thinking = base.opening.thinking_mode == "thinking"
        return record, Plan(ids, params, is_thinking, prefix, request.parallel_tool_calls, tuple(request.stop))

    async def _fitting(
        self, user: User, request: Create, given: list[Json], local: dict[str, Record], base: Base
    ) -> tuple[Base, list[int], int]:
        """Where the conversation stands and the tokens of what is new; shortened when that is asked for, so that an
        answer has room too."""
        ids, ahead = await self._encoded(base)
        limit = self.app.engine.max_context
        wanted = request.max_output_tokens or self.app.settings.max_output_tokens
        most = limit - 1 - min(wanted, limit // 4)
        left: list[Json] | None = None
        while request.truncation == "auto" and (total := len(base.before.ids if base.before else ()) + len(ids)) > most:
            if left is None:
                previous = await self._previous(user, request.previous_response_id, local)
                left = [*(await self._items_up_to(user, previous, local) if previous else []), *given]
            fewer = await asyncio.to_thread(shortened, left, LEFT_SHARE * most / total)
            if fewer is None:
                break
            left = fewer
            base = await self._by_content(user, request, left)
            ids, ahead = await self._encoded(base)
        return base, ids, ahead

    async def _base(self, user: User, request: Create, given: list[Json], local: dict[str, Record]) -> Base:
        """Where the conversation of a request stands. With another opening it is read again from its items."""
        before = await self._previous(user, request.previous_response_id, local)
        if before is None:
            return await self._by_content(user, request, given)
        said = talk_of(given, before.calls, is_first=not before.ids and not before.pending)
        opening = opening_of(request, [*before.system, *said.system])
        if opening.digest() != before.opening:
            return await self._by_content(user, request, [*await self._items_up_to(user, before, local), *given])
        digest = fingerprints(before.digest, said.messages)[-1] if said.messages else before.digest
        return Base(opening, [*before.system, *said.system], [*before.pending, *said.messages], digest, before)

    async def _resolved(self, user: User, given: str | list[Json], local: dict[str, Record]) -> str | list[Json]:
        """The input with the items that it only refers to; their ids say which response they are of."""
        if isinstance(given, str):
            return given
        found: list[Json] = []
        for number, item in enumerate(given):
            if item.get("type") != "item_reference":
                found.append(item)
                continue
            wanted = item.get("id")
            of = ITEM_ID.fullmatch(wanted) if isinstance(wanted, str) else None
            record = await self.get(user, f"resp_{of[1]}", local) if of else None
            known = [*record.input, *record.response["output"]] if record else []
            same = [other for other in known if other["id"] == wanted]
            if not same:
                raise bad(f"Item with id '{str(wanted)[:100]}' not found.", f"input[{number}].id", "item_not_found")
            found += same[:1]
        return found

    async def _previous(self, user: User, id: str | None, local: dict[str, Record]) -> Record | None:
        if id is None:
            return None
        record = await self.get(user, id, local)
        if record is not None and not record.is_over:
            await record.over()
        if record is None or record.response["status"] == "failed":
            text = f"Previous response with id '{id[:100]}' not found."
            raise ApiError(400, text, "previous_response_not_found", "previous_response_id")
        return record

    async def _by_content(self, user: User, request: Create, given: list[Json]) -> Base:
        """A conversation that comes whole: it goes on from the response that has said its beginning, if there is one."""
        said = talk_of(given)
        opening = opening_of(request, said.system)
        start, session = opening.digest(), await self._session(user)
        digests = fingerprints(start, said.messages)
        base = Base(opening, said.system, said.messages, digests[-1] if digests else start)
        for at in range(len(digests) - 2, -1, -1):
            if said.messages[at]["role"] != "assistant":
                continue
            before = self._by_digest.get((session, digests[at]))
            if before is None:
                row = await asyncio.to_thread(self.store.latest, session, digests[at])
                before = await self.get(user, row.id) if row else None
            if before is not None and before.is_over and before.ids and not before.pending and before.opening == start:
                base.messages, base.before = said.messages[at + 1 :], before
                break
        return base

    async def _items_up_to(self, user: User, record: Record, local: dict[str, Record]) -> list[Json]:
        """Every item of a conversation, the response's own output last."""
        found: list[list[Json]] = []
        at: Record | None = record
        while at is not None:
            found.append([*at.input, *at.response["output"]])
            at = await self._previous(user, at.response["previous_response_id"], local)
        return [item for some in reversed(found) for item in some]

    async def _encoded(self, base: Base) -> tuple[list[int], int]:
        before, engine = base.before, self.app.engine
        ids, order = (before.ids, before.calls) if before else ((), {})
        if not base.messages and ids:
            return [], 0
        return await asyncio.to_thread(
            encode, engine.tokenizer, self.app.texts, base.opening, ids, order, base.messages
        )

    async def _session(self, user: User) -> int:
        """The session that holds this user's responses by this model."""
        if user.name not in self._sessions:
            identity = self.app.engine.identity
            session = await asyncio.to_thread(self.store.session, user.name, identity)
            self._sessions[user.name] = session.id
        return self._sessions[user.name]

    async def _run(self, record: Record, work: Plan | Turn) -> None:
        started = time.monotonic()
        try:
            if isinstance(work, Turn):
                response, usage = await run_turn(record, work)
                await self._finish(record, response)
            else:
                if self.slots.are_taken:
                    record.emit("response.queued", {"response": {**record.response, "status": "queued"}})
                async with self.slots.one(record.owner):
                    usage = await run(record, work, self.app.engine, self.sequences, self._finish)
        except Exception:  # a fault of ours in one response must not end the others
            log.exception("%s failed", record.id)
            error = {"code": "server_error", "message": "the server made a mistake: its log says which"}
            if not record.is_over:
                await self._finish(record, {**record.response, "status": "failed", "error": error})
            return
        self.metrics.response_ended(record.response["status"], time.monotonic() - started, usage)

    async def _finish(self, record: Record, response: Json) -> None:
        """Store the response if it is to be stored, then publish that it has ended. `ids` and `calls` are set."""
        is_agents = response["model"] == AGENT_MODEL  # whose conversation is found by its session alone
        if not is_agents and (said := talk_of(response["output"], is_first=False, answers_calls=False).messages):
            record.digest = fingerprints(record.digest, said)[-1]
        kind = response["status"] if response["status"] != "cancelled" else "incomplete"
        fields: Json = {"response": response}
        last = {"type": f"response.{kind}", **fields, "sequence_number": len(record.events)}
        stored = None
        if record.is_stored:
            try:
                stored = await asyncio.to_thread(self._store, record, response, last)
                record.branch = stored.branch_id
            except StoreError as e:
                error = {"code": "server_error", "message": f"the response could not be stored: {e}"}
                response, kind = {**response, "status": "failed", "error": error}, "failed"
                fields = {"response": response}
        record.before = None
        record.response = response
        record.emit(f"response.{kind}", fields)
        if stored is not None:
            record.pack(stored.body)
        if record.ids and response["status"] != "failed":
            self._by_digest[record.session_id, record.digest] = record
            while len(self._by_digest) > MAX_RECORDS:
                self._by_digest.popitem(last=False)

    def _store(self, record: Record, response: Json, last_event: Json) -> StoredResponse:
        """Gives it with the branch of its log; one of the agent has its log in a session."""
        row = record.row(response, last_event)
        if record.response["model"] == AGENT_MODEL:
            self.store.put_body(row)
            return row
        return self.store.put(row, record.ids, record.parent, record.known)

    def _remember(self, record: Record) -> None:
        """Keep a record in memory, and let the oldest that are over go: the stored ones come back when asked for."""
        self.records[record.id] = record
        num_tokens = sum(len(r.ids) for r in self.records.values())
        for old in list(self.records.values()):
            if len(self.records) <= MAX_RECORDS and num_tokens <= MAX_RECORD_TOKENS:
                break
            if old.is_over and old is not record:
                num_tokens -= len(old.ids)
                self.forget(old)
