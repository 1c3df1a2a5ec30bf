"""The rows that the plain driver writes: the ones Holdfast would, in Holdfast's own schema."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from bench.payload import EVENT_TYPE, MESSAGE_JSON
from bench.runner import Void

__all__ = ["DATABASE", "INSERT_EVENT", "PRAGMAS", "UPDATE_HEAD", "create_database", "event_row", "head_row", "stored"]

DATABASE: Final = "bench.db"

PRAGMAS: Final = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")

INSERT_EVENT: Final = (
    "INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us) VALUES (?, ?, '', ?, ?, NULL, ?)"
)
UPDATE_HEAD: Final = "UPDATE sessions SET last_seq = ?, active_us = ?, version = version + ? WHERE incarnation = ?"

_SCHEMA: Final = """
CREATE TABLE sessions (
    incarnation INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, owner TEXT, created_us INTEGER NOT NULL,
    active_us INTEGER NOT NULL, ttl_us INTEGER, deadline_us INTEGER, status TEXT NOT NULL, metadata TEXT NOT NULL,
    first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, version INTEGER NOT NULL, trimmed_seq INTEGER NOT NULL);
CREATE TABLE events (
    incarnation INTEGER NOT NULL, seq INTEGER NOT NULL, stream TEXT NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL,
    retry_ms INTEGER, time_us INTEGER NOT NULL);
CREATE UNIQUE INDEX events_by_seq ON events (incarnation, seq);
"""
_INSERT_SESSION: Final = "INSERT INTO sessions VALUES (?, ?, NULL, ?, ?, 1800000000, NULL, 'active', '{}', 1, 0, 0, 0)"


def create_database(folder: Path, sessions: int) -> None:
    """A new database with ``sessions`` sessions, their incarnations from 1 on."""
    now_us = time.time_ns() // 1000
    rows = [(index + 1, f"session-{index + 1}", now_us, now_us) for index in range(sessions)]
    with connect(folder) as connection, connection:
        connection.executescript(_SCHEMA)
        connection.executemany(_INSERT_SESSION, rows)


@contextmanager
def connect(folder: Path) -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        for pragma in PRAGMAS:
            connection.execute(pragma)
        yield connection


def event_row(index: int, seq: int, time_us: int) -> tuple[object, ...]:
    """Parameters of `INSERT_EVENT` for the session with this index."""
    return (index + 1, seq, EVENT_TYPE, MESSAGE_JSON, time_us)


def head_row(index: int, seq: int, time_us: int, units: int = 1) -> tuple[object, ...]:
    """Parameters of `UPDATE_HEAD` after ``units`` appends, the last of which is number ``seq``."""
    return (seq, time_us, units, index + 1)


def stored(folder: Path) -> Sequence[int]:
    """How many events each session has; see `Competitor.stored`."""
    with connect(folder) as connection:
        rows: list[tuple[int, int, int, int]] = connection.execute(
            "SELECT count(*), min(seq), max(seq), last_seq FROM events JOIN sessions USING (incarnation) "
            "GROUP BY incarnation"
        ).fetchall()
    for count, first, last, head in rows:
        if (first, last, head) != (1, count, count):
            raise Void(f"a session at {head} holds {count} events numbered {first} to {last}")
    return [count for count, *_ in rows]
