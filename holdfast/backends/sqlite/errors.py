"""From the driver's errors to Holdfast's."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from holdfast.errors import Rejected, SchemaError, StoreError, Unavailable

__all__ = ["translate", "translated"]

_TABLE: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_ERROR: (SchemaError, "the database does not have the expected tables"),
    sqlite3.SQLITE_PERM: (Unavailable, "access to the database is denied"),
    sqlite3.SQLITE_BUSY: (Unavailable, "the database is locked by another process"),
    sqlite3.SQLITE_LOCKED: (Unavailable, "the database is locked"),
    sqlite3.SQLITE_NOMEM: (Unavailable, "SQLite is out of memory"),
    sqlite3.SQLITE_READONLY: (Unavailable, "the database is read-only"),
    sqlite3.SQLITE_INTERRUPT: (Unavailable, "the statement was interrupted"),
    sqlite3.SQLITE_IOERR: (Unavailable, "an I/O error on the database"),
    sqlite3.SQLITE_CORRUPT: (SchemaError, "the database is corrupt"),
    sqlite3.SQLITE_FULL: (Unavailable, "the disk is full"),
    sqlite3.SQLITE_CANTOPEN: (Unavailable, "the database file cannot be opened"),
    sqlite3.SQLITE_PROTOCOL: (Unavailable, "the database's locks are contended"),
    sqlite3.SQLITE_TOOBIG: (Rejected, "a value is larger than SQLite takes"),
    sqlite3.SQLITE_CONSTRAINT: (Rejected, "the write breaks a constraint of the database"),
    sqlite3.SQLITE_MISMATCH: (Rejected, "a value has the wrong type"),
    sqlite3.SQLITE_RANGE: (Rejected, "a value is out of range"),
    sqlite3.SQLITE_AUTH: (Unavailable, "access to the database is denied"),
    sqlite3.SQLITE_NOTADB: (SchemaError, "the file is not an SQLite database"),
}
"""By primary result code. Which is permanent decides whether the engine tries again."""


def translate(exc: Exception, *, io_error: type[StoreError] = Unavailable) -> StoreError:
    """The error to raise ``from exc``; ``io_error`` is what an I/O error means at this point."""
    if isinstance(exc, OverflowError | UnicodeEncodeError):
        return Rejected(f"a value cannot be stored: {exc}")
    if isinstance(exc, OSError):
        return Unavailable(f"the database file: {exc}")
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:  # raised by the module itself: a closed connection, an unknown type
        if isinstance(exc, sqlite3.DataError | sqlite3.InterfaceError):
            return Rejected(f"SQLite: {exc}")
        return Unavailable(f"SQLite: {exc}")
    kind, meaning = _TABLE.get(code & 0xFF, (Unavailable, "SQLite failed"))
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        kind = io_error
    name = getattr(exc, "sqlite_errorname", str(code))
    return kind(f"{meaning} ({name}: {exc})")


@contextmanager
def translated() -> Generator[None]:
    """Let nothing of the driver's out."""
    try:
        yield
    except (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError) as exc:
        raise translate(exc) from exc
