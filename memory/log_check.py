"""Checking logs: every row of a branch is read once, however many branches go on from it.

Must not know which branches there are, nor put anything right.
"""

from dataclasses import dataclass

from holdfast.memory.branch_rows import Branch, BranchReader, DamagedLog, Point, TurnInfo
from holdfast.memory.branches import History
from holdfast.memory.db import Database


@dataclass(frozen=True)
class _Checked:
    """A branch with its own turns; `damage` is the first damaged place of its log, ancestors included."""

    branch: Branch
    turns: list[TurnInfo]
    damage: str = ""


class LogCheck:
    """One pass over logs. What it has read is not read again: it must not outlive the pass."""

    def __init__(self, database: Database):
        self._database = database
        self._checked: dict[int, _Checked] = {}

    def check(self, name: str, branch_id: int) -> None:
        """Raises DamagedLog for the first damaged or missing row of a branch's log; `name` is the session's."""
        reader = BranchReader(self._database, name)
        with self._database.reading():
            for branch in self._unchecked(reader, branch_id):
                self._checked[branch.id] = self._check(reader, branch)
        if damage := self._checked[branch_id].damage:
            raise reader.damaged(damage)

    def _unchecked(self, reader: BranchReader, branch_id: int) -> list[Branch]:
        """A branch and its ancestors as far as they are not checked yet, oldest first."""
        found: list[Branch] = []
        next_id: int | None = branch_id
        try:
            while next_id is not None and next_id not in self._checked:
                found.append(reader.branch(next_id))
                next_id = found[-1].parent_id
                if next_id is not None and next_id >= found[-1].id:  # a parent is older
                    raise reader.damaged(f"branch {found[-1].id}")
        except DamagedLog as e:
            self._checked |= {branch.id: _Checked(branch, [], e.where) for branch in found}
            raise
        return found[::-1]

    def _check(self, reader: BranchReader, branch: Branch) -> _Checked:
        parent = self._checked[branch.parent_id] if branch.parent_id is not None else None
        if parent and parent.damage and _is_at_end(parent.branch, branch.start):
            return _Checked(branch, [], parent.damage)
        try:
            if parent and parent.damage:  # which may lie behind the point where this branch leaves it
                history = History(self._database, "", branch.id)
                history.events(1, branch.start.seq)
                history.read_ids()
            elif not _goes_on_from(parent, branch.start):
                History(self._database, "", branch.id)  # what its parent has logged since it was checked counts too
            turns = reader.turns(branch, branch.last_turn)
            end_seq = turns[-1].end_seq if turns else branch.start.seq
            for _ in reader.events(branch.id, branch.start.seq + 1, end_seq):
                pass
            reader.ids(branch, turns[-1].end_position if turns else branch.start.position)
        except DamagedLog as e:
            return _Checked(branch, [], e.where)
        return _Checked(branch, turns)


def _is_at_end(parent: Branch, point: Point) -> bool:
    """Whether a branch that goes on from a point of another one shares all of that one's log."""
    return point.turn == parent.last_turn and not point.is_cut


def _goes_on_from(parent: _Checked | None, point: Point) -> bool:
    """Whether a point is a place in a branch's own part of the log."""
    if parent is None:
        return point == Point(0, 0, 0, False)
    start = parent.branch.start
    if point.turn == start.turn:
        return point == start
    if not start.turn < point.turn <= start.turn + len(parent.turns):
        return False
    turn = parent.turns[point.turn - start.turn - 1]
    if point.is_cut:
        return turn.start_position <= point.position <= turn.end_position and point.seq <= turn.end_seq
    return (point.seq, point.position) == (turn.end_seq, turn.end_position)
