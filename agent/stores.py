"""What a session looks like from outside, and what may be done to one: its tree, forks, removal. Both front ends that show
sessions use it, the command line and the server.

Owns how the log of a session and its stored state go together when a branch begins or ends. Needs no model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memory import (
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


@dataclass(frozen=True)
class Stores:
    """Sessions and their state, of one data directory. Any thread may use it."""

    sessions: SessionStore
    snapshots: SnapshotStore
    responses: ResponseStore

    def summary(self, session: SessionInfo) -> Value:
        """A session in a few numbers."""
        seen = self.sessions.overview(session)
        return {
            "name": session.name, "workspace": session.workspace, "turns": seen.num_turns, "tokens": seen.num_tokens,
            "branches": seen.num_branches, "tail_bytes": seen.tail_bytes, "used_at": session.used_at,
        }  # fmt: skip

    def tree(self, session: SessionInfo) -> list[Value]:
        """Its branches, each with its own turns and where state of it is stored."""
        branches = []
        for branch in self.sessions.branches(session):
            prompts = self._prompts(session, branch.id)
            first = 1 if branch.parent_turn is None else branch.parent_turn + 1
            turns = [
                {
                    "number": t.number, "state": t.state, "start": t.start_position, "end": t.end_position,
                    "started_at": t.started_at, "prompt": prompts.get(t.number, ""),
                }
                for t in self.sessions.turn_list(session, branch.id)
                if t.number >= first
            ]  # fmt: skip
            tails = sorted(position for position, _, _ in self.snapshots.tails_of([branch.id]))
            branches.append(
                {
                    "id": branch.id, "parent": branch.parent_id, "parent_turn": branch.parent_turn,
                    "parent_position": branch.parent_position, "is_current": branch.is_current,
                    "tokens": branch.num_tokens, "stored_at": tails, "turns": turns,
                }
            )  # fmt: skip
        return branches

    def fork(
        self, session: SessionInfo, turn: int | None = None, token: int | None = None, name: str | None = None,
        branch: int | None = None,
    ) -> SessionInfo:  # fmt: skip
        """A new session that goes on from a point of this one, and finds its state. See `SessionStore.fork`."""
        new = self.sessions.fork(session, turn=turn, position=token, name=name, branch=branch)
        begun = next(b for b in self.sessions.branches(new) if b.is_current)
        source = session.branch if branch is None else branch
        self.snapshots.inherit(begun.id, self._ancestors(session, source, begun.num_tokens))
        return new

    def rewound(self, before: SessionInfo, log: SessionLog) -> None:
        """The log has gone back on a new branch: that one finds the state of the branch it grew from."""
        self.snapshots.inherit(log.session.branch, self._ancestors(before, before.branch, len(log.ids)))

    def remove(self, session: SessionInfo) -> Freed:
        """Delete a session that is open nowhere. What forks of it need stays."""
        with making_room(self.sessions.database.home):
            self.sessions.remove(session)
            return self.snapshots.gc()

    def verify(self, repair: bool = False) -> tuple[Report, list[str], list[str]]:
        """Check everything stored; the state's report, other damage, and what `repair` has put right of the latter.

        Repairing goes on without what an older database lacks: the ends of logs that lock files still speak of.
        """
        database = self.sessions.database
        report = self.snapshots.verify(repair=repair)
        found = [*check_indexes(database), *check_records(database, self.sessions, self.responses)]
        if not repair or not found:
            return report, found, []
        repair_indexes(database)
        database.renew_id()
        left = [*check_indexes(database), *check_records(database, self.sessions, self.responses)]
        return report, left, [line for line in found if line not in left]

    def _prompts(self, session: SessionInfo, branch: int) -> dict[int, str]:
        events = self.sessions.events(session, branch)
        return {event.turn: event.payload["text"] for event in reversed(events) if event.type == "user"}

    def _ancestors(self, session: SessionInfo, branch: int | None, position: int) -> Iterable[tuple[int, int]]:
        """A branch of a session and those it grew from in the same session, with the position up to which each counts."""
        parents, found = self.sessions.parents(session), []
        while branch in parents:
            found.append((branch, position))
            branch, parent_position = parents[branch]
            position = min(position, parent_position)
        return found
