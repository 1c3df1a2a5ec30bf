"""One batch, one transaction: look the rows up, decide each write, apply all in bulk."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from holdfast.backends.base import Batch, Head, Marker, Outcome, SessionWrite, Status
from holdfast.backends.rules import advance, judge, outcome
from holdfast.backends.sqlite.bulk import BulkStatement
from holdfast.backends.sqlite.connection import write_transaction
from holdfast.backends.sqlite.content import Content
from holdfast.backends.sqlite.plain import HintWasWrong, apply_plain, is_plain
from holdfast.backends.sqlite.removal import remove_sessions
from holdfast.backends.sqlite.rows import heads_by_id, heads_by_incarnation
from holdfast.errors import OutcomeUnknown

__all__ = ["commit_batch", "forget_markers", "resolve_marker"]

_INSERT_SESSION: Final = BulkStatement(
    "INSERT INTO sessions (id, incarnation, owner, created_us, active_us, ttl_us, deadline_us, status, metadata,"
    " first_seq, last_seq, version) VALUES {rows}",
    "(?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)",
)
_UPDATE_SESSION: Final = (
    "UPDATE sessions SET active_us = ?, status = ?, first_seq = ?, last_seq = ?, version = ? WHERE incarnation = ?"
)
_UPDATE_METADATA: Final = "UPDATE sessions SET metadata = CAST(? AS TEXT) WHERE incarnation = ?"
_LEAVE_MARKER: Final = (
    "INSERT INTO markers (writer, lane, flush, outcomes, time_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT (writer, lane)"
    " DO UPDATE SET flush = excluded.flush, outcomes = excluded.outcomes, time_us = excluded.time_us"
)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Outcome]).decode


def commit_batch(connection: sqlite3.Connection, batch: Batch) -> list[Outcome]:
    """`Backend.commit`: first on trust in the writes' hints; if one was wrong, again by looking rows up."""
    try:
        return _commit(connection, batch, trusted=True)
    except HintWasWrong:
        return _commit(connection, batch, trusted=False)


def _commit(connection: sqlite3.Connection, batch: Batch, *, trusted: bool) -> list[Outcome]:
    """The write lock comes first, so what is looked up stays true. Raises: `HintWasWrong`; nothing is written then."""
    writes = batch.writes
    plain = [write for write in writes if is_plain(write)] if trusted else []
    others = [write for write in writes if not is_plain(write)] if plain else writes
    with write_transaction(connection, commit_io_error=OutcomeUnknown):
        outcomes = apply_plain(connection, plain, batch.max_events) if plain else []
        if others:
            plan = _Plan(connection, others, batch.max_events)
            decided = [plan.decide(write) for write in others]
            plan.apply(connection)
            outcomes = _in_order(writes, plain, outcomes, decided) if plain else decided
        marker = batch.marker
        connection.execute(_LEAVE_MARKER, (marker.writer, marker.lane, marker.flush, _encode(outcomes), batch.now_us))
    return outcomes


def _in_order(
    writes: Sequence[SessionWrite], plain: list[SessionWrite], applied: list[Outcome], decided: list[Outcome]
) -> list[Outcome]:
    """The outcomes of both kinds of writes, in the batch's order."""
    outcome_of = {write.incarnation: outcome for write, outcome in zip(plain, applied, strict=True)}
    rest = iter(decided)
    return [outcome_of[write.incarnation] if is_plain(write) else next(rest) for write in writes]


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

    def __init__(self, connection: sqlite3.Connection, writes: Sequence[SessionWrite], max_events: int | None) -> None:
        self._max_events = max_events
        self._by_id = heads_by_id(connection, [write.id for write in writes if write.create is not None])
        self._by_incarnation = heads_by_incarnation(
            connection, [write.incarnation for write in writes if write.create is None]
        )
        self._removed: list[int] = []
        self._created: list[Head] = []
        self._updated: list[tuple[Any, ...]] = []
        self._metadata: list[tuple[bytes, int]] = []
        self._content = Content()

    def decide(self, write: SessionWrite) -> Outcome:
        found = self._find(write)
        status = judge(found, write)
        if status is not Status.COMMITTED:
            return Outcome(status)
        if write.create is not None and found is not None:
            self._removed.append(found.incarnation)  # it has expired
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
            self._removed.append(write.incarnation)

    def _keep(self, write: SessionWrite, before: Head, after: Head) -> None:
        incarnation = after.incarnation
        if write.create is not None:
            self._created.append(after)
            self._by_id[write.id] = after
        else:
            self._updated.append(
                (after.active_us, after.status, after.first_seq, after.last_seq, after.version, incarnation)
            )
            if write.metadata is not None:
                self._metadata.append((write.metadata, incarnation))
        self._content.add(write, version=before.version, seq=before.last_seq)

    def apply(self, connection: sqlite3.Connection) -> None:
        """Removals first: an id that they free may be created again in the same batch."""
        if self._removed:
            remove_sessions(connection, self._removed)
        created = [value for head in self._created for value in msgspec.structs.astuple(head)]
        _INSERT_SESSION.run(connection, created)
        connection.executemany(_UPDATE_SESSION, self._updated)
        connection.executemany(_UPDATE_METADATA, self._metadata)
        self._content.apply(connection)
