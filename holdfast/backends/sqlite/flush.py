"""The rows of a flush, written by one statement.

A temporary view stands for all that a flush does to a file, and triggers on it do it. So one INSERT
with a row per step makes hundreds of updates, inserts and deletes, and in autocommit mode the whole
transaction, sync included. It lets the interpreter lock go once, and not once a statement: beside a
busy event loop, getting it back costs up to ``sys.getswitchinterval()`` each time.

(https://sqlite.org/lang_createtrigger.html, "INSTEAD OF triggers".)
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

from holdfast.backends.base import Head, Marker, NewEvent, SessionWrite

__all__ = ["FlushRows", "prepare_connection"]

_COLUMNS: Final = (
    "kind", "incarnation", "seq", "name", "type", "data", "retry_ms", "time_us",
    "id", "version", "first_seq", "accepted_us", "active_us", "new_version", "new_seq", "new_first_seq",
    "ttl_us", "deadline_us",
)  # fmt: skip
_BLANK: Final = (None,) * len(_COLUMNS)
_NO_EVENT: Final = (None,) * 6
_NO_HEAD: Final = (None,) * 10

_PLAIN, _CREATE, _HEAD, _METADATA, _EVENT, _SET, _REMOVE, _CLEAR, _MARKER = range(9)

_INSERT_EVENT: Final = """
    INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us)
    SELECT new.incarnation, new.seq, new.name, new.type, CAST(new.data AS TEXT), new.retry_ms, new.time_us
    WHERE new.seq IS NOT NULL;
"""
_TRIGGERS: Final = {
    # On trust: the row must be as the write believes it to be, or nothing of the flush is kept.
    _PLAIN: """
        UPDATE sessions
        SET active_us = max(active_us, new.active_us), version = new.new_version,
            last_seq = new.new_seq, first_seq = new.new_first_seq
        WHERE incarnation = new.incarnation AND id = new.id
            AND version = new.version AND first_seq = new.first_seq AND status = 'active'
            AND last_seq = ifnull(new.seq - 1, new.new_seq)
            AND ifnull(active_us + ttl_us > new.accepted_us, 1) AND ifnull(deadline_us > new.accepted_us, 1);
        SELECT RAISE(ROLLBACK, 'hint') WHERE changes() = 0;
    """  # noqa: S608
    + _INSERT_EVENT,
    _CREATE: """
        INSERT INTO sessions (id, incarnation, owner, created_us, active_us, ttl_us, deadline_us,
            status, metadata, first_seq, last_seq, version)
        VALUES (new.id, new.incarnation, new.name, new.time_us, new.active_us, new.ttl_us, new.deadline_us,
            new.type, CAST(new.data AS TEXT), new.new_first_seq, new.new_seq, new.new_version);
    """,
    _HEAD: """
        UPDATE sessions
        SET active_us = new.active_us, status = new.type, version = new.new_version,
            last_seq = new.new_seq, first_seq = new.new_first_seq
        WHERE incarnation = new.incarnation;
    """,
    _METADATA: "UPDATE sessions SET metadata = CAST(new.data AS TEXT) WHERE incarnation = new.incarnation;",
    _EVENT: _INSERT_EVENT,
    _SET: """
        INSERT OR REPLACE INTO state (incarnation, key, value, version)
        VALUES (new.incarnation, new.name, CAST(new.data AS TEXT), new.seq);
    """,
    _REMOVE: "DELETE FROM state WHERE incarnation = new.incarnation AND key = new.name;",
    _CLEAR: "DELETE FROM state WHERE incarnation = new.incarnation;",
    _MARKER: """
        INSERT OR REPLACE INTO markers (writer, lane, flush, outcomes, time_us)
        VALUES (new.name, new.seq, new.retry_ms, new.data, new.time_us);
    """,
}
"""What a row of each kind does."""

_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Rows in a statement; what is missing is filled up with blank rows, so that few statements are ever prepared."""

_ROW: Final = f"({', '.join('?' * len(_COLUMNS))})"
_STATEMENTS: Final = {size: f"INSERT INTO flush VALUES {', '.join([_ROW] * size)}" for size in _SIZES}  # noqa: S608


def prepare_connection(connection: sqlite3.Connection) -> None:
    """Make the view, which lives as long as the connection, on a file that has its tables."""
    # Read the schema, which another process may have made a moment ago: from within a trigger, SQLite
    # does not notice that what it knows is out of date.
    connection.execute("SELECT 1 FROM sessions, state, events, markers LIMIT 0").close()
    columns = ", ".join(f"NULL AS {name}" for name in _COLUMNS)
    connection.execute(f"CREATE TEMP VIEW flush AS SELECT {columns}")
    for kind, body in _TRIGGERS.items():
        connection.execute(
            f"CREATE TEMP TRIGGER flush_{kind} INSTEAD OF INSERT ON flush WHEN new.kind = {kind} BEGIN {body} END"
        )


class FlushRows:
    """Collects, then writes. The values of all rows stand in one flat list: no tuple a row."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def __len__(self) -> int:
        return len(self._values) // len(_COLUMNS)

    @property
    def fit_one_statement(self) -> bool:
        return len(self) <= _SIZES[-1]

    def add_trusted(self, write: SessionWrite, last_seq: int, first_seq: int) -> None:
        """The row becomes this, if it is as the write believes it to be; and the write's content."""
        values, events, incarnation, version = self._values, write.events, write.incarnation, write.version
        if events:  # most writes are one event: in the same row
            event = events[0]
            values += (_PLAIN, incarnation, write.base_seq + 1, event.stream, event.type, event.raw, event.retry_ms)
            values.append(event.time_us)
        else:
            values += (_PLAIN, incarnation, *_NO_EVENT)
        values += (write.id, version, write.base_first_seq, write.accepted_us, write.active_us)
        values += (version + write.units, last_seq, first_seq, None, None)
        if len(events) > 1:
            self._add_events(incarnation, events[1:], write.base_seq + 1)
        if write.sets or write.removes or write.cleared:
            self._add_state(write, version)

    def add_created(self, head: Head) -> None:
        """A new row. There must be none with its id."""
        values = self._values
        values += (_CREATE, head.incarnation, None, head.owner, head.status, head.metadata, None, head.created_us)
        values += (head.id, None, None, None, head.active_us, head.version, head.last_seq, head.first_seq)
        values += (head.ttl_us, head.deadline_us)

    def add_head(self, head: Head, *, metadata: bool) -> None:
        """What a row becomes that has been looked up."""
        values = self._values
        values += (_HEAD, head.incarnation, None, None, head.status, None, None, None)
        values += (None, None, None, None, head.active_us, head.version, head.last_seq, head.first_seq, None, None)
        if metadata:
            values += (_METADATA, head.incarnation, None, None, None, head.metadata, None, None, *_NO_HEAD)

    def add_content(self, write: SessionWrite, *, version: int, seq: int) -> None:
        """What ``write`` puts into a row found at ``version``, with its last event at ``seq``."""
        self._add_state(write, version)
        self._add_events(write.incarnation, write.events, seq)

    def _add_state(self, write: SessionWrite, version: int) -> None:
        values, incarnation = self._values, write.incarnation
        if write.cleared:
            values += (_CLEAR, incarnation, *_NO_EVENT, *_NO_HEAD)
        for key in write.removes:
            values += (_REMOVE, incarnation, None, key, None, None, None, None, *_NO_HEAD)
        for key, (raw, offset) in write.sets.items():
            values += (_SET, incarnation, version + offset, key, None, raw, None, None, *_NO_HEAD)

    def _add_events(self, incarnation: int, events: Sequence[NewEvent], seq: int) -> None:
        values = self._values
        for event in events:
            seq += 1
            values += (_EVENT, incarnation, seq, event.stream, event.type, event.raw, event.retry_ms, event.time_us)
            values += _NO_HEAD

    def add_marker(self, marker: Marker, outcomes: bytes, now_us: int) -> None:
        values = self._values
        values += (_MARKER, None, marker.lane, marker.writer, None, outcomes, marker.flush, now_us, *_NO_HEAD)

    def write(self, connection: sqlite3.Connection) -> None:
        """Execute them, in order. Outside a transaction they must `fit_one_statement`, which is then one."""
        values, width, largest = self._values, len(_COLUMNS), _SIZES[-1]
        for start in range(0, len(self), largest):
            count = min(len(self) - start, largest)
            size = _SIZES[bisect_left(_SIZES, count)]
            chosen = values if count == len(self) else values[start * width : (start + count) * width]
            if size > count:
                chosen = [*chosen, *(_BLANK * (size - count))]
            connection.execute(_STATEMENTS[size], chosen)
