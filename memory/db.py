"""The SQLite file of a data directory: opening it and bringing it to this build's schema.

Owns `holdfast.db`, the one way to change it (`transaction`) and the words for what can go wrong with it. Must not know
what the rows mean. Plain sqlite3: sqlite-utils runs migrations, see `migrate`, and nothing that every start needs.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from holdfast.memory.directories import make_directory
from holdfast.memory.schema import MIGRATIONS
from holdfast.memory.turnstile import Turnstile

BUSY_TIMEOUT_S = 10.0
WAL_BYTES = 4 * 2**20  # of the write-ahead log: longer, and it is copied into the file


class StoreError(Exception):
    """The data directory cannot do what was asked. The message is one line: the thing, the value and the way out."""


@contextmanager
def disk_errors_explained(
    path: Path,
    problem: str = "cannot be written",
    way_out: str = "make room on its disk, or check the disk and the permissions",
) -> Iterator[None]:
    """Raises StoreError for an OSError of the block; `path` is what it works on, where the error names no file."""
    try:
        yield
    except OSError as e:
        raise StoreError(f"{e.filename or path} {problem} ({e.strerror}): {way_out}") from e


class Database:
    """One connection to `home/holdfast.db`, made private to its owner when it is created. Threads take turns at it."""

    def __init__(self, home: Path):
        """Raises OSError when `home` cannot hold the file, StoreError when the file is damaged or newer than this
        build."""
        make_directory(home)
        self.home = home
        self.path = home / "holdfast.db"
        self._lock = threading.RLock()
        self._refuse_lost()
        # POSIX: closing any descriptor of a file releases all of this process's locks on it, SQLite's included. Another
        # process would then delete our write-ahead log. So the file is opened here only to create it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._turnstile = Turnstile(home)
        self._files: tuple[tuple[int, int], ...] | None = None  # device and inode of both files, once open
        try:
            with self._errors_explained():
                self._connection = sqlite3.connect(
                    self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
        except BaseException:
            self._turnstile.close()
            raise
        try:
            with self._errors_explained():
                self._configure()
                self._migrate()
            self._files = self._named_files()
        except BaseException:
            self.close()
            raise

    def _refuse_lost(self) -> None:
        """Raises StoreError if the file is missing or empty in a home that has had sessions: SQLite would begin a new
        one."""
        if (self.path.is_file() and self.path.stat().st_size) or not any((self.home / "locks").glob("session-*")):
            return
        what = "empty" if self.path.is_file() else "missing"
        raise StoreError(
            f"{self.path} is {what}, though {self.home} has had sessions: restore it from a backup,"
            f" or move {self.home} away to begin with an empty one"
        )

    def _configure(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")  # see `_checkpoint`

    def _migrate(self) -> None:
        with self.transaction():
            version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path} was written by a newer holdfast"
                    f" (schema {version}, this build reads {len(MIGRATIONS)}):"
                    " update holdfast, or set HOLDFAST_HOME to another directory"
                )
            if version == len(MIGRATIONS):
                return
            from holdfast.memory.migrate import bring_forward

            bring_forward(self._connection, version, MIGRATIONS)
        self._merge()

    def again(self) -> "Database":
        """A second connection to the same file. Raises StoreError if the file was replaced since."""
        self._check_files()
        another = Database(self.home)
        if another._files != self._files:
            another.close()
            self._check_files()
        return another

    @property
    def id(self) -> str:
        """Random id of this database; a restored copy gets another one."""
        return str(self.rows("SELECT id FROM identity")[0][0])

    def renew_id(self) -> None:
        """Give the database another id: lock files that name the old one count no more."""
        with self.transaction() as connection:
            connection.execute("UPDATE identity SET id = lower(hex(randomblob(8)))")
        self._merge()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, durable when the block ends. The write lock is taken first: a statement never waits for
        it."""
        with self._lock, self._errors_explained():
            self._enter()
            try:
                self._check_files()
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
                self._check_files()  # a commit into a file that was deleted meanwhile is not acknowledged
                self._checkpoint()
            finally:
                self._turnstile.leave()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A read transaction: the queries of the block see one snapshot of the file."""
        with self._lock, self._errors_explained():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock, self._errors_explained():
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            self._turnstile.close()

    def _enter(self) -> None:
        """Take the write lock. Raises StoreError that names the process which has it."""
        if not self._turnstile.enter(BUSY_TIMEOUT_S):
            raise StoreError(
                f"{self.path} was in use by {self._turnstile.holder()} for {BUSY_TIMEOUT_S:.0f} s: try again"
            )

    def _merge(self) -> None:
        """Copy the write-ahead log into the file: the database's id must survive a log that is damaged later, since a
        lost session is told from one of another database by it."""
        with self._lock, self._errors_explained():
            self._enter()
            try:
                self._checkpoint(0)
            finally:
                self._turnstile.leave()

    def _checkpoint(self, most_bytes: int | None = None) -> None:
        """Copy a long write-ahead log into the file, under the write lock. Frames that a reader needs stay until the
        next checkpoint. SQLite's automatic checkpoints would run beside writers of other processes, see `turnstile`."""
        if os.stat(self._wal_path).st_size <= (WAL_BYTES if most_bytes is None else most_bytes):
            return
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:
            pass  # a full disk, for example: the commits are safe in the log
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    def _check_files(self) -> None:
        """Raises StoreError if our files were moved, deleted or replaced: what is written to them would be lost."""
        if self._files is not None and self._named_files() != self._files:
            raise StoreError(
                f"{self.path} or its -wal file was moved, replaced or deleted while this process used it: nothing is"
                " written any more; put it back, or end this process and start it again"
            )

    def _named_files(self) -> tuple[tuple[int, int], ...]:
        """Device and inode of the database and its write-ahead log, by their names."""
        try:
            return tuple((status.st_dev, status.st_ino) for status in (os.stat(self.path), os.stat(self._wal_path)))
        except FileNotFoundError:
            return ()

    @property
    def _wal_path(self) -> str:
        return f"{self.path}-wal"

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as e:  # an error message that quotes damaged text is no UTF-8
            code = getattr(e, "sqlite_errorname", "SQLITE_CORRUPT" if isinstance(e, UnicodeDecodeError) else "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise StoreError(
                    f"{self.path} is damaged ({e}): restore it from a backup,"
                    f" or move {self.home} away to begin with an empty one"
                ) from e
            if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise StoreError(
                    f"{self.path} was in use by another process for {BUSY_TIMEOUT_S:.0f} s: try again"
                ) from e
            raise StoreError(f"{self.path} cannot be used: {e}") from e
