"""Everything a front end needs, built once: the data directory, the engine, and sessions on them.

Owns which session a workspace means. Must not know which front end it serves: terminal, command line or server.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

from holdfast.agent.config import Settings, UsageError
from holdfast.agent.encoding.encode import ProtocolTexts, encode_messages
from holdfast.agent.events import Ask, Notice
from holdfast.agent.faults import logged
from holdfast.agent.models.opened import AnyModel, open_model, protocol_texts
from holdfast.agent.models.rolling import rolls_of
from holdfast.agent.models.snapshots import Snapshots
from holdfast.agent.permissions.modes import Mode
from holdfast.agent.permissions.rules_file import BrokenRules, RulesFile, WorkspaceRules
from holdfast.agent.session.approvals import Approvals
from holdfast.agent.session.fresh import Fresh, OpenSession, Timeline
from holdfast.agent.session.places import belongs_elsewhere, moved_here
from holdfast.agent.session.session import Session
from holdfast.agent.session.turn import Toolbox, opening, shown_in
from holdfast.agent.session.undo import FileHistory
from holdfast.agent.session.window import ContextWindow
from holdfast.agent.threads import to_end
from holdfast.engine import EngineConfig, Sequence, Tokenizer
from holdfast.memory import (
    BlobStore,
    Database,
    SessionInfo,
    SessionInUse,
    SessionLog,
    SessionStore,
    SnapshotStore,
    StoreError,
)
from holdfast.tools import Shell, ToolChoice, ToolError, Workspace, command_tools, toolset

BLOCK = 128  # tokens: the longest compressed block of any layer


class App:
    """The engine and the store; `session` opens a timeline on them."""

    def __init__(
        self,
        settings: Settings,
        engine: AnyModel,
        database: Database,
        snapshots: Snapshots,
        texts: ProtocolTexts,
        tool_choice: ToolChoice,
        opening_tokens: int = 0,
    ):
        self.tool_choice = tool_choice
        self.settings, self.engine, self.database, self.snapshots, self.texts = (
            settings,
            engine,
            database,
            snapshots,
            texts,
        )
        self.store = SessionStore(database)
        self.park_other: Callable[[Sequence], Awaitable[None]] | None = None  # for sequences of no session
        # shorter than a page it is not worth finding; at the end of a block of every layer the tail is small
        self._shared_tokens = opening_tokens // BLOCK * BLOCK if opening_tokens >= EngineConfig.page_tokens else 0
        self._open: list[Session] = []
        self._parking: set[asyncio.Future[Any]] = set()
        engine.on_pressure = self._park

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, tell: Callable[[Notice], None] | None = None) -> AsyncIterator["App"]:
        """`tell` gets what a start that takes long is doing.

        Raises UsageError for an unusable data directory, StoreError and EngineError for what is inside it or the model.
        """
        texts = protocol_texts(settings)
        try:
            database = Database(settings.home)
        except OSError as e:
            raise UsageError(
                f"data directory {settings.home} cannot be used: {e.strerror};"
                f" set HOLDFAST_HOME to one that can be written"
            ) from None
        with (
            logged(settings.home),
            closing(database),
            closing(SnapshotStore(database, BlobStore(settings.home), settings.disk_bytes)) as snapshot_store,
        ):
            tool_choice = _tool_choice(settings)
            opening_ids = _opening_ids(settings, texts, tool_choice)
            opening_tokens = len(opening_ids)
            config = EngineConfig(
                ranks=settings.ranks,
                max_context=settings.max_context,
                pinned_pages=-(-opening_tokens // EngineConfig.page_tokens),
                public_ids=tuple(opening_ids),
            )
            async with open_model(settings, texts, config, tell or _unheard) as engine:
                with closing(Snapshots(engine, snapshot_store)) as snapshots:
                    yield cls(settings, engine, database, snapshots, texts, tool_choice, opening_tokens)

    async def session(
        self,
        workspace: Path,
        approvals: Approvals,
        name: str | None = None,
        is_new: bool = False,
        owner: str = "",
        prompt: str = "",
    ) -> Session:
        """The named session of that owner, else the workspace's latest; created when there is none, or when `is_new`.

        A new one without a name is named after its first prompt, if that is known.

        Raises UsageError when the workspace is not a directory any more, StoreError when the session is open elsewhere,
        damaged, of another workspace or of another model.
        """
        found, notices = await to_end(self._found, workspace, name, is_new, owner)
        if why := self.engine.kernels_not_kept:
            notices.append(f"kernels are compiled again at every start, for about a minute: {why}")
        async with AsyncExitStack() as opened:  # undone where a later step fails: the session must not stay locked
            directory = await to_end(_opened, workspace, self.settings)
            opened.callback(directory.close)
            log = await to_end(self._log, found, workspace, name, owner, prompt)
            opened.callback(log.close)
            seq = await self.engine.start(owner=owner)
            opened.push_async_callback(self.engine.release, seq)
            events = await to_end(log.events)
            directory.shown.set(shown_in(events))
            window = ContextWindow(
                self.engine,
                self.snapshots,
                seq,
                log,
                rolls_of(events),
                save_every=self.settings.save_every,
                shared_tokens=self._shared_tokens,
                tell=notices.append,
            )
            shell = Shell(directory, self.settings.home / "outputs" / str(log.session.id))
            opened.push_async_callback(shell.aclose)
            rules = WorkspaceRules(RulesFile(self.settings.home), workspace, owner)
            tools = toolset(directory, log.search, self.tool_choice, shell)
            toolbox = Toolbox(directory, tools, approvals, rules, shell, FileHistory(log, directory))
            if toolbox.tools.keys() & command_tools(shell).keys():
                hidden = (self.settings.home, *self.settings.own_files)
                await shell.open(hidden, await to_end(_denied, rules))
            session = await to_end(Session, log, window, toolbox, self.settings, self.texts, notices)
            opened.pop_all()
        self._open = [*(other for other in self._open if not other.is_closed), session]
        return session

    def _found(
        self, workspace: Path, name: str | None, is_new: bool, owner: str
    ) -> tuple[SessionInfo | None, list[str]]:
        """The session that is meant, if it exists, and what its user is told."""
        problems = [] if name else self.store.problems(owner)
        if is_new:
            return None, problems
        found = self._find(workspace, name, owner)
        return found, problems if found or name else [*self.notes(workspace, owner), *problems]

    def _park(self, seq: Sequence) -> None:
        """Memory is short: the session of this sequence gives its own back."""
        owner = next((s for s in self._open if s.window.seq is seq and not s.is_closed), None)
        if owner is not None:
            parking: Awaitable[Any] = owner.park()
        else:
            parking = self.park_other(seq) if self.park_other else self.engine.park(seq, None)
        task = asyncio.ensure_future(parking)
        self._parking.add(task)
        task.add_done_callback(self._parking.discard)

    def _find(self, workspace: Path, name: str | None, owner: str) -> SessionInfo | None:
        if name is None:
            return self.store.latest(str(workspace), self.engine.identity, owner)
        found = self.store.find(f"{owner}/{name}" if owner else name)
        if found is not None and found.workspace != str(workspace):
            raise StoreError(belongs_elsewhere(found, workspace))
        if found is not None and found.model != self.engine.identity:
            raise StoreError(
                f"session {name} was written by model {found.model}, and this is {self.engine.identity}:"
                " open it with its own model, or choose another name"
            )
        return found

    def forget(self, name: str) -> None:
        """Remove a session that is open nowhere. Raises StoreError."""
        if session := self.store.find(name):
            self.store.remove(session)

    def notes(self, workspace: Path, owner: str = "") -> list[str]:
        """Why a workspace without a session of this model starts with a new one, when there is something to know."""
        sessions = [session for session in self.store.all() if session.owner == owner]
        other = next((session for session in sessions if session.workspace == str(workspace)), None)
        if other is not None:
            return [
                f"session {other.name} of this workspace was written by another model,"
                f" and stays as it is; this is a new one"
            ]
        moved = moved_here(sessions, workspace, owner)
        return [moved] if moved else []

    def _log(self, found: SessionInfo | None, workspace: Path, name: str | None, owner: str, prompt: str) -> SessionLog:
        """Of the session that was found; else of one that never had a turn and is open nowhere, else of a new one."""
        if found is not None:
            return self.store.open(found)
        unused = None if name else self.store.unused(str(workspace), self.engine.identity, owner)
        if unused is not None:
            with suppress(SessionInUse):
                return self.store.open(unused)
        return self.store.open(self.store.create(str(workspace), self.engine.identity, name, owner, prompt))


def _unheard(notice: Notice) -> None:
    pass


@asynccontextmanager
async def sessions_here(
    settings: Settings, workspace: Path, mode: Mode, ask: Ask | None, tell: Callable[[Notice], None]
) -> AsyncIterator[OpenSession]:
    """Gives what opens sessions of a workspace in this process, see `App.session`.

    `tell` and errors as in `App.open`.
    """
    approvals = Approvals(mode.policy, ask)
    approvals.mode = mode
    async with App.open(settings, tell) as app:

        async def open_session(name: str | None, is_new: bool) -> Timeline:
            is_there = name or (not is_new and app.store.latest(str(workspace), app.engine.identity))
            if is_there:
                return await app.session(workspace, approvals, name, is_new)
            notes = [] if is_new else app.notes(workspace)
            return Fresh(
                lambda prompt: app.session(workspace, approvals, is_new=True, prompt=prompt), notes, app.forget
            )

        yield open_session


def _opened(workspace: Path, settings: Settings) -> Workspace:
    """The directory itself: a link put under its name since it was chosen is not followed."""
    try:
        return Workspace(workspace, own=(settings.home, *settings.own_files), backups=settings.home / "backups")
    except ToolError as e:
        raise UsageError(str(e)) from None


def _tool_choice(settings: Settings) -> ToolChoice:
    """Which tools the model is shown; of an endpoint what its entry says. Raises UsageError for a wrong file of a
    model's directory."""
    if settings.endpoint is not None:
        return ToolChoice(form=settings.endpoint.tools)
    try:
        return ToolChoice.read(settings.model_dir)
    except ToolError as e:
        raise UsageError(str(e)) from None


def _denied(rules: WorkspaceRules) -> list[Path]:
    """What the user denies to tools as a session opens, for the sandbox to hide."""
    try:
        return rules.load().denied_paths()
    except BrokenRules:  # no call runs on them
        return []


def _opening_ids(settings: Settings, texts: ProtocolTexts, tool_choice: ToolChoice) -> list[int]:
    """Tokens that every session begins with: system prompt and tools.

    Raises UsageError for a choice of tools that are not there.
    """
    with closing(Workspace("/")) as unused:  # only the schemas count
        try:
            message = opening(toolset(unused, lambda query, limit: (), tool_choice, Shell(unused, Path(unused.root))))
        except ToolError as e:
            raise UsageError(str(e)) from None
    pieces = encode_messages([message], texts=texts, thinking_mode=settings.thinking_mode)
    return Tokenizer.from_dir(settings.model_dir).encode_pieces(pieces)
