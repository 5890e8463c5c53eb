"""Agent sessions that are open in the server: any number of clients watch one, and drive it one turn at a time.

Owns which are open, the turn that runs in each, and the approvals that wait for an answer. A turn belongs to its
session, not to the client that began it: it goes on when that client leaves. Must not know HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.agent.app import App
from holdfast.agent.config import UsageError, prompt_problem
from holdfast.agent.events import Answer, ApprovalNeeded, Error, Event, TurnDone
from holdfast.agent.permissions.modes import Policy
from holdfast.agent.server.event_log import EventLog
from holdfast.agent.server.json import ApiError, Json, bad
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.catalog import SessionCatalog
from holdfast.agent.session.restored import Part, Restored
from holdfast.agent.session.session import Session
from holdfast.agent.threads import to_end
from holdfast.memory import ResponseStore, SessionInfo, SessionInUse, StoreError

log = logging.getLogger("holdfast.server")
IDLE_S = 900.0  # a session that is neither watched nor used for so long is closed: then other processes can open it
CHECK_S = 30.0
MAX_OPEN = 64  # then the one that was unused for longest is closed for a new one
MAX_IN_USE = 32  # of one user, running or watched
MAX_EVENTS = 20_000  # kept of a turn, for clients that come late; a longer one loses its oldest
COUNTED = ("new", "from_memory", "from_disk", "prefilled_again", "output_tokens")


@dataclass(eq=False)
class OpenSession:
    """One open session. Made by `SessionHub`."""

    session: Session
    approvals: Approvals
    group: asyncio.TaskGroup
    events: EventLog = field(default_factory=lambda: EventLog(MAX_EVENTS))
    turn: int | None = None  # under way
    used_at: float = field(default_factory=time.monotonic)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    _task: "asyncio.Task[None] | None" = None
    _questions: "dict[str, tuple[ApprovalNeeded, asyncio.Future[Answer]]]" = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)  # in the last turn

    @property
    def info(self) -> SessionInfo:
        return self.session.log.session

    @property
    def is_running(self) -> bool:
        return self.turn is not None

    @property
    def is_in_use(self) -> bool:
        return self.is_running or self.events.num_watchers > 0

    async def begin(self, prompt: str, policy: Policy) -> str:
        """Start a turn; gives the id of the event before its first one. Raises ApiError."""
        if problem := prompt_problem(prompt):
            raise bad(problem, "prompt")
        await self._settled()
        self.turn, self.used_at = self.session.log.num_turns + 1, time.monotonic()
        after = self.events.last_id
        self.approvals.mode.set(policy)
        self._answered.clear()
        self.events.drop()
        self.events.append({"type": "user", "text": prompt, "turn": self.turn})
        self._task = self.group.create_task(self._run(prompt))
        return after

    def interrupt(self) -> None:
        """Cancel the turn that runs, if any; it is over a moment later."""
        if self.is_running and self._task is not None:
            self._task.cancel()

    async def cancel(self) -> bool:
        """As `interrupt`, and wait for its end. Whether a turn ran."""
        if not self.is_running or self._task is None:
            return False
        self.interrupt()
        await asyncio.wait({self._task})
        return True

    def answer(self, call_id: str, answer: Answer) -> None:
        """Answer the call that waits with this id; only the first answer counts. Raises ApiError."""
        if call_id in self._answered:
            raise ApiError(409, f"the call {call_id} has been answered already", "approval_answered", "id")
        if call_id not in self._questions:
            raise ApiError(404, f"no call waits for approval under the id {call_id}", "approval_not_found", "id")
        asked, question = self._questions[call_id]
        if answer.always and not (answer.approve and (asked.always_rule or asked.always_mode)):
            raise bad("always goes with an approval, of a call that offers a rule or a mode", "always")
        self._answered.add(call_id)
        del self._questions[call_id]
        question.set_result(answer)
        done: Json = {"type": "approval_done", "id": call_id, "approved": answer.approve}
        done |= {"always": asked.always_rule or f"mode: {asked.always_mode}"} if answer.always else {}
        self.events.append({**done, **({"reason": answer.reason} if answer.reason and not answer.approve else {})})

    async def rewind(
        self, turn: int | None, token: int | None, branch: int | None, part: Part, catalog: SessionCatalog
    ) -> Restored:
        """See `Session.rewind`. Raises ApiError while a turn runs, and for a place that is not there."""
        await self._settled()
        before, log = self.info, self.session.log
        try:
            restored = await self.session.rewind(turn, token, branch, part)
        except StoreError as e:
            raise bad(str(e)) from None
        self.used_at = time.monotonic()
        if part == "files":
            self.events.append({"type": "restored", "restored": restored.value()})
            return restored
        if branch is None:
            await to_end(catalog.rewound, before, log)
        self.events.drop()
        self.events.append(
            {"type": "rewound", "branch": self.info.branch, "turns": log.num_turns, "tokens": len(log.ids)}
        )
        return restored

    async def restore(self, is_undo: bool) -> Restored:
        """See `Session.undo` and `Session.redo`. Raises ApiError while a turn runs, and where nothing is to be done."""
        await self._settled()
        try:
            restored = await (self.session.undo() if is_undo else self.session.redo())
        except StoreError as e:
            raise ApiError(409, str(e), "nothing_restored") from None
        self.used_at = time.monotonic()
        self.events.append({"type": "restored", "restored": restored.value()})
        return restored

    async def ask(self, call: ApprovalNeeded) -> Answer:
        """Wait for a client's answer. The question itself is an event."""
        question: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[call.id] = call, question
        try:
            return await question
        finally:
            self._questions.pop(call.id, None)

    async def aclose(self) -> None:
        """Save and close the session: other processes can open it."""
        await self.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})
        await self.session.aclose()
        self.events.close()

    async def _settled(self) -> None:
        """Wait until the last turn has begun its save. Raises ApiError while a turn runs."""
        while self._task is not None and not self._task.done():
            if self.is_running:
                break
            await asyncio.wait({self._task})
        if self.is_running:
            raise ApiError(409, "a turn of this session is under way: wait for its end, or cancel it", "turn_running")
        if self.session.is_closed:
            raise ApiError(409, "the session was closed meanwhile: try again", "session_closed")

    async def _run(self, prompt: str) -> None:
        """Run one turn. Its last event is always TurnDone, Error or `interrupted`."""
        try:
            async with aclosing(self.session.turn(prompt)) as events:
                async for event in events:
                    self._publish(event)
        except Exception:  # a bug in one session must not end the others
            log.exception("a turn of session %s failed", self.session.name)
            self._publish(Error(message="the server made a mistake: its log says which"))
        finally:
            self._end({"type": "interrupted"})

    def _publish(self, event: Event) -> None:
        if isinstance(event, TurnDone):
            for name in COUNTED:
                self.counts[name] += getattr(event.usage, name)
        if isinstance(event, TurnDone | Error):
            self._end(event.model_dump(mode="json"))
        else:
            self.events.append(event.model_dump(mode="json"))

    def _end(self, event: Json) -> None:
        """Publish the last event of a turn, once. The turn may still be saving."""
        if self.turn is not None:
            self.turn, self.used_at = None, time.monotonic()
            self.events.append(event)


class SessionHub:
    """All open sessions, by owner and name. Made by `opened`."""

    def __init__(self, app: App, group: asyncio.TaskGroup):
        self.app, self.catalog = (
            app,
            SessionCatalog(app.store, app.snapshots.store, ResponseStore(app.database, app.store)),
        )
        self.is_stopping = False
        self._group = group
        self._open: dict[str, OpenSession] = {}
        self._lock = asyncio.Lock()  # of opening and closing

    @classmethod
    @asynccontextmanager
    async def opened(cls, app: App) -> AsyncIterator["SessionHub"]:
        """A hub that is closed when the block ends; see `aclose`."""
        async with asyncio.TaskGroup() as group:
            sessions = cls(app, group)
            closing = group.create_task(sessions._close_idle())
            try:
                yield sessions
            finally:
                closing.cancel()
                await sessions.aclose()

    @property
    def is_running(self) -> bool:
        """Whether a turn runs in any session."""
        return any(opened.is_running for opened in self._open.values())

    async def aclose(self) -> None:
        """Save and close every session; none can be opened any more. Turns that run are interrupted."""
        self.is_stopping = True
        for name in list(self._open):
            await self.close(name)

    def find(self, info: SessionInfo) -> OpenSession | None:
        """The session, if it is open here."""
        return self._open.get(info.name)

    async def open(self, info: SessionInfo) -> OpenSession:
        """The session, opened if it is not. Raises ApiError if another process has it or its workspace is gone,
        StoreError if it is damaged."""
        async with self._lock:
            opened = self._open.get(info.name)
            if opened is None:
                opened = await self._opened(Path(info.workspace), info.owner, info.name.rpartition("/")[2])
            opened.used_at = time.monotonic()
            return opened

    async def create(self, workspace: Path, owner: str, name: str | None, prompt: str = "") -> OpenSession:
        """A new session; see `App.session`."""
        async with self._lock:
            return await self._opened(workspace, owner, name, is_new=True, prompt=prompt)

    async def close(self, name: str) -> None:
        """Save and close a session, if it is open."""
        async with self._lock:
            if (opened := self._open.pop(name, None)) is not None:
                await opened.aclose()

    async def _opened(
        self, workspace: Path, owner: str, name: str | None, *, is_new: bool = False, prompt: str = ""
    ) -> OpenSession:
        if self.is_stopping:
            raise ApiError(503, "the server is stopping: try again in a moment", "server_stopping")
        await self._make_room(owner)
        approvals = Approvals(Policy.ASK, lambda call: opened.ask(call))
        try:
            session = await self.app.session(workspace, approvals, name, is_new, owner, prompt)
        except SessionInUse as e:
            raise ApiError(409, str(e), "session_in_use") from None
        except UsageError as e:
            raise bad(str(e), "workspace") from None
        opened = OpenSession(session, approvals, self._group)
        self._open[opened.info.name] = opened
        return opened

    async def _make_room(self, owner: str) -> None:
        """Close the session that was unused for longest if there are too many. Sessions in use are limited per user,
        so that one user cannot take all. Raises ApiError."""
        in_use = [opened for opened in self._open.values() if opened.is_in_use]
        if sum(opened.info.owner == owner for opened in in_use) >= MAX_IN_USE:
            text = f"{MAX_IN_USE} of your sessions are running or watched: end some first"
            raise ApiError(429, text, "too_many_sessions")
        unused = [opened for opened in self._open.values() if not opened.is_in_use]
        if len(self._open) >= MAX_OPEN and unused:
            oldest = min(unused, key=lambda opened: opened.used_at)
            del self._open[oldest.info.name]
            await oldest.aclose()

    async def _close_idle(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            for name, opened in list(self._open.items()):
                if not opened.is_in_use and time.monotonic() - opened.used_at >= IDLE_S:
                    await self.close(name)
