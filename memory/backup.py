"""A data directory as one file, and back: the database at one moment, and the state that it names.

Owns the format: a tar archive of `format`, `holdfast.db` and files of `blobs/`. Other processes may write while a
backup is made. State is a cache of the logs: files that are missing or damaged when they are copied are left out of the
backup, and computed again after a restore.
"""

import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.memory import blobs as blob_files
from holdfast.memory.blobs import KINDS, BlobStore, DamagedBlob
from holdfast.memory.db import Database, StoreError, disk_errors_explained
from holdfast.memory.directories import make_directory, sync_directory
from holdfast.memory.snapshot_rows import PAGE_COLUMNS, TAIL_COLUMNS, checked_page, checked_tail
from holdfast.memory.turnstile import Turnstile
from holdfast.memory.upkeep import forget

FORMAT = b"holdfast backup 1\n"
DATABASE = "holdfast.db"
UNUSABLE = ("cannot be used", "check the disk and the permissions")
Named = tuple[str, bytes, int, bytes]  # kind, id, size and checksum of a page or tail


@dataclass(frozen=True)
class Copied:
    """Files of state in a backup or put back from one: their number and bytes, and how many were left out."""

    num_files: int
    num_bytes: int
    num_left_out: int


def back_up(home: Path, target: Path) -> Copied:
    """Copy a data directory into a new file, which gets its name when it is complete and synced.

    Raises StoreError, also if the file exists.
    """
    with closing(Database(home)) as database, disk_errors_explained(target, *UNUSABLE), _scratch(target) as scratch:
        if target.exists():
            raise StoreError(f"{target} exists already: choose another name, or remove it")
        copy, archive = scratch / DATABASE, scratch / "archive"
        database.rows("VACUUM INTO ?", (str(copy),))
        with tarfile.open(archive, "x") as tar:
            _add(tar, "format", FORMAT)
            with closing(sqlite3.connect(copy)) as connection:
                copied = _add_state(tar, connection, BlobStore(home))
            tar.add(copy, DATABASE)
        os.chmod(archive, 0o600)
        _sync_file(archive)
        blob_files.crash_point("before link of backup")
        os.link(archive, target)  # fails where another took the name meanwhile
        sync_directory(target.parent)
        return copied


def restore(home: Path, source: Path, replace: bool = False) -> Copied:
    """Put back what `back_up` wrote. After a crash at any point the directory has its old content or all of the backup.

    With `replace` an existing database is kept as `holdfast.db.replaced-N`. Raises StoreError if there is a database
    and no `replace`, or while a process has it open.
    """
    with disk_errors_explained(home, *UNUSABLE), _opened(source) as tar:
        if (home / DATABASE).exists() and not replace:
            raise StoreError(f"{home} has a database already: add --replace, or set HOLDFAST_HOME to another directory")
        make_directory(home)
        with _alone(home), _scratch(home / DATABASE) as scratch:
            _extract(tar, scratch / DATABASE)
            with closing(Database(scratch)) as database:
                database.renew_id()  # the lock files of this home are about the database before
                copied = _place_state(tar, database, BlobStore(home))
            _sync_file(scratch / DATABASE)
            blob_files.crash_point("before rename of database")
            _keep_replaced(home)
            os.rename(scratch / DATABASE, home / DATABASE)
            sync_directory(home)
        return copied


def _add_state(tar: tarfile.TarFile, connection: sqlite3.Connection, blobs: BlobStore) -> Copied:
    num_files = num_bytes = num_left_out = 0
    for kind, id_, size, checksum in _named(connection):
        try:
            data = blobs.read(kind, id_, size, checksum)
        except DamagedBlob:
            num_left_out += 1
            continue
        _add(tar, _name(kind, id_), data)
        blob_files.crash_point("after file of backup")
        num_files, num_bytes = num_files + 1, num_bytes + size
    return Copied(num_files, num_bytes, num_left_out)


def _place_state(tar: tarfile.TarFile, database: Database, blobs: BlobStore) -> Copied:
    """Write the files that the rows name; delete the rows whose file is missing or damaged."""
    members = {member.name: member for member in tar.getmembers() if member.isreg()}
    num_files = num_bytes = num_left_out = 0
    for kind, id_, size, checksum in list(_named(database)):
        member = members.get(_name(kind, id_))
        file = tar.extractfile(member) if member is not None and member.size == size else None
        written = blobs.write(kind, id_, file.read()) if file is not None else None
        if written is None or written.checksum != checksum:
            blobs.discard([written] if written else [])
            forget(database, kind, id_)
            num_left_out += 1
            continue
        blobs.place(written)
        blob_files.crash_point("after file of restore")
        num_files, num_bytes = num_files + 1, num_bytes + size
    blobs.sync(KINDS)
    return Copied(num_files, num_bytes, num_left_out)


def _named(database: Database | sqlite3.Connection) -> Iterator[Named]:
    """Every page and tail whose row is sound."""
    read = database.rows if isinstance(database, Database) else database.execute
    for page in map(checked_page, read(f"SELECT {PAGE_COLUMNS} FROM pages")):
        if page is not None:
            yield "pages", page.id, page.num_bytes, page.checksum
    for tail in map(checked_tail, read(f"SELECT {TAIL_COLUMNS} FROM tails")):
        if tail is not None:
            yield "tails", tail.id, tail.num_bytes, tail.checksum


def _name(kind: str, id: bytes) -> str:
    return f"blobs/{kind}/{id.hex()}{blob_files.SUFFIX}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))


@contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    """A backup to read from. Raises StoreError for any other file."""
    try:
        with tarfile.open(source, "r:") as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == "format" else None
            if file is None or file.read() != FORMAT:
                raise StoreError(
                    f"{source} is no backup that this build reads: it was made by another program or version"
                )
            tar.getmember(DATABASE)  # the last member: a truncated file lacks it
            yield tar
    except (tarfile.TarError, KeyError, EOFError) as e:
        raise StoreError(f"{source} is no whole backup ({e}): take another one") from e


def _extract(tar: tarfile.TarFile, path: Path) -> None:
    file = tar.extractfile(DATABASE)
    assert file is not None, path
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(file, target)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Holds the write lock, with the write-ahead log merged. Raises StoreError while another process has the database
    open."""
    turnstile = Turnstile(home)
    try:
        if not turnstile.enter(0):
            raise StoreError(f"{home / DATABASE} is in use by {turnstile.holder()}: end it first")
        if (home / DATABASE).exists():
            _merge_log(home / DATABASE)
        yield
    finally:
        turnstile.close()


def _merge_log(path: Path) -> None:
    """Bring a database's write-ahead log into its file. Raises StoreError while another process has it open."""
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.DatabaseError as e:  # a damaged one is replaced as it is
            if e.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise StoreError(
                    f"{path} is in use by another process: end it first (holdfast serve, chat or run)"
                ) from None


def _keep_replaced(home: Path) -> None:
    """Link the old database to a second name, and move its write-ahead log, which a damaged one keeps, along."""
    if not (home / DATABASE).exists():
        return
    number = 1
    while (kept := home / f"{DATABASE}.replaced-{number}").exists():
        number += 1
    os.link(home / DATABASE, kept)
    with suppress(FileNotFoundError):
        os.rename(home / f"{DATABASE}-wal", f"{kept}-wal")
    with suppress(FileNotFoundError):
        os.unlink(home / f"{DATABASE}-shm")


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A temporary directory beside a file. One that a killed process left is replaced."""
    scratch = path.with_name(f".{path.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
