"""Versions of files: what a session's tools changed on disk, so that it can be undone.

Owns change sets, the versions before and after each, and contents by digest. Changes run in the caller's transaction.
Must not know files on disk, nor when a change is undone.
"""

import hashlib
import json
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from holdfast.memory.db import Database, StoreError
from holdfast.memory.row_format import row_checksum

ID_BYTES = 16  # of the digest that names contents
LEVEL = 1  # of compression: source shrinks to a third, 16 MB take 0.2 s
SET_COLUMNS = "id, branch_id, turn, seq, kind, state, undone, redone, num_files, checksum"
VERSION_COLUMNS = "change_id, number, path, old_kind, old_mode, old_content, new_kind, new_mode, new_content, checksum"
SETS_OF = "SELECT id FROM change_sets WHERE branch_id = ?"
USES = (
    "(SELECT COUNT(*) FROM file_versions WHERE old_content = id)"
    " + (SELECT COUNT(*) FROM file_versions WHERE new_content = id)"
)


class PathState(Protocol):
    """What one path is: absent, a file, a link, a directory; its permission bits; contents, or a link's target."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def mode(self) -> int: ...
    @property
    def data(self) -> bytes: ...


@dataclass(frozen=True)
class FileVersion:
    """A state of a path, its contents named by their digest."""

    kind: str
    mode: int
    content: bytes

    def is_same(self, other: "FileVersion") -> bool:
        """Whether both have the same contents, whatever their permission bits."""
        return (self.kind, self.content) == (other.kind, other.content)


@dataclass(frozen=True)
class ChangeSet:
    """Files that one call changed, or one undo, redo or rewind. It lies after event `seq` of a branch's log.

    `undone` and `redone` are ids of sets that it took back and put in place again; `files` are path, version before and
    version after. One that is not `is_done` was begun, and how far it came is not known.
    """

    id: int
    branch_id: int
    turn: int
    seq: int
    kind: str
    is_done: bool
    undone: tuple[int, ...]
    redone: tuple[int, ...]
    files: tuple[tuple[str, FileVersion, FileVersion], ...]


@dataclass(frozen=True)
class Settled:
    """Ids of change sets that were begun: those that took effect, and those that did not and are dropped."""

    done: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


NO_CHANGE = Settled()


def version_of(state: PathState) -> FileVersion:
    return FileVersion(state.kind, state.mode, content_id(state.data))


def content_id(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=ID_BYTES).digest()


def insert_change_set(
    connection: sqlite3.Connection,
    place: tuple[int, int, int],
    kind: str,
    files: Sequence[tuple[PathState, PathState]],
    undone: Sequence[int],
    redone: Sequence[int],
) -> int:
    """Add a change set that begins at `place` (branch, turn, seq), with all contents before and after; returns its
    id."""
    values = (*place, kind, "begun", json.dumps(undone), json.dumps(redone), len(files))
    sql = "INSERT INTO change_sets (branch_id, turn, seq, kind, state, undone, redone, num_files, checksum)"
    cursor = connection.execute(f"{sql} VALUES (?, ?, ?, ?, ?, ?, ?, ?, x'')", values)
    assert cursor.lastrowid is not None
    change_id = cursor.lastrowid
    _put_checksum(connection, (change_id, *values))
    for number, (old, new) in enumerate(files):
        before, after = version_of(old), version_of(new)
        columns = (before.kind, before.mode, before.content, after.kind, after.mode, after.content)
        row = (change_id, number, old.path, *columns)
        connection.execute(
            "INSERT INTO file_versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, row_checksum("file_versions", *row)),
        )
        _keep_content(connection, before.content, old.data)
        _keep_content(connection, after.content, new.data)
    return change_id


def settle(connection: sqlite3.Connection, settled: Settled, place: tuple[int, int, int] | None = None) -> None:
    """Mark change sets as done, moved to `place` if one is given, and delete those that took no effect."""
    for change_id in settled.done:
        row = connection.execute(f"SELECT {SET_COLUMNS} FROM change_sets WHERE id = ?", (change_id,)).fetchone()
        if row is None:
            continue  # its session was removed meanwhile
        id_, branch_id, turn, seq, kind, _, *rest, _ = row
        values = (id_, *(place or (branch_id, turn, seq)), kind, "done", *rest)
        connection.execute(
            "UPDATE change_sets SET branch_id = ?2, turn = ?3, seq = ?4, state = ?6 WHERE id = ?1", values[:6]
        )
        _put_checksum(connection, values)
    for change_id in settled.dropped:
        delete_change_set(connection, change_id)


def delete_change_set(connection: sqlite3.Connection, change_id: int) -> None:
    """Delete a change set, and the contents that no other one has."""
    sql = "DELETE FROM file_versions WHERE change_id = ? RETURNING old_content, new_content"
    contents = {id_ for row in connection.execute(sql, (change_id,)).fetchall() for id_ in row}
    connection.executemany(f"DELETE FROM file_contents WHERE id = ? AND {USES} = 0", [(id_,) for id_ in contents])
    connection.execute("DELETE FROM change_sets WHERE id = ?", (change_id,))


def delete_one_of(connection: sqlite3.Connection, branch_id: int) -> bool:
    """Delete the last change set of a branch; whether there was one."""
    row = connection.execute(f"{SETS_OF} ORDER BY id DESC LIMIT 1", (branch_id,)).fetchone()
    if row is not None:
        delete_change_set(connection, row[0])
    return row is not None


def change_sets(database: Database, branch_ids: Iterable[int]) -> list[ChangeSet]:
    """Those of some branches in the order in which they were begun. Raises StoreError for one that is damaged."""
    found = []
    with database.reading():
        for branch_id in branch_ids:
            ids = [row[0] for row in database.rows(f"{SETS_OF} ORDER BY id", (branch_id,))]
            columns = f"SELECT {SET_COLUMNS} FROM change_sets NOT INDEXED"
            rows = database.rows(f"{columns} WHERE branch_id = ? ORDER BY id", (branch_id,)) if ids else []
            versions = _version_rows(database, branch_id)
            if ids != [row[0] for row in rows] or versions.keys() - ids:  # index, table and versions must agree
                raise _damaged(database, "the list of")
            found += [_change_set(database, row, versions.get(row[0], [])) for row in rows]
    return sorted(found, key=lambda change: change.id)


def read_content(database: Database, content: bytes) -> bytes | None:
    """Contents by digest; None where they are damaged, missing or given up."""
    rows = database.rows("SELECT size, data FROM file_contents WHERE id = ?", (content,))
    return _unpacked(content, *rows[0]) if rows else None


def bytes_of_contents(database: Database) -> int:
    """What all contents take, compressed."""
    return int(database.rows("SELECT TOTAL(bytes) FROM file_contents")[0][0])


def give_up_oldest(connection: sqlite3.Connection, most_bytes: int) -> None:
    """Give up contents of the oldest change sets until the rest has at most so many bytes. The rows stay, to tell what
    can no longer be undone."""
    excess = connection.execute("SELECT TOTAL(bytes) FROM file_contents").fetchone()[0] - most_bytes
    if excess <= 0:
        return
    last_use = (
        "MAX(COALESCE((SELECT MAX(change_id) FROM file_versions WHERE old_content = id), 0),"
        " COALESCE((SELECT MAX(change_id) FROM file_versions WHERE new_content = id), 0))"
    )
    sql = f"SELECT id, bytes FROM file_contents WHERE bytes > 0 ORDER BY {last_use}"
    for id_, num_bytes in connection.execute(sql).fetchall():
        if excess <= 0:
            return
        connection.execute("UPDATE file_contents SET data = NULL, bytes = 0 WHERE id = ?", (id_,))
        excess -= num_bytes


def problems(database: Database) -> Iterator[str]:
    """A line for each row of a change set or a version, and for all contents, that are damaged or missing."""
    for row in database.rows(f"SELECT {SET_COLUMNS} FROM change_sets ORDER BY id"):
        if row[-1] != row_checksum("change_sets", *row[:-1]):
            yield f"change set {row[0]!a} is damaged: it cannot be undone"
    for row in database.rows(f"SELECT {VERSION_COLUMNS} FROM file_versions ORDER BY change_id, number"):
        if row[-1] != row_checksum("file_versions", *row[:-1]):
            yield f"a file of change set {row[0]!a} is damaged: the set cannot be undone"
    for _, id_ in _damaged_contents(database):
        yield f"contents {id_.hex()} of a file version are damaged: what has them cannot be undone"


def forget_damaged(database: Database) -> None:
    """Give up contents that are damaged, and delete change sets whose rows are."""
    with database.transaction() as connection:
        for rowid, _ in _damaged_contents(database):
            connection.execute("UPDATE file_contents SET data = NULL, bytes = 0 WHERE rowid = ?", (rowid,))
        for table, columns in (("change_sets", SET_COLUMNS), ("file_versions", VERSION_COLUMNS)):
            for row in database.rows(f"SELECT {columns} FROM {table}"):
                if row[-1] != row_checksum(table, *row[:-1]):
                    delete_change_set(connection, row[0])


def _damaged_contents(database: Database) -> Iterator[tuple[int, bytes]]:
    """Row and digest of contents that are not what the digest names; one at a time in memory."""
    for (rowid,) in database.rows("SELECT rowid FROM file_contents"):
        for id_, size, data in database.rows("SELECT id, size, data FROM file_contents WHERE rowid = ?", (rowid,)):
            if data is not None and _unpacked(id_, size, data) is None:
                yield rowid, id_


def _keep_content(connection: sqlite3.Connection, id_: bytes, data: bytes) -> None:
    known = connection.execute("SELECT data IS NOT NULL FROM file_contents WHERE id = ?", (id_,)).fetchone()
    if known is not None and known[0]:
        return
    packed = zlib.compress(data, LEVEL)
    connection.execute(
        "INSERT INTO file_contents VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET size = excluded.size,"
        " bytes = excluded.bytes, data = excluded.data",
        (id_, len(data), len(packed), packed),
    )


def _put_checksum(connection: sqlite3.Connection, values: tuple[Any, ...]) -> None:
    checksum = row_checksum("change_sets", *values)
    connection.execute("UPDATE change_sets SET checksum = ? WHERE id = ?", (checksum, values[0]))


def _version_rows(database: Database, branch_id: int) -> dict[int, list[Sequence[Any]]]:
    """The versions of a branch's change sets, by set."""
    where = f"change_id IN ({SETS_OF}) ORDER BY change_id, number"
    found: dict[int, list[Sequence[Any]]] = defaultdict(list)
    for row in database.rows(f"SELECT {VERSION_COLUMNS} FROM file_versions WHERE {where}", (branch_id,)):
        found[row[0]].append(row)
    return found


def _change_set(database: Database, row: Sequence[Any], version_rows: Sequence[Sequence[Any]]) -> ChangeSet:
    *values, checksum = row
    id_, branch_id, turn, seq, kind, state, undone, redone, num_files = values
    is_sound = checksum == row_checksum("change_sets", *values) and len(version_rows) == num_files
    if not is_sound or not all(_is_sound(version, id_, number) for number, version in enumerate(version_rows)):
        raise _damaged(database, f"change set {id_!a} of")
    files = [(row[2], FileVersion(*row[3:6]), FileVersion(*row[6:9])) for row in version_rows]
    lists = (tuple(json.loads(undone)), tuple(json.loads(redone)))
    return ChangeSet(id_, branch_id, turn, seq, kind, state == "done", *lists, tuple(files))


def _is_sound(version: Sequence[Any], change_id: int, number: int) -> bool:
    *values, checksum = version
    return values[:2] == [change_id, number] and checksum == row_checksum("file_versions", *values)


def _damaged(database: Database, what: str) -> StoreError:
    return StoreError(
        f"{what} file versions in {database.path} is damaged: `holdfast sessions verify --repair` forgets it,"
        " and what it changed stays as it is"
    )


def _unpacked(id_: bytes, size: int, packed: Any) -> bytes | None:
    """None unless these are the contents that the digest names."""
    if not isinstance(packed, bytes):
        return None
    try:
        data = zlib.decompressobj().decompress(packed, max(size, 0) + 1)  # damaged, it could unpack to very much
    except (zlib.error, ValueError):
        return None
    return data if content_id(data) == id_ else None
