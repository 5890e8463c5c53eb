"""Undo of files: what a session's calls changed on disk is taken back, put in place again, or follows a rewind.

Owns which change sets are in effect, and the way from there to where files are to be. A file that is not as it was
left is a conflict: it is told, and stays as it is. Must not know what was said.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.agent.session.restored import Kept, Part, Restored
from holdfast.memory import ChangeSet, FileVersion, LoggedEvent, SessionLog, Settled, StoreError, version_of
from holdfast.tools import FileState, ToolError, Workspace

CALL, UNDO, REDO, REWIND = "call", "undo", "redo", "rewind"  # kinds of change sets
CHANGED_SINCE = "changed on disk since: it stays as it is"
NOT_KEPT = "cannot be put back, its contents of then are not kept any more: it stays as it is"


class FileHistory:
    """Of one open session. It is the journal of its workspace: a change set for every call that changes files."""

    def __init__(self, log: SessionLog, workspace: Workspace):
        self._log, self._workspace = log, workspace
        self._begun: dict[int, list[FileState]] = {}  # change sets of the call under way, with what was there before

    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        """See `Journal.record`."""
        self._begun[_begin(self._log, CALL, before, after)] = list(before)

    def settled(self, ok: bool) -> Settled:
        """What became of the call's change sets, to be logged with its result. A failed call may have none."""
        begun, self._begun = self._begun, {}
        done = {id_ for id_, before in begun.items() if ok or not all(map(self._is_there, before))}
        return Settled(tuple(done), tuple(begun.keys() - done))

    def undo(self) -> Restored:
        """Take back the files of the last turn that changed any. Raises StoreError when there is none."""
        calls = [change for change in self._in_effect(self._log.reach()) if change.kind == CALL]
        if not calls:
            raise StoreError("there is nothing to undo: no file that this session changed is left to take back")
        last = calls[-1]
        of_turn = [change.id for change in calls if (change.branch_id, change.turn) == (last.branch_id, last.turn)]
        return self._restored(UNDO, of_turn, (), last.turn)

    def redo(self) -> Restored:
        """Take back the last undo, or what the last rewind did to files, unless files were changed since."""
        moved = [change for change in self._in_effect(self._log.reach()) if change.kind == CALL or _is_step(change)]
        if not moved or moved[-1].kind == CALL:
            raise StoreError("there is nothing to redo: no undo or rewind of files was the last that changed any")
        last = moved[-1]
        return self._restored(REDO, [*last.redone, last.id], last.undone, last.turn if last.kind == UNDO else None)

    def begin_rewind(
        self, turn: int | None, token: int | None, branch: int | None, with_files: bool
    ) -> tuple[int | None, Restored]:
        """Bring files to where they were at a place of the log, or record that they stay; the change set, if any,
        is done with the log. Raises StoreError, with nothing changed."""
        now = [change.id for change in self._in_effect(self._log.reach()) if change.kind == CALL]
        reach = self._log.reach(turn, token, branch)
        then = self._in_effect(reach, max(reach.values()) if branch is None else None)
        there = [change.id for change in then if change.kind == CALL]
        left, missing = [id_ for id_ in now if id_ not in there], [id_ for id_ in there if id_ not in now]
        if not left and not missing:
            return None, Restored()
        if with_files:
            return self._restore(REWIND, left, missing)
        return _begin(self._log, REWIND, (), (), missing, left), Restored()

    def take_back(self, change: int) -> None:
        """Put files back as a rewind found them whose log was not written."""
        self._rolled_back(self._change(change))
        self._log.settle(Settled(dropped=(change,)))

    def recover(self) -> tuple[Settled, list[str]]:
        """Put right what a process that was killed had begun: what becomes of it, and lines that say so."""
        done: list[int] = []
        dropped: list[int] = []
        lines: list[str] = []
        try:
            for change in self._log.begun_changes():
                is_kept, told = self._recovered(change)
                (done if is_kept else dropped).append(change.id)
                lines += told
        except (OSError, StoreError, ToolError) as e:  # tried again when the session is opened the next time
            lines.append(f"what was cut off while it changed files could not be put right: {e}")
        return Settled(tuple(done), tuple(dropped)), lines

    def _recovered(self, change: ChangeSet) -> tuple[bool, list[str]]:
        """Whether a change set that was cut off stays, and lines that say so."""
        paths = ", ".join(path for path, _, _ in change.files)
        if change.kind == CALL and all(self._is_version(path, new, old) for path, old, new in change.files):
            return True, [f"the call that was cut off had changed {paths}: /undo takes it back"]
        conflicts = self._rolled_back(change)
        told = [f"{path} is not as what was cut off left it: it stays as it is" for path in conflicts]
        return bool(conflicts) and change.kind == CALL, told

    def _restored(self, kind: str, undone: Sequence[int], redone: Sequence[int], turn: int | None) -> Restored:
        change, restored = self._restore(kind, undone, redone)
        self._log.settle(Settled(done=(change,)))
        return Restored(turn, restored.files, restored.kept)

    def _restore(self, kind: str, undone: Sequence[int], redone: Sequence[int]) -> tuple[int, Restored]:
        """Take change sets back and put others in place again; the change set that this is, not settled yet."""
        plan = Plan(self._log, self._workspace)
        sets = {change.id: change for change in self._log.change_sets()}
        for id_ in sorted(undone, reverse=True):
            plan.add(sets[id_], is_undo=True) if id_ in sets else None
        for id_ in sorted(redone):
            plan.add(sets[id_], is_undo=False) if id_ in sets else None
        before, after = plan.states()
        journal = _Restoring(self._log, kind, undone, redone)
        try:
            self._workspace.put(before, after, journal)
        except ToolError as e:
            if journal.change is not None:
                self._log.settle(Settled(dropped=(journal.change,)))
            raise StoreError(f"no file was put back: {e}") from None
        assert journal.change is not None
        return journal.change, Restored(None, tuple(state.path for state in after), tuple(plan.kept))

    def _in_effect(self, reach: dict[int, int], end: int | None = None) -> list[ChangeSet]:
        """Change sets that are in effect at the end of a log, in the order in which they were made.

        With `end`, its last event: without what was undone or rewound at that place later, so the files are as the last
        turn left them.
        """
        sets = {change.id: change for change in self._log.change_sets() if change.is_done}
        found: set[int] = set()
        for change in sets.values():
            is_later = change.kind != CALL and change.seq == end
            if change.seq <= reach.get(change.branch_id, -1) and not is_later:
                found.difference_update(change.undone)
                found.update(change.redone)
                found.add(change.id)
        return [change for id_, change in sets.items() if id_ in found]

    def _change(self, id_: int) -> ChangeSet:
        return next(change for change in self._log.change_sets() if change.id == id_)

    def _rolled_back(self, change: ChangeSet) -> list[str]:
        """Put the files of a change set back as it found them; paths of those that are not as it left them either."""
        before, after, conflicts = [], [], []
        for path, old, new in change.files:
            present, was = self._workspace.state(path), _state(self._log, path, old)
            if _is_exactly(version_of(present), old, new):
                continue
            will_be, is_ours = _state(self._log, path, new), any(map(version_of(present).is_same, (old, new)))
            if was is None or not (is_ours or _is_torn(present, was, will_be)):
                conflicts.append(path)
                continue
            before.append(present)
            after.append(was)
        self._workspace.put(before, after, _Unrecorded())
        return conflicts

    def _is_there(self, state: FileState) -> bool:
        return self._is_version(state.path, version_of(state), version_of(state))

    def _is_version(self, path: str, version: FileVersion, other: FileVersion) -> bool:
        """Whether this version of a change set is on disk; `other` is what the set made of it, or made it of."""
        try:
            return _is_exactly(version_of(self._workspace.state(path)), version, other)
        except (OSError, ToolError):
            return False


class Plan:
    """How files get from what is on disk through change sets to where they are to be."""

    def __init__(self, log: SessionLog, workspace: Workspace):
        self._log, self._workspace = log, workspace
        self._present: dict[str, FileState] = {}  # what is on disk
        self._planned: dict[str, FileVersion] = {}
        self.kept: list[Kept] = []

    def add(self, change: ChangeSet, is_undo: bool) -> None:
        """Go through a change set, back or forth; a file in conflict goes no further."""
        for path, old, new in change.files:
            if any(kept.path == path for kept in self.kept):
                continue
            if path not in self._present and not self._look(path):
                continue
            here, there = (new, old) if is_undo else (old, new)
            present = self._planned[path]
            if present.is_same(here) or present.is_same(there):
                # the permission bits are those of `there` only where the change set changed them
                mode = present.mode if old.mode == new.mode and present.kind == there.kind else there.mode
                self._planned[path] = FileVersion(there.kind, mode, there.content)
            else:
                self.kept.append(Kept(path, CHANGED_SINCE))

    def states(self) -> tuple[list[FileState], list[FileState]]:
        """What is to be changed, as it is and as it is to be."""
        before, after = [], []
        for path, version in self._planned.items():
            present = self._present[path]
            if version == version_of(present):
                continue
            state = _state(self._log, path, version)
            if state is None:
                self.kept.append(Kept(path, NOT_KEPT))
                continue
            before.append(present)
            after.append(state)
        return before, after

    def _look(self, path: str) -> bool:
        try:
            self._present[path] = self._workspace.state(path)
        except (OSError, ToolError) as e:
            why = str(e) if isinstance(e, ToolError) else f"cannot be read ({e.strerror})"
            self.kept.append(Kept(path, why))
            return False
        self._planned[path] = version_of(self._present[path])
        return True


@dataclass
class _Restoring:
    """The journal of an undo, a redo or a rewind."""

    log: SessionLog
    kind: str
    undone: Sequence[int]
    redone: Sequence[int]
    change: int | None = None

    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        self.change = _begin(self.log, self.kind, before, after, self.undone, self.redone)


class _Unrecorded:
    """The journal of what puts right a change set that is recorded already."""

    def record(self, before: Sequence[FileState], after: Sequence[FileState]) -> None:
        pass


def rewind(
    log: SessionLog,
    history: FileHistory,
    place: tuple[int | None, int | None, int | None],
    part: Part,
    types: Sequence[str],
) -> tuple[Restored, list[LoggedEvent]]:
    """Bring a session to a place, given as turn, token or branch; the events left behind, of some types. Files and log
    go together: killed anywhere, both are where they were, or both are there. Raises StoreError."""
    turn, token, branch = place
    change, restored = history.begin_rewind(turn, token, branch, with_files=part != "conversation")
    if part == "files":
        log.settle(Settled(done=(change,) if change is not None else ()))
        return restored, []
    try:
        left = log.switch(branch, types, change) if branch is not None else log.rewind(turn, token, types, change)
    except StoreError:
        if change is not None:
            history.take_back(change)
        raise
    return restored, left


def _begin(
    log: SessionLog,
    kind: str,
    before: Sequence[FileState],
    after: Sequence[FileState],
    undone: Sequence[int] = (),
    redone: Sequence[int] = (),
) -> int:
    """Raises ToolError: what cannot be recorded is not done."""
    try:
        return log.begin_change(kind, list(zip(before, after, strict=True)), undone, redone)
    except StoreError as e:
        raise ToolError(f"nothing is changed that could not be undone: {e}") from None


def _state(log: SessionLog, path: str, version: FileVersion) -> FileState | None:
    """A version with its contents; None where they are not kept any more."""
    if version.kind not in ("file", "link"):
        return FileState(path, version.kind, version.mode)  # type: ignore[arg-type]
    data = log.content(version.content)
    return None if data is None else FileState(path, version.kind, version.mode, data)  # type: ignore[arg-type]


def _is_exactly(present: FileVersion, version: FileVersion, other: FileVersion) -> bool:
    """Whether a version is there, with its permission bits if the change from or to the other changed them."""
    return present.is_same(version) and (present.mode == version.mode or version.mode == other.mode)


def _is_torn(present: FileState, old: FileState, new: FileState | None) -> bool:
    """Whether the change from old to new was cut off inside a file: it was written in place and begins as the new
    contents and goes on as the old ones, or one of another kind had not taken its place yet."""
    if new is None:
        return False
    if present.kind == "absent":
        return "absent" not in (old.kind, new.kind) and (old.kind, new.kind) != ("file", "file")
    if (present.kind, old.kind, new.kind) != ("file", "file", "file"):
        return False
    written = _shared(present.data, new.data)
    return present.data[written:] == old.data[written:]


def _shared(a: bytes, b: bytes) -> int:
    """The length of the beginning that two texts share, by bisection: they may have megabytes."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _is_step(change: ChangeSet) -> bool:
    """Whether a redo takes it back: not a rewind that only recorded that files stay."""
    return change.kind == UNDO or (change.kind == REWIND and bool(change.files))
