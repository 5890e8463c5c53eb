"""A session that is open in the server of this data directory, with the interface of `Session` for the terminal.

One stream of its events is open as long as this object is. `turn` yields the events of this client's turn; events of
other clients' turns go to `on_other`. The server owns the session: if the connection is lost, the turn goes on there
and no event is lost. Must not know HTTP (`http.py`) nor how events are shown.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from holdfast.agent.attach.approval import RETRY_S, Frame, Question
from holdfast.agent.attach.discovery import Server
from holdfast.agent.attach.http import Connection, Json, Refused, Unreachable
from holdfast.agent.config import prompt_problem
from holdfast.agent.events import Answer, ApprovalNeeded, Ask, Error, Event, Notice, Text, TurnDone
from holdfast.agent.permissions.modes import Mode, Policy
from holdfast.agent.session.fresh import Fresh, OpenSession, Timeline
from holdfast.agent.session.left_behind import branch_value_of
from holdfast.agent.session.restored import Part, Restored
from holdfast.memory import SCANNED_CHARS, StoreError

LOST_S = 20.0  # a server that is started again answers by then, unless its model is large
STOP_S = 10.0  # for the end of a turn that was cancelled to be told
KEPT = "the session keeps what was done"
ENDS = ("turn_done", "error", "interrupted")
EVENTS = {kind.model_fields["type"].default: kind for kind in get_args(Event)}


@asynccontextmanager
async def attached(
    home: Path, server: Server, workspace: Path, mode: Mode, ask: Ask | None, on_other: Callable[[Event], None]
) -> AsyncIterator[OpenSession]:
    """Gives a function that opens sessions in the server, see `App.session`. Raises UsageError, the function
    StoreError.

    `ask` answers calls of our turns that `mode` leaves to the user; without it they are refused.
    """
    connection = Connection(home, server)

    async def begun(**body: Any) -> RemoteSession:
        session = await connection.call("POST", "/v1/sessions", {"workspace": str(workspace), **body})
        return RemoteSession(connection, session, mode, ask, on_other)

    async def open_session(name: str | None, is_new: bool) -> Timeline:
        notices = []
        if name:
            return await begun(resume=not is_new, name=name)
        if not is_new:
            try:
                return await begun(resume=True, create=False)
            except Refused as e:
                if e.code not in ("no_session", "session_moved"):
                    raise
                notices = [str(e)] if e.code == "session_moved" else []
        return Fresh(lambda prompt: begun(prompt=prompt[:SCANNED_CHARS]), notices)

    try:
        yield open_session
    finally:
        await connection.close()


class RemoteSession:
    """One session, until `aclose`; it stays open in the server. One turn of this client at a time."""

    def __init__(
        self, connection: Connection, session: Json, mode: Mode, ask: Ask | None, on_other: Callable[[Event], None]
    ):
        self.name: str = session["name"]
        self.num_turns: int = session["turns"]
        self.num_tokens: int = session["tokens"]
        self._connection, self._path = connection, f"/v1/sessions/{session['name']}"
        self._workspace: str = session["workspace"]
        self._mode, self._ask, self._on_other = mode, ask, on_other
        self._last_id: str | None = None
        self._own: asyncio.Queue[Frame] | None = None  # frames that come while this client's turn runs
        self._asked: ApprovalNeeded | None = None  # by another client's turn, without an answer yet
        self._num_rewinds = 0  # rewinds and undos of this client whose event has not come yet
        self._heard = asyncio.Event()  # the stream has begun or failed
        self._listening = asyncio.ensure_future(self._listen())

    async def turn(self, prompt: str) -> AsyncGenerator[Event, None]:
        """Run one turn, see `Session.turn`. Closing or cancelling the generator interrupts the turn in the server."""
        problem = prompt_problem(prompt)
        if problem or self._listening.done():
            yield Error(message=problem or f"session {self.name} is not in the server any more: start again")
            return
        own = self._own = asyncio.Queue()
        may_run = False
        try:
            await self._heard.wait()  # or a short turn could be over before the stream begins
            may_run = True  # from the first byte of the request on
            begun = await self._call("POST", "/turns", {"prompt": prompt, "approve": self._approve})
            self._last_id = self._last_id or begun["after"]
            async with aclosing(self._follow(own, begun["after"], prompt)) as events:
                async for event in events:
                    may_run = may_run and not isinstance(event, TurnDone | Error)
                    yield event
        except (Refused, Unreachable) as e:
            may_run = False
            yield Error(message=self._busy if isinstance(e, Refused) and e.code == "turn_running" else str(e))
        finally:
            if may_run:
                await self._cancel(own)
            self._own = None
            while not own.empty():
                self._hear(own.get_nowait()[1])

    async def branches(self) -> list[Json]:
        """As `Session.branches`."""
        return [branch_value_of(branch) for branch in (await self._call("GET", ""))["branches"]]

    async def rewind(self, turn: int | None = None, *, branch: int | None = None, part: Part = "both") -> Restored:
        """As `Session.rewind`."""
        place = {"turn": turn} if branch is None else {"branch": branch}
        return await self._restored("/rewind", {**place, "part": part})

    async def undo(self) -> Restored:
        """As `Session.undo`."""
        return await self._restored("/undo", {})

    async def redo(self) -> Restored:
        """As `Session.redo`."""
        return await self._restored("/redo", {})

    async def _restored(self, path: str, body: Json) -> Restored:
        """What the server did, which the stream tells too."""
        self._num_rewinds += 1
        try:
            return Restored.of((await self._call("POST", path, body))["restored"])
        except StoreError:
            self._num_rewinds -= 1
            raise

    async def turns(self) -> list[tuple[int, str]]:
        """As `Session.turns`."""
        log = (await self._call("GET", "/events"))["data"]
        return [(event["turn"], event["text"]) for event in log if event["type"] == "user"]

    async def jobs(self) -> list[str]:
        """As `Session.jobs`."""
        return list((await self._call("GET", "/jobs"))["data"])

    async def answer(self, answer: Answer) -> bool:
        """As `Session.answer`."""
        call, self._asked = self._asked, None
        if call is None:
            return False
        await self._call("POST", f"/approvals/{call.id}", answer.model_dump())
        return True

    async def stop(self) -> bool:
        """As `Session.stop`."""
        return bool((await self._call("POST", "/cancel", {}))["cancelled"])

    def take_notices(self) -> list[str]:
        """None: the server sends notices as events of a turn."""
        return []

    async def aclose(self) -> None:
        """Stop listening. The session stays open in the server, which saves it."""
        self._listening.cancel()
        await asyncio.wait({self._listening})
        if not self._listening.cancelled():
            self._listening.result()

    @property
    def _approve(self) -> str:
        """What the server is told: where nobody can be asked here, it must not wait for an answer."""
        return Policy.READ if self._mode.policy is Policy.ASK and self._ask is None else self._mode.policy

    @property
    def _busy(self) -> str:
        return (
            f"session {self.name} is in a turn of another client: wait for its end, or start a fresh session with --new"
        )

    async def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        return await self._connection.call(method, self._path + path, body)

    async def _listen(self) -> None:
        """Read the stream of events, and connect again when it is lost."""
        while True:
            try:
                async with aclosing(self._connection.frames(f"{self._path}/stream", self._last_id)) as frames:
                    async for frame in frames:
                        self._last_id = frame[0] or self._last_id
                        self._take(frame)
                        if frame[1]["type"] == "closed":
                            return
            except Unreachable:
                pass  # it is tried again
            except Refused as e:
                self._take((None, {"type": "gone", "message": str(e)}))
                return
            self._take((None, {"type": "lost"}))
            if not await self._connect_again():
                return

    async def _connect_again(self) -> bool:
        """Wait for a server and let it open the session. Whether it did."""
        lost_at, is_told = time.monotonic(), False
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                body = {"workspace": self._workspace, "name": self.name, "resume": True}
                await self._connection.call("POST", "/v1/sessions", body)
                return True
            except Refused as e:
                self._take((None, {"type": "gone", "message": str(e)}))
                return False
            except Unreachable as e:
                if not is_told and time.monotonic() - lost_at > LOST_S:
                    is_told = True
                    self._take((None, {"type": "gone", "message": f"{e}; {KEPT}"}))

    def _take(self, frame: Frame) -> None:
        self._heard.set()
        if self._own is not None:
            self._own.put_nowait(frame)
        else:
            self._hear(frame[1])

    async def _follow(self, own: "asyncio.Queue[Frame]", after: str, prompt: str) -> AsyncGenerator[Event, None]:
        """The events of this client's turn, those after `after`; an Error if the turn ends in another way."""
        question = Question(self._call, self._ask, own)
        try:
            while True:
                id_, frame = await own.get()
                if id_ is not None and not is_later(id_, after):
                    self._hear(frame)
                    continue
                match frame:
                    case {"type": "approval_needed"}:
                        needed = event_of(frame)
                        yield needed
                        question.put(needed)
                    case {"type": "approval_done", "approved": approved}:
                        if await question.withdraw():
                            yield Notice(message=f"another client {'allowed' if approved else 'refused'} it")
                    case {"type": "given_up"}:  # Ctrl-C at a question
                        raise asyncio.CancelledError
                    case {"type": "lost"}:
                        yield Notice(message="the connection to the server is lost; trying again")
                    case {"type": "gone", "message": message}:
                        yield Error(message=message)
                        return
                    case {"type": "reload"}:
                        for event in await self._missed(prompt):
                            yield event
                            if isinstance(event, TurnDone | Error):
                                return
                    case {"type": "interrupted"}:
                        yield Error(message=f"the turn was interrupted, and not from here; {KEPT}")
                        return
                    case {"type": kind} if kind in EVENTS:
                        yield event_of(frame)
                        if kind in ENDS:
                            return
        finally:
            await question.close()

    async def _missed(self, prompt: str) -> list[Event]:
        """How the turn ended while the connection was lost; nothing if it still runs."""
        log, state = (await self._call("GET", "/events"))["data"], (await self._call("GET", ""))["state"]
        said = next((event["text"] for event in reversed(log) if event["type"] == "user"), None)
        last = log[-1]["type"] if said == prompt else None
        if last == "error":
            return [event_of(log[-1])]
        if last == "turn_done":
            answer = Text(delta=log[-1]["text"])
            return [Notice(message="the connection was lost for a while; the whole answer:"), answer, event_of(log[-1])]
        if last is not None and state == "running":
            return []
        return [Error(message=f"the server was started again in the middle of the turn; {KEPT}")]

    async def _cancel(self, own: "asyncio.Queue[Frame]") -> None:
        """Interrupt this client's turn and wait for its end."""
        with suppress(Refused, Unreachable, TimeoutError):
            is_over = not (await self._call("POST", "/cancel", {}))["cancelled"]
            async with asyncio.timeout(STOP_S):
                while not is_over:
                    is_over = (await own.get())[1]["type"] in ENDS
        while not own.empty():
            own.get_nowait()

    def _hear(self, frame: Json) -> None:
        """Pass an event that is not of this client's turn to `on_other`."""
        match frame:
            case {"type": "user", "text": text}:
                said = f"another client: {text}"
            case {"type": "rewound", "turns": turns}:
                if self._num_rewinds:
                    self._num_rewinds -= 1
                    return
                said = f"another client went back to the end of turn {turns}"
            case {"type": "restored", "restored": value}:
                if self._num_rewinds:
                    self._num_rewinds -= 1
                    return
                said = f"another client put files back: {', '.join(Restored.of(value).files) or 'none'}"
            case {"type": "approval_done", "approved": approved}:
                if self._asked is None:  # this client answered
                    return
                self._asked = None
                said = "it was allowed" if approved else "it was refused"
            case {"type": "interrupted"}:
                said = f"that turn was interrupted; {KEPT}"
            case {"type": "closed"}:
                said = f"another client deleted session {self.name}"
            case {"type": "gone", "message": said}:
                pass
            case {"type": kind} if kind in EVENTS:
                event = event_of(frame)
                self._asked = event if isinstance(event, ApprovalNeeded) else self._asked
                self._on_other(event)
                return
            case _:
                return
        self._on_other(Notice(message=said))


def is_later(id_: str, after: str) -> bool:
    """Whether an event comes after another. Ids are `LOG.NUMBER`; a restarted server has another log."""
    (log, _, number), (log_before, _, before) = id_.partition("."), after.partition(".")
    return log != log_before or int(number) > int(before)


def event_of(frame: Json) -> Event:
    """The event of a frame, as a turn in this process gives it: without the fields that the server adds."""
    kind = EVENTS[frame["type"]]
    event: Event = kind(**{name: frame[name] for name in kind.model_fields if name in frame})
    return event
