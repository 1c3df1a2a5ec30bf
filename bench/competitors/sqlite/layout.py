"""The rows that the plain driver writes: the ones Holdfast would, in Holdfast's own schema."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from bench.competitors.base import Place
from bench.payload import EVENT_TYPE, MESSAGE_JSON
from bench.runner import Void
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.sqlite.schema import migrate

__all__ = [
    "DATABASE",
    "INSERT_EVENT",
    "PRAGMAS",
    "UPDATE_HEAD",
    "create_database",
    "event_row",
    "head_row",
    "incarnation",
    "store_url",
    "stored",
]

DATABASE: Final = "bench.db"

_SETTINGS: Final = SQLiteConfig(path=DATABASE)
PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    f"PRAGMA cache_size = {-_SETTINGS.cache_bytes // 1024}",
    f"PRAGMA wal_autocheckpoint = {_SETTINGS.checkpoint_pages}",
)
"""As Holdfast sets its own connection by default, so that the settings make no difference."""

INSERT_EVENT: Final = (
    "INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us) VALUES (?, ?, '', ?, ?, NULL, ?)"
)
UPDATE_HEAD: Final = "UPDATE sessions SET last_seq = ?, active_us = ?, version = version + ? WHERE incarnation = ?"

_FIRST_INCARNATION: Final = 1_800_000_000_000_000 << 12

_INSERT_SESSION: Final = (
    "INSERT INTO sessions"
    " (incarnation, id, created_us, active_us, ttl_us, status, metadata, first_seq, last_seq, version)"
    " VALUES (?, ?, ?, ?, 1800000000, 'active', '{}', 1, 0, 0)"
)


def create_database(folder: Path, sessions: int) -> None:
    """A new database, with Holdfast's tables and indexes, and ``sessions`` sessions."""
    now_us = time.time_ns() // 1000
    rows = [(incarnation(index), f"{index:036}", now_us, now_us) for index in range(sessions)]
    with connect(folder) as connection, connection:
        migrate(connection)
        connection.executemany(_INSERT_SESSION, rows)


@contextmanager
def connect(folder: Path) -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        for pragma in PRAGMAS:
            connection.execute(pragma)
        yield connection


def incarnation(index: int) -> int:
    """As wide as a real one: it is in every row and in the index."""
    return _FIRST_INCARNATION + (index << 12)


def event_row(index: int, seq: int, time_us: int) -> tuple[object, ...]:
    """Parameters of `INSERT_EVENT` for the session with this index."""
    return (incarnation(index), seq, EVENT_TYPE, MESSAGE_JSON, time_us)


def head_row(index: int, seq: int, time_us: int, units: int = 1) -> tuple[object, ...]:
    """Parameters of `UPDATE_HEAD` after ``units`` appends, the last of which is number ``seq``."""
    return (seq, time_us, units, incarnation(index))


def store_url(place: Place) -> str:
    return f"sqlite:///{place.folder / DATABASE}?durability={place.level}"


def stored(place: Place) -> list[int]:
    """How many events each session has; see `Competitor.stored`."""
    with connect(place.folder) as connection:
        rows: list[tuple[int, int, int, int]] = connection.execute(
            "SELECT count(*), min(seq), max(seq), last_seq FROM events JOIN sessions USING (incarnation) "
            "GROUP BY incarnation"
        ).fetchall()
    for count, first, last, head in rows:
        if (first, last, head) != (1, count, count):
            raise Void(f"a session at {head} holds {count} events numbered {first} to {last}")
    return [count for count, *_ in rows]
