"""Damage to what is stored: it is found or harmless, the answer stays right, and the user is told what is read again.

`python -m tests.long.damage` does ten thousand of these.
"""

import asyncio
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from holdfast.agent.config import POCKET_DIR
from holdfast.agent.events import Error
from holdfast.memory import BlobStore, Database, SnapshotStore, StoreError, blobs
from holdfast.memory.blobs import PAGES, TAILS
from holdfast.memory.row_format import row_checksum
from tests.agent.real_session import (
    ASK,
    KNOWN,
    TELL,
    answer,
    ask,
    ask_anew,
    done,
    make_workspace,
    notices,
    opened,
    session_of,
)
from tests.long.crashes import LONG
from tests.long.damage import Home, cut, filled, flip, flips, inspect

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Home]:
    """As a process that stopped leaves it, and as one that was killed does."""
    directory = tmp_path_factory.mktemp("homes")
    return [filled(directory, closes) for closes in (True, False)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a session that was told something, in more than one page; beside it is its workspace."""
    directory = tmp_path_factory.mktemp("told")
    ask_anew(directory / "home", make_workspace(directory / "ws"), LONG, TELL)
    return directory


@pytest.fixture
def home(told: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(told / "home", told / tmp_path.name))


def asked(home: Path) -> tuple[list[str], int]:
    """The question is answered right; the notices, and how many tokens were prefilled again."""
    events = ask_anew(home, home.parent / "ws", ASK, name="work")
    assert answer(events) == KNOWN
    return notices(events), done(events).usage.prefilled_again


def newest(home: Path, kind: str) -> Path:
    return max((home / "blobs" / kind).iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_flipped_bits_are_found_or_harmless(homes: list[Home], tmp_path: Path) -> None:
    for home in homes:
        damages = flips(home, 100, random.Random(7))
        inspector = asyncio.run(inspect(tmp_path, home, damages, every_turn=25))
        assert inspector.faults == []


@pytest.mark.parametrize("kind", [PAGES, TAILS])
@pytest.mark.parametrize("damage", [lambda path: flip(path, 4321), lambda path: cut(path, 4096), Path.unlink])
def test_state_that_is_damaged_is_read_again_and_the_user_is_told(
    home: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    file = newest(home, kind)
    damage(file)
    said, num_again = asked(home)
    assert len(said) == 1 and file.stem in said[0] and "damaged" in said[0]
    assert num_again > 0
    assert asked(home) == ([], 0)  # what was read again is stored again
    with closing(Database(home)) as database, closing(SnapshotStore(database, BlobStore(home))) as snapshots:
        assert snapshots.verify().damaged == []


def test_a_damaged_row_of_the_stored_state_is_told_too(home: Path) -> None:
    with closing(Database(home)) as database, database.transaction() as connection:
        assert connection.execute("UPDATE tails SET bytes = bytes + 1").rowcount == 2
    said, num_again = asked(home)
    assert len(said) == 2 and all("its row is damaged" in line for line in said) and num_again > 0
    assert asked(home) == ([], 0)


def test_tails_that_changed_places_are_found(home: Path) -> None:
    first, second = sorted((home / "blobs" / TAILS).iterdir())
    first.rename(home / "aside")
    second.rename(first)
    (home / "aside").rename(second)
    said, num_again = asked(home)
    assert len(said) == 2 and num_again > 0
    assert asked(home) == ([], 0)


def test_state_whose_bytes_are_sound_but_no_state_is_given_up(home: Path) -> None:
    """Not damage: a checksum that fits what another program wrote there."""
    with closing(Database(home)) as database:
        for kind in (TAILS, PAGES):
            for file in (home / "blobs" / kind).iterdir():
                file.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
                values = (16, blobs._checksum(file.read_bytes()), bytes.fromhex(file.stem))
                database.rows(f"UPDATE {kind} SET bytes = ?, checksum = ? WHERE id = ?", values)
                columns = "id, parent, number" if kind == PAGES else "id, last_page, first_number, head, position"
                columns += ", bytes, checksum" + (", created_at" if kind == TAILS else "")
                row = tuple(database.rows(f"SELECT {columns} FROM {kind} WHERE id = ?", values[2:])[0])
                checksum = (row_checksum(kind, *row), values[2])
                database.rows(f"UPDATE {kind} SET row_checksum = ? WHERE id = ?", checksum)
    said, num_again = asked(home)
    assert said and "does not fit this model" in said[0] and num_again > 0
    assert asked(home) == ([], 0)


def test_state_of_another_tokenizer_or_of_other_weights_is_not_used(home: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(POCKET_DIR, tmp_path / "model"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))  # the same one, but who knows

    async def ask_other(name: str) -> tuple[str, int, str | None]:
        async with opened(home, model) as app, aclosing(await session_of(app, home.parent / "ws", name)) as session:
            usage = done(events := await ask(session, ASK)).usage
            return answer(events), usage.prefilled_again, usage.why

    text, num_again, why = asyncio.run(ask_other("work"))
    assert (text, why) == (KNOWN, "no stored state") and num_again > 300
    shard = model / "model-00001-of-00001.safetensors"
    flip(shard, 8 * (shard.stat().st_size - 9))
    with pytest.raises(StoreError, match=r"session work was written by model .*: open it with its own model"):
        asyncio.run(ask_other("work"))


@pytest.mark.parametrize(
    ("call", "error"), [("open", errno.EROFS), ("write", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.ENOSPC)]
)
def test_a_save_that_fails_is_told_and_made_up_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    async def turns() -> None:
        async with opened(home) as app, aclosing(await session_of(app, home.parent / "ws")) as session:
            before = newest(home, TAILS)
            with monkeypatch.context() as failing:
                failing.setattr(blobs, "os", FailingOs(call, error))
                assert notices(await ask(session, TELL)) == []
                assert session.log.turns()[-1][1] == "done"
            (said,) = notices(events := await ask(session, ASK))
            assert "cannot be written" in said and os.strerror(error) in said
            assert answer(events) == KNOWN and done(events).usage.prefilled_again == 0
            assert newest(home, TAILS) != before  # stored after all

    asyncio.run(turns())
    assert asked(home) == ([], 0)
    assert not [path for path in (home / "blobs").rglob("*") if path.suffix == ".tmp"]


class FailingOs:
    """`os` for the files of stored state, where one call fails when it is to write."""

    def __init__(self, call: str, error: int):
        self._call, self._error = call, error

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name != self._call:
            return real

        def fail(path: object, *arguments: object) -> object:
            if name == "open" and not arguments[0] & os.O_CREAT:  # type: ignore[operator]
                return real(path, *arguments)
            raise OSError(self._error, os.strerror(self._error), str(path))

        return fail


def test_state_that_cannot_be_read_now_is_computed_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, size: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as failing:
        failing.setattr(blobs, "_read_file", refuse)
        said, num_again = asked(home)
    assert len(said) == 1 and "Permission denied" in said[0] and num_again > 0
    assert asked(home) == ([], 0)  # it was no damage


def test_a_full_disk_ends_a_turn_with_an_error_and_loses_nothing(home: Path) -> None:
    """The log cannot be written: nothing is said that is not in it, and the session goes on when there is room."""

    async def turns() -> None:
        async with opened(home) as app, aclosing(await session_of(app, home.parent / "ws")) as session:
            database, ids = app.store._database, session.log.ids.tolist()
            pages = database.rows("PRAGMA page_count")[0][0]
            database.rows(f"PRAGMA max_page_count = {pages}")
            events = await ask(session, LONG)
            assert isinstance(events[-1], Error) and "full" in events[-1].message
            assert session.log.ids.tolist()[: len(ids)] == ids
            database.rows(f"PRAGMA max_page_count = {pages + 1000}")
            assert answer(await ask(session, ASK)) == KNOWN

    asyncio.run(turns())
    assert asked(home)[1] == 0


@pytest.mark.parametrize("damage", [lambda path: cut(path, 0), Path.unlink])
def test_a_database_that_is_gone_is_not_taken_for_a_new_one(home: Path, damage: Callable[[Path], None]) -> None:
    damage(home / "holdfast.db")
    with pytest.raises(StoreError, match=r"holdfast\.db is (empty|missing)"):
        asked(home)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6])
def test_acknowledged_turns_that_a_damaged_write_ahead_log_lost_are_missed(
    homes: list[Home], tmp_path: Path, kept: float
) -> None:
    """SQLite takes the log's end for a commit that was never finished."""
    killed = homes[1]
    home = Path(shutil.copytree(killed.path, tmp_path / "home"))
    wal = home / "holdfast.db-wal"
    cut(wal, int(wal.stat().st_size * kept))
    with pytest.raises(
        StoreError, match=r"(has lost its end|is gone from).* restore .* or remove .*/session-\d to go on"
    ):
        ask_anew(home, killed.workspace, ASK, name="second")
    for lock in (home / "locks").iterdir():
        lock.unlink()
    done(ask_anew(home, killed.workspace, ASK, name="second"))


@pytest.mark.parametrize("name", ["blobs", "locks"])
def test_a_directory_that_cannot_be_made_gives_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / name).write_text("in the way")
    with pytest.raises(StoreError, match=rf"{name}.* cannot be written \(.*\): make room") as caught:
        ask_anew(tmp_path / "home", make_workspace(tmp_path / "ws"), ASK)
    assert "\n" not in str(caught.value)


def test_a_run_whose_last_save_fails_says_so(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in (PAGES, TAILS):
        shutil.rmtree(home / "blobs" / kind)
        (home / "blobs" / kind).symlink_to("/proc/self/attr")  # a directory where root cannot make a file either
    command = [
        sys.executable,
        "-m",
        "holdfast.agent",
        "run",
        ASK,
        "--session",
        "work",
        "--workspace",
        str(home.parent / "ws"),
    ]
    env = {**os.environ, "HOLDFAST_HOME": str(home), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=ROOT, env=env, timeout=120).returncode == 0
    out, err = capfd.readouterr()
    assert KNOWN in out
    assert "cannot be written" in err.splitlines()[-1] and "Traceback" not in err
