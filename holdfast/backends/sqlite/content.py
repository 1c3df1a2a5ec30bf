"""What writes put into sessions: state and events, as rows for one bulk statement each."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from holdfast.backends.base import SessionWrite
from holdfast.backends.sqlite.bulk import BulkStatement

__all__ = ["Content"]

_CLEAR_STATE: Final = "DELETE FROM state WHERE incarnation = ?"
_REMOVE_KEY: Final = "DELETE FROM state WHERE incarnation = ? AND key = ?"
_SET_KEY: Final = BulkStatement(
    "INSERT OR REPLACE INTO state (incarnation, key, value, version) VALUES {rows}", "(?, ?, CAST(? AS TEXT), ?)"
)
_INSERT_EVENT: Final = BulkStatement(
    "INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us) VALUES {rows}",
    "(?, ?, ?, ?, CAST(? AS TEXT), ?, ?)",
)


class Content:
    """Collects, then applies. Values of all rows stand in one flat list: no tuple a row."""

    def __init__(self) -> None:
        self._cleared: list[tuple[int]] = []
        self._removes: list[tuple[int, str]] = []
        self._sets: list[Any] = []
        self._events: list[Any] = []

    def add(self, write: SessionWrite, *, version: int, seq: int) -> None:
        """What ``write`` puts into a row found at ``version``, with its last event at ``seq``."""
        incarnation = write.incarnation
        if write.cleared:
            self._cleared.append((incarnation,))
        if write.removes:
            self._removes.extend((incarnation, key) for key in write.removes)
        for key, (raw, offset) in write.sets.items() if write.sets else ():
            self._sets += (incarnation, key, raw, version + offset)
        for event in write.events:
            seq += 1
            self._events += (incarnation, seq, event.stream, event.type, event.raw, event.retry_ms, event.time_us)

    def apply(self, connection: sqlite3.Connection) -> None:
        if self._cleared:
            connection.executemany(_CLEAR_STATE, self._cleared)
        if self._removes:
            connection.executemany(_REMOVE_KEY, self._removes)
        _SET_KEY.run(connection, self._sets)
        _INSERT_EVENT.run(connection, self._events)
