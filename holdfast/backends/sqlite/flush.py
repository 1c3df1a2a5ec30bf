"""The rows of a flush, written by one statement.

A temporary view stands for all that a flush does to a file, and triggers on it do it. So one INSERT
with a row per step makes hundreds of updates, inserts and deletes, and in autocommit mode the whole
transaction, sync included. It lets the interpreter lock go once, and not once a statement: beside a
busy event loop, getting it back costs up to ``sys.getswitchinterval()`` each time.

(https://sqlite.org/lang_createtrigger.html, "INSTEAD OF triggers".)

Binding the values does need the lock, and the event loop stands still for it. The `sqlite3` module
takes 0.04 to 0.07 µs for an ``int`` or a ``str``, but 0.3 to 0.4 for ``None`` or ``bytes``, for which it
looks for an adapter each time: hence text for JSON, and -1 for "no retry".
"""

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from holdfast.backends.base import Head, Marker, NewEvent, SessionWrite

__all__ = ["FlushRows", "prepare_connection"]


class _Kind(NamedTuple):
    """One kind of row: its values after the kind's number, and what it does, with ``new.<value>`` for each."""

    fields: tuple[str, ...]
    body: str

    def with_columns(self) -> str:
        """The body with the view's columns in place of the values' names."""
        return re.sub(r"\bnew\.(\w+)", lambda found: f"new.c{self.fields.index(found[1]) + 1}", self.body)


_UPDATE_TRUSTED: Final = """
    UPDATE sessions
    SET active_us = max(active_us, new.active_us), version = {version}, last_seq = {seq}, first_seq = new.new_first_seq
    WHERE incarnation = new.incarnation AND id = new.id
        AND version = new.version AND last_seq = {base_seq} AND first_seq = new.first_seq AND status = 'active'
        AND ifnull(active_us + ttl_us > {accepted_us}, 1) AND ifnull(deadline_us > {accepted_us}, 1);
    SELECT RAISE(ROLLBACK, 'hint') WHERE changes() = 0;
"""
_INSERT_EVENT: Final = """
    INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us)
    VALUES (new.incarnation, new.seq, new.stream, new.type, new.data, nullif(new.retry_ms, -1), new.{time_us});
"""
_EVENT_FIELDS: Final = ("incarnation", "seq", "stream", "type", "data", "retry_ms")

_APPEND, _TRUSTED, _CREATE, _HEAD, _METADATA, _EVENT, _SET, _REMOVE, _CLEAR, _MARKER = range(10)
_NOTHING: Final = -1
_KINDS: Final = {
    # On trust: the row must be as the write believes it to be, or nothing of the flush is kept.
    # Most writes append one event and do nothing else. Its time is the session's, too.
    _APPEND: _Kind(
        (*_EVENT_FIELDS, "active_us", "id", "version", "first_seq", "new_first_seq"),
        _UPDATE_TRUSTED.format(
            version="new.version + 1", seq="new.seq", base_seq="new.seq - 1", accepted_us="new.active_us"
        )
        + _INSERT_EVENT.format(time_us="active_us"),
    ),
    _TRUSTED: _Kind(
        ("incarnation", "id", "version", "seq", "first_seq", "accepted_us", "active_us", "new_version", "new_seq",
         "new_first_seq"),
        _UPDATE_TRUSTED.format(
            version="new.new_version", seq="new.new_seq", base_seq="new.seq", accepted_us="new.accepted_us"
        ),
    ),
    _CREATE: _Kind(
        ("id", "incarnation", "owner", "created_us", "active_us", "ttl_us", "deadline_us", "status", "metadata",
         "first_seq", "last_seq", "version"),
        """
        INSERT INTO sessions (id, incarnation, owner, created_us, active_us, ttl_us, deadline_us,
            status, metadata, first_seq, last_seq, version)
        VALUES (new.id, new.incarnation, new.owner, new.created_us, new.active_us, new.ttl_us, new.deadline_us,
            new.status, new.metadata, new.first_seq, new.last_seq, new.version);
        """,
    ),
    _HEAD: _Kind(
        ("incarnation", "active_us", "status", "version", "last_seq", "first_seq"),
        """
        UPDATE sessions
        SET active_us = new.active_us, status = new.status, version = new.version,
            last_seq = new.last_seq, first_seq = new.first_seq
        WHERE incarnation = new.incarnation;
        """,
    ),
    _METADATA: _Kind(
        ("incarnation", "metadata"), "UPDATE sessions SET metadata = new.metadata WHERE incarnation = new.incarnation;"
    ),
    _EVENT: _Kind((*_EVENT_FIELDS, "time_us"), _INSERT_EVENT.format(time_us="time_us")),
    _SET: _Kind(
        ("incarnation", "key", "value", "version"),
        """
        INSERT OR REPLACE INTO state (incarnation, key, value, version)
        VALUES (new.incarnation, new.key, new.value, new.version);
        """,
    ),
    _REMOVE: _Kind(
        ("incarnation", "key"), "DELETE FROM state WHERE incarnation = new.incarnation AND key = new.key;"
    ),
    _CLEAR: _Kind(("incarnation",), "DELETE FROM state WHERE incarnation = new.incarnation;"),
    _MARKER: _Kind(
        ("writer", "lane", "flush", "outcomes", "time_us"),
        """
        INSERT OR REPLACE INTO markers (writer, lane, flush, outcomes, time_us)
        VALUES (new.writer, new.lane, new.flush, new.outcomes, new.time_us);
        """,
    ),
}  # fmt: skip

_WIDTH: Final = 1 + max(len(kind.fields) for kind in _KINDS.values())
_PADDING: Final = {kind: (0,) * (_WIDTH - 1 - len(found.fields)) for kind, found in _KINDS.items()}
_BLANK: Final = (_NOTHING,) + (0,) * (_WIDTH - 1)
_COLUMNS: Final = tuple(f"c{number}" for number in range(_WIDTH))
"""The kind, and its values."""

_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Rows in a statement; what is missing is filled up with blank rows, so that few statements are ever prepared."""

_ROW: Final = f"({', '.join('?' * _WIDTH)})"
_STATEMENTS: Final = {size: f"INSERT INTO flush VALUES {', '.join([_ROW] * size)}" for size in _SIZES}  # noqa: S608


def prepare_connection(connection: sqlite3.Connection) -> None:
    """Make the view, which lives as long as the connection, on a file that has its tables.

    Every trigger asks each row for its kind. So a view of their own is for the kinds that are rarer, and
    the most frequent one passes two triggers, not ten.
    """
    # Read the schema, which another process may have made a moment ago: from within a trigger, SQLite
    # does not notice that what it knows is out of date.
    connection.execute("SELECT 1 FROM sessions, state, events, markers LIMIT 0").close()
    columns = ", ".join(f"NULL AS {name}" for name in _COLUMNS)
    for view in ("flush", "flush_rarer"):
        connection.execute(f"CREATE TEMP VIEW {view} AS SELECT {columns}")
    values = ", ".join(f"new.{name}" for name in _COLUMNS)
    pass_on = f"INSERT INTO flush_rarer VALUES ({values});"  # noqa: S608
    _add_trigger(connection, "flush_pass_on", "flush", f"new.c0 > {_APPEND}", pass_on)
    for number, kind in _KINDS.items():
        view = "flush" if number == _APPEND else "flush_rarer"
        _add_trigger(connection, f"flush_{number}", view, f"new.c0 = {number}", kind.with_columns())


def _add_trigger(connection: sqlite3.Connection, name: str, view: str, condition: str, body: str) -> None:
    connection.execute(f"CREATE TEMP TRIGGER {name} INSTEAD OF INSERT ON {view} WHEN {condition} BEGIN {body} END")


class FlushRows:
    """Collects, then writes. The values of all rows stand in one flat list: no tuple a row."""

    def __init__(self) -> None:
        self._values: list[Any] = []

    def __len__(self) -> int:
        return len(self._values) // _WIDTH

    @property
    def fit_one_statement(self) -> bool:
        return len(self) <= _SIZES[-1]

    def add_trusted(self, write: SessionWrite, last_seq: int, first_seq: int) -> None:
        """The row becomes this, if it is as the write believes it to be; and the write's content."""
        values, events, incarnation, active_us = self._values, write.events, write.incarnation, write.active_us
        if len(events) == write.units == 1 and events[0].time_us == active_us == write.accepted_us:
            event = events[0]
            retry_ms = event.retry_ms
            values += (
                _APPEND, incarnation, last_seq, event.stream, event.type, event.raw.decode(),
                -1 if retry_ms is None else retry_ms,
                active_us, write.id, write.version, write.base_first_seq, first_seq,
            )  # fmt: skip
            values += _PADDING[_APPEND]
        else:
            values += (
                _TRUSTED, incarnation, write.id, write.version, write.base_seq, write.base_first_seq,
                write.accepted_us, active_us, write.version + write.units, last_seq, first_seq, *_PADDING[_TRUSTED],
            )  # fmt: skip
            self._add_events(incarnation, events, write.base_seq)
        if write.sets or write.removes or write.cleared:
            self._add_state(write, write.version)

    def add_created(self, head: Head) -> None:
        """A new row. There must be none with its id."""
        self._values += (
            _CREATE, head.id, head.incarnation, head.owner, head.created_us, head.active_us, head.ttl_us,
            head.deadline_us, head.status, head.metadata.decode(), head.first_seq, head.last_seq, head.version,
            *_PADDING[_CREATE],
        )  # fmt: skip

    def add_head(self, head: Head, *, metadata: bool) -> None:
        """What a row becomes that has been looked up."""
        self._values += (
            _HEAD, head.incarnation, head.active_us, head.status, head.version, head.last_seq, head.first_seq,
            *_PADDING[_HEAD],
        )  # fmt: skip
        if metadata:
            self._values += (_METADATA, head.incarnation, head.metadata.decode(), *_PADDING[_METADATA])

    def add_content(self, write: SessionWrite, *, version: int, seq: int) -> None:
        """What ``write`` puts into a row found at ``version``, with its last event at ``seq``."""
        self._add_state(write, version)
        self._add_events(write.incarnation, write.events, seq)

    def _add_state(self, write: SessionWrite, version: int) -> None:
        values, incarnation = self._values, write.incarnation
        if write.cleared:
            values += (_CLEAR, incarnation, *_PADDING[_CLEAR])
        for key in write.removes:
            values += (_REMOVE, incarnation, key, *_PADDING[_REMOVE])
        for key, (raw, offset) in write.sets.items():
            values += (_SET, incarnation, key, raw.decode(), version + offset, *_PADDING[_SET])

    def _add_events(self, incarnation: int, events: Sequence[NewEvent], seq: int) -> None:
        values = self._values
        for event in events:
            seq += 1
            retry_ms = -1 if event.retry_ms is None else event.retry_ms
            values += (_EVENT, incarnation, seq, event.stream, event.type, event.raw.decode(), retry_ms, event.time_us)
            values += _PADDING[_EVENT]

    def add_marker(self, marker: Marker, outcomes: bytes, now_us: int) -> None:
        self._values += (_MARKER, marker.writer, marker.lane, marker.flush, outcomes, now_us, *_PADDING[_MARKER])

    def write(self, connection: sqlite3.Connection) -> None:
        """Execute them, in order. Outside a transaction they must `fit_one_statement`, which is then one."""
        values, largest = self._values, _SIZES[-1]
        for start in range(0, len(self), largest):
            count = min(len(self) - start, largest)
            size = _SIZES[bisect_left(_SIZES, count)]
            chosen = values if count == len(self) else values[start * _WIDTH : (start + count) * _WIDTH]
            if size > count:
                chosen = [*chosen, *(_BLANK * (size - count))]
            connection.execute(_STATEMENTS[size], chosen)
