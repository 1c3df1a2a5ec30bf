"""One batch, one transaction: on trust in its hints, or by looking the rows up and deciding each write."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from holdfast.backends.base import Batch, Head, Marker, Outcome, SessionWrite, Status
from holdfast.backends.bridge import HeadStart
from holdfast.backends.rules import advance, judge, outcome
from holdfast.backends.sqlite.connection import single_statement, write_transaction
from holdfast.backends.sqlite.flush import FlushRows
from holdfast.backends.sqlite.removal import remove_sessions
from holdfast.backends.sqlite.rows import heads_by_id, heads_by_incarnation
from holdfast.backends.sqlite.trusted import TrustedFlush, encode_outcomes
from holdfast.errors import OutcomeUnknown

__all__ = ["commit_batch", "forget_markers", "resolve_marker"]

_decode: Final = msgspec.msgpack.Decoder(list[Outcome]).decode


def commit_batch(
    connection: sqlite3.Connection, batch: Batch, trusted: TrustedFlush | None, head_start: HeadStart | None = None
) -> list[Outcome]:
    """`Backend.commit`. ``trusted``: the same batch, to be tried first; ``head_start`` ends when it begins."""
    if trusted is not None:
        try:
            with single_statement(connection, io_error=OutcomeUnknown):
                if head_start is not None:
                    head_start.begun()
                trusted.rows.write(connection)
        except sqlite3.IntegrityError:  # a hint was wrong, or an id is taken; nothing is written
            pass
        else:
            return trusted.outcomes
    # The write lock comes first, so what is looked up stays true.
    with write_transaction(connection, commit_io_error=OutcomeUnknown):
        plan = _Plan(connection, batch.writes, batch.max_events)
        outcomes = [plan.decide(write) for write in batch.writes]
        plan.rows.add_marker(batch.marker, encode_outcomes(outcomes), batch.now_us)
        plan.apply(connection)
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
    """What a batch changes: sessions to remove, then rows to write."""

    def __init__(self, connection: sqlite3.Connection, writes: Sequence[SessionWrite], max_events: int | None) -> None:
        self.rows = FlushRows()
        self._max_events = max_events
        self._by_id = heads_by_id(connection, [write.id for write in writes if write.create is not None])
        self._by_incarnation = heads_by_incarnation(
            connection, [write.incarnation for write in writes if write.create is None]
        )
        self._removed: list[int] = []

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
        if write.create is not None:
            self.rows.add_created(after)
            self._by_id[write.id] = after
        else:
            self.rows.add_head(after, metadata=write.metadata is not None)
        self.rows.add_content(write, version=before.version, seq=before.last_seq)

    def apply(self, connection: sqlite3.Connection) -> None:
        """Removals first: an id that they free may be created again in the same batch."""
        if self._removed:
            remove_sessions(connection, self._removed)
        self.rows.write(connection)
