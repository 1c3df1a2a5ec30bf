"""One batch, one transaction: look the rows up, decide each write, apply all in bulk."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import msgspec

from holdfast.backends.base import Batch, Head, Marker, Outcome, SessionWrite, Status
from holdfast.backends.rules import advance, judge, outcome
from holdfast.backends.sqlite.connection import write_transaction
from holdfast.backends.sqlite.heads import HeadCache
from holdfast.backends.sqlite.removal import remove_sessions
from holdfast.backends.sqlite.rows import heads_by_id
from holdfast.errors import OutcomeUnknown

__all__ = ["commit_batch", "forget_markers", "resolve_marker"]

_INSERT_SESSION: Final = (
    "INSERT INTO sessions (id, incarnation, owner, created_us, active_us, ttl_us, deadline_us, status, metadata,"
    " first_seq, last_seq, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)"
)
_UPDATE_SESSION: Final = (
    "UPDATE sessions SET active_us = ?, status = ?, first_seq = ?, last_seq = ?, version = ? WHERE incarnation = ?"
)
_UPDATE_METADATA: Final = "UPDATE sessions SET metadata = CAST(? AS TEXT) WHERE incarnation = ?"
_CLEAR_STATE: Final = "DELETE FROM state WHERE incarnation = ?"
_REMOVE_KEY: Final = "DELETE FROM state WHERE incarnation = ? AND key = ?"
_SET_KEY: Final = "INSERT OR REPLACE INTO state (incarnation, key, value, version) VALUES (?, ?, CAST(? AS TEXT), ?)"
_INSERT_EVENT: Final = (
    "INSERT INTO events (incarnation, seq, stream, type, data, retry_ms, time_us)"
    " VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?)"
)
_LEAVE_MARKER: Final = (
    "INSERT INTO markers (writer, lane, flush, outcomes, time_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT (writer, lane)"
    " DO UPDATE SET flush = excluded.flush, outcomes = excluded.outcomes, time_us = excluded.time_us"
)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Outcome]).decode


def commit_batch(connection: sqlite3.Connection, batch: Batch, cache: HeadCache) -> list[Outcome]:
    """`Backend.commit`. The write lock comes first, so what the look-up finds stays true.

    After an error ``cache`` is no longer right.
    """
    with write_transaction(connection, commit_io_error=OutcomeUnknown):
        plan = _Plan(connection, batch, cache)
        outcomes = [plan.decide(write) for write in batch.writes]
        plan.apply(connection)
        marker = batch.marker
        connection.execute(_LEAVE_MARKER, (marker.writer, marker.lane, marker.flush, _encode(outcomes), batch.now_us))
    cache.keep(plan.changed, plan.removed)
    return outcomes


def resolve_marker(connection: sqlite3.Connection, marker: Marker) -> list[Outcome] | None:
    """`Backend.resolve`. On the write connection, hence after any commit that is under way there."""
    row: tuple[int, bytes] | None = connection.execute(
        "SELECT flush, outcomes FROM markers WHERE writer = ? AND lane = ?", (marker.writer, marker.lane)
    ).fetchone()
    return _decode(row[1]) if row is not None and row[0] == marker.flush else None


def forget_markers(connection: sqlite3.Connection, writer: str | None, before_us: int) -> None:
    with write_transaction(connection):
        connection.execute("DELETE FROM markers WHERE writer = ? OR time_us < ?", (writer, before_us))


class _Plan:
    """What a batch changes, as rows for one bulk statement each."""

    def __init__(self, connection: sqlite3.Connection, batch: Batch, cache: HeadCache) -> None:
        writes = batch.writes
        self._max_events = batch.max_events
        self._by_id = heads_by_id(connection, [write.id for write in writes if write.create is not None])
        self._by_incarnation = cache.look_up(
            connection, [write.incarnation for write in writes if write.create is None]
        )
        self.changed: list[Head] = []
        """The rows that stay, as they are after the batch."""
        self.removed: list[int] = []
        self._created: list[Head] = []
        self._updated: list[tuple[Any, ...]] = []
        self._metadata: list[tuple[bytes, int]] = []
        self._cleared: list[tuple[int]] = []
        self._removes: list[tuple[int, str]] = []
        self._sets: list[tuple[int, str, bytes, int]] = []
        self._events: list[tuple[Any, ...]] = []

    def decide(self, write: SessionWrite) -> Outcome:
        found = self._find(write)
        status = judge(found, write)
        if status is not Status.COMMITTED:
            return Outcome(status)
        if write.create is not None and found is not None:
            self.removed.append(found.incarnation)  # it has expired
        before = write.create or found
        assert before is not None
        after = advance(before, write, self._max_events)
        if write.delete:
            self._delete(write)
        else:
            self._keep(write, before, after)
        return outcome(before, after)

    def _find(self, write: SessionWrite) -> Head | None:
        """The row that the write is about."""
        if write.create is not None:
            return self._by_id.get(write.id)
        head = self._by_incarnation.get(write.incarnation)
        return head if head is not None and head.id == write.id else None

    def _delete(self, write: SessionWrite) -> None:
        self._by_id.pop(write.id, None)
        if write.create is None:
            self.removed.append(write.incarnation)

    def _keep(self, write: SessionWrite, before: Head, after: Head) -> None:
        incarnation = after.incarnation
        self.changed.append(after)
        if write.create is not None:
            self._created.append(after)
            self._by_id[write.id] = after
        else:
            self._updated.append(
                (after.active_us, after.status, after.first_seq, after.last_seq, after.version, incarnation)
            )
            if write.metadata is not None:
                self._metadata.append((write.metadata, incarnation))
        self._plan_state(write, incarnation, before.version)
        seq = before.last_seq
        for event in write.events:
            seq += 1
            self._events.append((incarnation, seq, *event))

    def _plan_state(self, write: SessionWrite, incarnation: int, version: int) -> None:
        if write.cleared:
            self._cleared.append((incarnation,))
        if write.removes:
            self._removes.extend((incarnation, key) for key in write.removes)
        if write.sets:
            self._sets.extend((incarnation, key, raw, version + n) for key, (raw, n) in write.sets.items())

    def apply(self, connection: sqlite3.Connection) -> None:
        """Removals first: an id that they free may be created again in the same batch."""
        if self.removed:
            remove_sessions(connection, self.removed)
        for statement, rows in (
            (_INSERT_SESSION, [msgspec.structs.astuple(head) for head in self._created]),
            (_UPDATE_SESSION, self._updated),
            (_UPDATE_METADATA, self._metadata),
            (_CLEAR_STATE, self._cleared),
            (_REMOVE_KEY, self._removes),
            (_SET_KEY, self._sets),
            (_INSERT_EVENT, self._events),
        ):
            if rows:
                connection.executemany(statement, rows)
