"""The tables, and how an older file becomes a current one.

``PRAGMA user_version`` counts the steps of `STEPS` that a file has had; ``PRAGMA application_id``
tells our files from other programs'. A step, once released, is never changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from holdfast.backends.sqlite.connection import write_transaction
from holdfast.errors import SchemaError

__all__ = ["APPLICATION_ID", "STEPS", "check", "migrate"]

APPLICATION_ID: Final = 0x484F_4C44  # "HOLD"

STEPS: Final[Sequence[Sequence[str]]] = (
    (
        # Nothing that a touch changes is indexed: a touch rewrites one row, in place.
        """CREATE TABLE sessions (
            incarnation INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT,
            created_us INTEGER NOT NULL,
            active_us INTEGER NOT NULL,
            ttl_us INTEGER,
            deadline_us INTEGER,
            status TEXT NOT NULL,
            metadata TEXT NOT NULL,
            first_seq INTEGER NOT NULL,
            last_seq INTEGER NOT NULL,
            version INTEGER NOT NULL,
            trimmed_seq INTEGER NOT NULL DEFAULT 1
        )""",
        "CREATE INDEX sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL",
        """CREATE TABLE state (
            incarnation INTEGER NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            version INTEGER NOT NULL,
            PRIMARY KEY (incarnation, key)
        ) WITHOUT ROWID""",
        # A log in order of arrival and an index: inserts two to four times as fast as a table
        # clustered on (incarnation, seq), because an event's data is written at the end of the file.
        """CREATE TABLE events (
            incarnation INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            stream TEXT NOT NULL,
            type TEXT NOT NULL,
            data TEXT NOT NULL,
            retry_ms INTEGER,
            time_us INTEGER NOT NULL
        )""",
        "CREATE UNIQUE INDEX events_by_session ON events (incarnation, seq)",
        # Removed sessions that have events left.
        "CREATE TABLE graveyard (incarnation INTEGER PRIMARY KEY)",
        """CREATE TABLE markers (
            writer TEXT NOT NULL,
            lane INTEGER NOT NULL,
            flush INTEGER NOT NULL,
            outcomes BLOB NOT NULL,
            time_us INTEGER NOT NULL,
            PRIMARY KEY (writer, lane)
        )""",
    ),
)


def check(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = STEPS) -> int:
    """The file's version; 0 for an empty one.

    Raises: `SchemaError` if it is another program's, or of a newer version than this one.
    """
    found = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    if application != APPLICATION_ID:
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application or found or tables:
            raise SchemaError("the file is another program's database", supported=len(steps))
        return 0
    if found > len(steps):
        raise SchemaError(
            f"the file has schema version {found}; this version of Holdfast knows up to {len(steps)}",
            found=found,
            supported=len(steps),
        )
    return found


def migrate(connection: sqlite3.Connection, steps: Sequence[Sequence[str]] = STEPS) -> None:
    """Bring the file up to date, in one transaction: of many processes at once, one does it.

    Raises: `SchemaError` as `check` does.
    """
    if check(connection, steps) == len(steps):
        return
    with write_transaction(connection):
        for step in steps[check(connection, steps) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
