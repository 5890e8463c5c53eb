"""Bringing a database forward: which migrations it lacks, and applying them by name with sqlite-utils.

sqlite-utils records each migration in `_sqlite_migrations`. All of them run in the caller's transaction, so a file is
of the old schema or of the new one. `user_version` counts them: every start reads it, and it is how any build refuses a
newer file. `db` imports this module only for a file that lacks something, as loading sqlite-utils takes a fifth of a
second.
"""

import datetime
import sqlite3
from collections.abc import Sequence

from sqlite_utils import Database, Migrations

from holdfast.memory.schema import Migration

SET = "holdfast"  # `migration_set` of our rows in `_sqlite_migrations`


def bring_forward(connection: sqlite3.Connection, version: int, migrations: Sequence[tuple[str, Migration]]) -> None:
    """Apply, in the caller's transaction, the migrations that a file of this `user_version` lacks."""
    wanted = Migrations(SET)
    for name, migration in migrations:
        _register(wanted, name, migration)
    # no plugins: what else is installed must not change a connection of ours
    database = Database(connection, recursive_triggers=False, execute_plugins=False)
    wanted.ensure_migrations_table(database)
    known, now = {applied.name for applied in wanted.applied(database)}, str(datetime.datetime.now(datetime.UTC))
    database.table(wanted.migrations_table).insert_all(  # those of builds that had only the count
        {"migration_set": SET, "name": name, "applied_at": now} for name, _ in migrations[:version] if name not in known
    )
    wanted.apply(database)
    connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _register(wanted: Migrations, name: str, migration: Migration) -> None:
    @wanted(name=name)
    def apply(database: Database) -> None:
        migration(database.conn)
