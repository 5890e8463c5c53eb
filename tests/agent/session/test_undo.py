"""Promises of undo: files come back byte for byte, what a person changed since stays, and nothing is lost."""

import itertools
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from holdfast.agent.events import Changes
from holdfast.agent.session.undo import CHANGED_SINCE, FileHistory, rewind
from holdfast.memory import Database, SessionLog, SessionStore, StoreError
from holdfast.tools import FileState, Workspace
from tests.agent.scripted_engine import calls, says
from tests.agent.session.world import World, turn

pytestmark = pytest.mark.anyio
Tree = dict[str, tuple[str, int, bytes]]


def edits(old: str, new: str) -> list[list[object]]:
    return [calls("edit", path="a.py", old=f"return {old}", new=f"return {new}"), says("done")]


async def test_undo_goes_back_a_turn_at_a_time_and_redo_forth(world: World) -> None:
    file = world.workspace / "a.py"
    async with world.session(*edits("1", "2"), says("nothing"), *edits("2", "3")) as session:  # type: ignore[arg-type]
        for _ in range(3):
            await turn(session)
        assert (await session.undo()).turn == 3 and "return 2" in file.read_text()
        assert (await session.undo()).turn == 1 and "return 1" in file.read_text()
        with pytest.raises(StoreError, match="nothing to undo"):
            await session.undo()
        await session.redo()
        assert "return 2" in file.read_text()
        assert (await session.redo()).files == ("a.py",) and "return 3" in file.read_text()
        with pytest.raises(StoreError, match="nothing to redo"):
            await session.redo()
        assert (await session.undo()).turn == 3 and "return 2" in file.read_text()


async def test_a_turn_that_changed_files_says_that_it_can_be_undone(world: World) -> None:
    async with world.session(*edits("1", "2")) as session:  # type: ignore[arg-type]
        (changes,) = [event for event in await turn(session) if isinstance(event, Changes)]
        assert changes.can_undo and changes.files[0].path == "a.py"


async def test_a_file_that_changed_since_stays_and_is_told(world: World) -> None:
    file = world.workspace / "a.py"
    async with world.session(*edits("1", "2")) as session:  # type: ignore[arg-type]
        await turn(session)
        file.write_text("mine\n")
        restored = await session.undo()
    assert file.read_text() == "mine\n"
    assert [(kept.path, kept.why) for kept in restored.kept] == [("a.py", CHANGED_SINCE)] and not restored.files


async def test_a_rewind_chooses_conversation_files_or_both_and_is_undone(world: World) -> None:
    file = world.workspace / "a.py"
    async with world.session(*edits("1", "2"), *edits("2", "3")) as session:  # type: ignore[arg-type]
        await turn(session)
        await turn(session)
        branch = session.log.session.branch
        assert (await session.rewind(1, part="conversation")).left == ("a.py",)
        assert session.num_turns == 1 and "return 3" in file.read_text()
        assert (await session.rewind(branch=branch)).files == () and session.num_turns == 2
        await session.rewind(1, part="files")
        assert session.num_turns == 2 and "return 2" in file.read_text()
        await session.redo()
        assert "return 3" in file.read_text()
        await session.rewind(0)
        assert session.num_turns == 0 and "return 1" in file.read_text()
        await session.rewind(branch=branch)
        assert session.num_turns == 2 and "return 3" in file.read_text()


async def test_undo_takes_back_files_that_a_rewind_of_the_conversation_left(world: World) -> None:
    file = world.workspace / "a.py"
    async with world.session(*edits("1", "2"), *edits("2", "3")) as session:  # type: ignore[arg-type]
        await turn(session)
        await turn(session)
        await session.rewind(1, part="conversation")
        assert (await session.undo()).turn == 2 and "return 2" in file.read_text()
        assert (await session.undo()).turn == 1 and "return 1" in file.read_text()


async def test_an_edit_whose_undo_cannot_be_kept_is_refused(world: World) -> None:
    before = (world.workspace / "a.py").read_bytes()
    async with world.session(*edits("1", "2")) as session:  # type: ignore[arg-type]

        def full(*arguments: object) -> int:
            raise StoreError("holdfast.db cannot be used: database or disk is full")

        session.log.begin_change = full  # type: ignore[method-assign]
        events = await turn(session)
        (result,) = [event for event in events if event.type == "tool_result"]
        assert not result.ok and "\n" not in result.output and "full" in result.output
    assert (world.workspace / "a.py").read_bytes() == before


async def test_a_session_that_is_opened_again_still_undoes(world: World) -> None:
    async with world.session(*edits("1", "2")) as session:  # type: ignore[arg-type]
        await turn(session)
    async with world.session() as session:
        await session.undo()
    assert "return 1" in (world.workspace / "a.py").read_text()


async def test_a_fork_undoes_what_it_shares(world: World) -> None:
    async with world.session(*edits("1", "2")) as session:  # type: ignore[arg-type]
        await turn(session)
        SessionStore(Database(world.root / "home")).fork(session.log.session, name="fork")
    store = SessionStore(Database(world.root / "home"))
    fork = store.find("fork")
    assert fork is not None
    with_files = FileHistory(store.open(fork), Workspace(world.workspace))
    assert with_files.undo().files == ("a.py",)
    assert "return 1" in (world.workspace / "a.py").read_text()


class Place:
    """A session's log and its workspace, changed as tools do it."""

    def __init__(self, directory: Path):
        (directory / "ws").mkdir(parents=True, exist_ok=True)
        store = SessionStore(Database(directory / "home"))
        session = store.find("work") or store.create(str(directory / "ws"), "m", "work")
        self.log: SessionLog = store.open(session)
        self.workspace = Workspace(directory / "ws", backups=directory / "backups")
        self.history = FileHistory(self.log, self.workspace)
        self.workspace.journal = self.history

    def change(self, *after: FileState) -> None:
        """One call of the turn under way."""
        self.workspace.put([self.workspace.state(state.path) for state in after], list(after))
        self.log.append([("tool_result", {"output": "done"})], [], self.history.settled(True))

    def turn(self, *after: FileState) -> None:
        self.log.start_turn([("user", {"text": "go on"})], [1])
        self.change(*after)
        self.log.end_turn("done")

    def tree(self) -> Tree:
        found: Tree = {}
        for path in sorted(self.workspace.root.rglob("*")):
            name = str(path.relative_to(self.workspace.root))
            if path.is_symlink():
                found[name] = ("link", 0, os.fsencode(os.readlink(path)))
            elif path.is_file():
                found[name] = ("file", path.stat().st_mode & 0o777, path.read_bytes())
        return found

    def rewind(self, turn: int) -> None:
        rewind(self.log, self.history, (turn, None, None), "files", ())


def random_states(place: Place, rng: random.Random) -> list[FileState]:
    """A call: files written, deleted, moved, made executable, or replaced by links."""
    names = [f"{name}.py" for name in "abcde"] + ["lib/x.py", "lib/deep/y.py"]
    path = rng.choice(names)
    present = place.workspace.state(path)
    match rng.randrange(5):
        case 0:
            return [FileState(path)]
        case 1:
            return [FileState(path, "link", 0o777, rng.choice(names).encode())]
        case 2 if present.kind == "file":
            return [FileState(path, "file", present.mode ^ 0o111, present.data)]
        case 3 if present.kind == "file":
            other = rng.choice([name for name in names if name != path])
            return [FileState(path), FileState(other, "file", present.mode, present.data)]
    return [FileState(path, "file", rng.choice([0o644, 0o755, 0o600]), rng.randbytes(rng.randrange(200)))]


def test_a_rewind_gives_every_file_of_each_of_thirty_turns(tmp_path: Path) -> None:
    every_turn_comes_back(tmp_path, 0)


def every_turn_comes_back(tmp_path: Path, seed: int) -> None:
    rng, place, trees = random.Random(seed), Place(tmp_path), []
    trees.append(place.tree())
    for number in range(30):
        (place.workspace.root / f"mine-{number}.txt").write_text("a person's")  # of files that no call touches
        place.turn(*random_states(place, rng))
        trees.append(place.tree())
    for number in rng.sample(range(31), 31):
        place.rewind(number)
        mine = {name for name in place.tree() if name.startswith("mine")}
        theirs = {name: state for name, state in place.tree().items() if name not in mine}
        assert theirs == {n: s for n, s in trees[number].items() if not n.startswith("mine")}, number
        assert len(mine) == 30


def test_what_a_person_changed_between_turns_is_never_lost(tmp_path: Path) -> None:
    nothing_of_a_person_is_lost(tmp_path, 0)


def nothing_of_a_person_is_lost(tmp_path: Path, seed: int) -> None:
    rng, place = random.Random(seed), Place(tmp_path)
    spans: list[tuple[Tree, Tree]] = []
    for number in range(12):
        if number % 3 == 2:
            target = place.workspace.root / rng.choice(["a.py", "b.py", "c.py"])
            target.unlink(missing_ok=True)
            target.write_bytes(b"a person's " + rng.randbytes(20))
        before = place.tree()
        place.turn(*random_states(place, rng))
        spans.append((before, place.tree()))
    expected = place.tree()
    for before, after in reversed(spans):
        for path in {*before, *after}:
            is_ours = before.get(path) != after.get(path) and expected.get(path) == after.get(path)
            if is_ours:
                expected = {**expected, path: before[path]} if path in before else _without(expected, path)
    place.rewind(0)
    assert place.tree() == expected


def _without(tree: Tree, path: str) -> Tree:
    return {name: state for name, state in tree.items() if name != path}


def test_many_files_of_one_turn_and_a_large_one_come_back(tmp_path: Path) -> None:
    many_files_come_back(tmp_path, 50)


def many_files_come_back(tmp_path: Path, num_files: int) -> None:
    place = Place(tmp_path)
    big = os.urandom(2**20) * 16
    place.turn(FileState("big", "file", 0o644, big))
    before = place.tree()
    place.turn(FileState("big"), *(FileState(f"d/{n}", "file", 0o644, b"%d" % n) for n in range(num_files)))
    assert len(place.history.undo().files) == num_files + 1
    assert place.tree() == before


def test_a_read_only_place_leaves_everything_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    place.turn(FileState("a", "file", 0o644, b"1"), FileState("b", "file", 0o644, b"1"))
    place.turn(FileState("a", "file", 0o644, b"2"), FileState("b", "file", 0o644, b"2"))
    before = place.tree()
    rename = os.rename

    def fails(source: object, target: object, **how: object) -> None:
        if target == "b":
            raise OSError(30, "Read-only file system")
        rename(source, target, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "rename", fails)
    monkeypatch.setattr("holdfast.tools.workspace.rewrite._write_in_place", lambda *a: fails("", "b"))
    with pytest.raises(StoreError, match="no file was put back: b") as e:
        place.history.undo()
    assert "\n" not in str(e.value) and place.tree() == before
    monkeypatch.undo()
    assert place.history.undo().files == ("a", "b")


def change_and_die(directory: Path, what: str, die_at: int) -> None:
    """Two turns and what is asked for; SIGKILL at the given call that changes the disk."""
    place, passed = Place(directory), 0
    place.turn(*BEFORE)

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*arguments, **how):  # type: ignore[no-untyped-def]
            nonlocal passed
            passed += 1
            if passed == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **how)

        return call

    if what != "call":
        place.turn(*AFTER)
    for name in ("open", "rename", "unlink", "link", "symlink", "fsync", "fchmod", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("begin_change", "append", "settle", "rewind"):
        setattr(place.log, name, counted(getattr(place.log, name)))
    if what == "call":
        place.turn(*AFTER)
    elif what == "undo":
        place.history.undo()
    else:
        rewind(place.log, place.history, (1, None, None), "both", ())


BEFORE = [FileState("a", "file", 0o644, b"1"), FileState("b", "file", 0o644, b"1"), FileState("c", "link", 0o777, b"a")]
AFTER = [
    FileState("a", "file", 0o755, b"2"),
    FileState("b"),
    FileState("c", "file", 0o644, b"c"),
    FileState("d/e", "file", 0o600, b"e"),
]


@pytest.mark.parametrize(("what", "first", "step"), [("call", 2, 3), ("undo", 1, 4), ("rewind", 3, 4)])
def test_killed_anywhere_files_are_as_before_or_as_after(tmp_path: Path, what: str, first: int, step: int) -> None:
    assert killed_everywhere(tmp_path, what, first, step) >= 8


def killed_everywhere(tmp_path: Path, what: str, first: int = 1, step: int = 1) -> int:
    """Kill at every so manieth call that changes the disk or the log, and open again; how many there were."""
    seen = set()
    for number in itertools.count(first, step):
        directory = tmp_path / f"{what}-{number}"
        process = multiprocessing.get_context("fork").Process(target=change_and_die, args=(directory, what, number))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        place = Place(directory)
        settled, lines = place.history.recover()
        if place.log.open_turn is not None:
            place.log.end_turn("interrupted", [], settled)
        else:
            place.log.settle(settled)
        tree = {name: state for name, state in place.tree().items() if ".holdfast-" not in name}
        assert tree in (tree_of(BEFORE), tree_of(AFTER)) and not lines[1:], (number, lines)
        assert not place.log.begun_changes()
        seen.add(is_after := tree == tree_of(AFTER))
        if what == "rewind":
            assert place.log.num_turns == (2 if is_after else 1), number
        assert place.history.undo().turn == (2 if is_after else 1)  # what is in effect can be taken back
        assert not place.log.begun_changes() and ("a" in place.tree()) == is_after
        place.log.close()
        if process.exitcode == 0:
            break
    assert seen == {True, False}
    return number


def tree_of(states: list[FileState]) -> Tree:
    kept = [state for state in states if state.kind != "absent"]
    return {s.path: (s.kind, 0 if s.kind == "link" else s.mode, s.data) for s in kept}
