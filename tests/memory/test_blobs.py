"""Promises of single files: whole or absent, private, never mistaken, and one line when a disk fails."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.memory import BlobStore, DamagedBlob, StoreError
from holdfast.memory.blobs import PAGES, TAILS, Written

ID = bytes(range(16))
DATA = bytes(range(256)) * 40


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "home")


def stored(blobs: BlobStore, data: bytes = DATA) -> Written:
    written = blobs.write(PAGES, ID, data)
    blobs.place(written)
    blobs.sync([PAGES])
    return written


def read(blobs: BlobStore, written: Written) -> bytes:
    return blobs.read(written.kind, written.id, written.num_bytes, written.checksum)


@pytest.mark.parametrize("data", [b"", b"x", DATA, os.urandom(3 * 2**20)], ids=len)
def test_a_file_is_read_as_written(blobs: BlobStore, data: bytes) -> None:
    assert read(blobs, stored(blobs, data)) == data
    view = memoryview(bytearray(data))
    tail = blobs.write(TAILS, ID, view)
    blobs.place(tail)
    assert read(blobs, tail) == data and len(tail.checksum) == 16


def test_files_are_private_and_named_by_their_id(blobs: BlobStore, tmp_path: Path) -> None:
    stored(blobs)
    modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in sorted(tmp_path.rglob("*"))}
    page = f"home/blobs/pages/{ID.hex()}.safetensors"
    directories = ("home", "home/blobs", "home/blobs/pages", "home/blobs/tails")
    assert modes == {page: 0o600, **dict.fromkeys(directories, 0o700)}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "its file is missing"),
        (lambda path: path.write_bytes(DATA[:-1]), "its file is too short"),
        (lambda path: path.write_bytes(b""), "its file is too short"),
        (lambda path: path.write_bytes(DATA + b"x"), "its file is too long"),
        (lambda path: path.write_bytes(DATA[:-1] + b"?"), "its checksum is wrong"),
    ],
)
def test_damage_names_the_file_and_what_is_wrong(blobs: BlobStore, damage: Callable[[Path], None], why: str) -> None:
    written = stored(blobs)
    damage(blobs.path(PAGES, ID))
    with pytest.raises(DamagedBlob, match=rf"page {ID.hex()} of the stored state is damaged \({why}\)") as caught:
        read(blobs, written)
    assert (caught.value.kind, caught.value.id, caught.value.why) == (PAGES, ID, why)


def fails_with(number: int) -> Callable[..., None]:
    def fails(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fails


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("function", ["open", "write", "fsync", "rename"])
def test_a_disk_that_does_not_take_a_file_gives_one_line(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=os.strerror(number)) as caught:
        patch.setattr(os, function, fails_with(number))
        written = blobs.write(PAGES, ID, DATA)
        try:
            blobs.place(written)
        finally:
            blobs.discard([written])
    assert str(blobs.path(PAGES, ID).parent) in str(caught.value) and "\n" not in str(caught.value)
    assert list(blobs.path(PAGES, ID).parent.iterdir()) == []


def test_a_disk_that_became_read_only_gives_the_same_line(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written = blobs.write(PAGES, ID, DATA)
    for function in ("open", "unlink", "rename"):
        monkeypatch.setattr(os, function, fails_with(errno.EROFS))
    for attempt in (lambda: blobs.write(PAGES, ID, DATA), lambda: blobs.place(written)):
        with pytest.raises(StoreError, match="Read-only file system"):
            attempt()
    blobs.discard([written])


def test_a_directory_that_cannot_be_synced_gives_one_line(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    with pytest.raises(StoreError, match="blobs/tails cannot be written"):
        blobs.sync([TAILS])


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """On a real file system of 64 KiB, where this process may mount one."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        blobs = BlobStore(tmp_path / "disk" / "home")
        with pytest.raises(StoreError, match="No space left on device"):
            blobs.write(PAGES, ID, bytes(100_000))
        assert read(blobs, stored(blobs)) == DATA
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_short_reads_and_writes_are_continued(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    really_read, really_write = os.read, os.write
    monkeypatch.setattr(os, "read", lambda fd, count: really_read(fd, min(count, 100)))
    monkeypatch.setattr(os, "write", lambda fd, data: really_write(fd, data[:1000]))
    assert read(blobs, stored(blobs)) == DATA


def test_a_disk_that_cannot_read_is_damage_and_too_many_open_files_is_not(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = stored(blobs)
    with monkeypatch.context() as patch, pytest.raises(DamagedBlob, match="its file cannot be read"):
        patch.setattr(os, "read", fails_with(errno.EIO))
        read(blobs, written)
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be read") as caught:
        patch.setattr(os, "open", fails_with(errno.EMFILE))
        read(blobs, written)
    assert not isinstance(caught.value, DamagedBlob)


def test_only_files_of_ended_processes_are_stale(blobs: BlobStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    directory = blobs.path(PAGES, ID).parent
    old, fresh, alive = (directory / f"{ID.hex()}.{pid}-1.tmp" for pid in (ended.pid, 2**31 - 7, os.getpid()))
    stored(blobs)
    for path in (old, fresh, alive, directory / "notes.txt", directory / "odd.tmp"):
        path.write_bytes(b"x")
        if path != fresh:
            os.utime(path, (time.time() - 3600,) * 2)
    assert blobs.remove_stale() == 2
    assert not old.exists() and fresh.exists() and alive.exists() and (directory / "notes.txt").exists()
    assert list(blobs.ids(PAGES)) == [ID]
