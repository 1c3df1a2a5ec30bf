"""Facts of an open database, for `holdfast doctor`."""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["describe"]

_SYNCHRONOUS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")


def describe(connection: sqlite3.Connection) -> dict[str, object]:
    """On the write connection: ``synchronous`` is that of the last commit."""

    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    synchronous = pragma("synchronous")
    return {
        "sqlite_version": sqlite3.sqlite_version,
        "schema_version": pragma("user_version"),
        "journal_mode": pragma("journal_mode"),
        "locking_mode": pragma("locking_mode"),
        "synchronous": _SYNCHRONOUS[synchronous] if isinstance(synchronous, int) else synchronous,
        "page_bytes": pragma("page_size"),
        "pages": pragma("page_count"),
        "free_pages": pragma("freelist_count"),
    }
