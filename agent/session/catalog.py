"""What a session looks like from outside, and what may be done to one: its tree, forks, removal.

Both front ends that show sessions use it, the command line and the server.

Owns how the log of a session and its stored state go together when a branch begins or ends. Needs no model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.memory import (
    Freed,
    Report,
    ResponseStore,
    SessionInfo,
    SessionLog,
    SessionStore,
    SnapshotStore,
    check_indexes,
    check_records,
    making_room,
    repair_indexes,
)

Value = dict[str, Any]
MAX_PROMPT_CHARS = 200  # of a prompt in a summary
ENDS = {"turn_done": "text", "error": "message"}  # events that end a turn, and where they keep what it ended with


@dataclass(frozen=True)
class SessionCatalog:
    """Sessions and their state, of one data directory. Any thread may use it."""

    sessions: SessionStore
    snapshot_store: SnapshotStore
    responses: ResponseStore

    def summary(self, session: SessionInfo) -> Value:
        """A session in a few numbers."""
        seen = self.sessions.overview(session)
        first = self.sessions.first_event(session)
        return {
            "name": session.name,
            "workspace": session.workspace,
            "turns": seen.num_turns,
            "tokens": seen.num_tokens,
            "branches": seen.num_branches,
            "tail_bytes": seen.tail_bytes,
            "used_at": session.used_at,
            "first_prompt": first.payload["text"][:MAX_PROMPT_CHARS] if first and first.type == "user" else "",
        }

    def origin(self, session: SessionInfo) -> Value | None:
        """What a fork was forked from, and how much of it the two share; None for another session.

        The name is None when that session was removed.
        """
        own = {branch.id: branch for branch in self.sessions.branches(session)}
        first = next((b for b in own.values() if b.parent_id is not None and b.parent_id not in own), None)
        if first is None or first.parent_id is None:
            return None
        holder = self.sessions.holder(first.parent_id)
        name = holder.name if holder else None
        return {"name": name, "turns": first.parent_turn, "tokens": first.parent_position}

    def tree(self, session: SessionInfo, with_answers: bool = False) -> list[Value]:
        """Its branches: the turns of each, where its state is stored and, if asked for, how each turn ended."""
        branches = []
        for branch in self.sessions.branches(session):
            prompts, answers = self._said(session, branch.id)
            first = 1 if branch.parent_turn is None else branch.parent_turn + 1
            turns = [
                {
                    "number": t.number,
                    "state": t.state,
                    "start": t.start_position,
                    "end": t.end_position,
                    "started_at": t.started_at,
                    "prompt": prompts.get(t.number, ""),
                    **({"answer": answers.get(t.number, "")} if with_answers else {}),
                }
                for t in self.sessions.turn_list(session, branch.id)
                if t.number >= first
            ]
            tails = sorted(position for position, _, _ in self.snapshot_store.tails_of([branch.id]))
            branches.append(
                {
                    "id": branch.id,
                    "parent": branch.parent_id,
                    "parent_turn": branch.parent_turn,
                    "parent_position": branch.parent_position,
                    "is_current": branch.is_current,
                    "tokens": branch.num_tokens,
                    "stored_at": tails,
                    "turns": turns,
                }
            )
        return branches

    def fork(
        self,
        session: SessionInfo,
        turn: int | None = None,
        token: int | None = None,
        name: str | None = None,
        branch: int | None = None,
    ) -> SessionInfo:
        """A new session that goes on from a point of this one, and finds its state. See `SessionStore.fork`."""
        new = self.sessions.fork(session, turn=turn, position=token, name=name, branch=branch)
        begun = next(b for b in self.sessions.branches(new) if b.is_current)
        source = session.branch if branch is None else branch
        self.snapshot_store.inherit(begun.id, self._ancestors(session, source, begun.num_tokens))
        return new

    def rewound(self, before: SessionInfo, log: SessionLog) -> None:
        """The log has gone back on a new branch: that one finds the state of the branch it grew from."""
        self.snapshot_store.inherit(log.session.branch, self._ancestors(before, before.branch, len(log.ids)))

    def remove(self, session: SessionInfo) -> Freed:
        """Delete a session that is open nowhere. What forks of it need stays."""
        with making_room(self.sessions.database.home):
            self.sessions.remove(session)
            return self.snapshot_store.gc()

    def verify(self, repair: bool = False) -> tuple[Report, list[str], list[str]]:
        """Check everything stored; the state's report, other damage, and what `repair` has put right of the latter.

        Repairing goes on without what an older database lacks: the ends of logs that lock files still speak of. Only
        then do the lock files count no more; while they are right, the next loss is noticed by them.
        """
        database = self.sessions.database
        report = self.snapshot_store.verify(repair=repair)
        found = [*check_indexes(database), *check_records(database, self.sessions, self.responses)]
        if not repair or not found:
            return report, found, []
        repair_indexes(database)
        if self.sessions.has_lost():
            database.renew_id()
        left = [*check_indexes(database), *check_records(database, self.sessions, self.responses)]
        return report, left, [line for line in found if line not in left]

    def _said(self, session: SessionInfo, branch: int) -> tuple[dict[int, str], dict[int, str]]:
        """What each turn was asked, and what it ended with: the answer, or the error."""
        prompts: dict[int, str] = {}
        answers: dict[int, str] = {}
        for event in self.sessions.events(session, branch):
            if event.type == "user":
                prompts.setdefault(event.turn, event.payload["text"])
            elif event.type in ENDS:
                answers[event.turn] = event.payload[ENDS[event.type]]
        return prompts, answers

    def _ancestors(self, session: SessionInfo, branch: int | None, position: int) -> Iterable[tuple[int, int]]:
        """A branch and its ancestors in the same session, each with the position up to which it counts."""
        parents, found = self.sessions.parents(session), []
        while branch in parents:
            found.append((branch, position))
            branch, parent_position = parents[branch]
            position = min(position, parent_position)
        return found
