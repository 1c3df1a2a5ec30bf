"""Removing sessions in steps of bounded size."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

__all__ = ["delete_events", "remove_sessions"]

_EVENTS_AT_ONCE: Final = 5_000
"""Event rows that a transaction deletes at most with the sessions that it removes."""


def remove_sessions(connection: sqlite3.Connection, incarnations: Sequence[int]) -> None:
    """Delete heads, state, and events up to a bound; sessions with events left go to the graveyard."""
    keys = [(incarnation,) for incarnation in incarnations]
    connection.executemany("DELETE FROM sessions WHERE incarnation = ?", keys)
    connection.executemany("DELETE FROM state WHERE incarnation = ?", keys)
    budget = _EVENTS_AT_ONCE
    for key in keys:
        budget -= delete_events(connection, *key, limit=budget) if budget else 0
        if not budget:
            connection.execute("INSERT INTO graveyard (incarnation) VALUES (?)", key)


def delete_events(connection: sqlite3.Connection, incarnation: int, *, below_seq: int | None = None, limit: int) -> int:
    """Delete up to ``limit`` of a session's events, oldest first: those below a seq, or all."""
    where = "incarnation = ?" if below_seq is None else "incarnation = ? AND seq < ?"
    parameters = (incarnation,) if below_seq is None else (incarnation, below_seq)
    return connection.execute(
        f"DELETE FROM events WHERE rowid IN (SELECT rowid FROM events WHERE {where} ORDER BY seq LIMIT ?)",  # noqa: S608
        (*parameters, limit),
    ).rowcount
