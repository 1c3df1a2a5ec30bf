"""Expiry and trimming, in steps of bounded size: found by reading, done with a check under the write lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from holdfast.backends.base import Expired, TrimPolicy
from holdfast.backends.sqlite.connection import read_transaction, write_transaction
from holdfast.backends.sqlite.removal import delete_events, remove_sessions
from holdfast.backends.sqlite.rows import MAX_INTEGER, heads_by_incarnation, select_in, sql_expires_us

__all__ = ["Circuit", "TrimTarget", "find_expired", "find_trimmable", "find_trimmable_of", "remove_expired", "trim"]

_SCANNED_SESSIONS: Final = 10_000
"""Rows of ``sessions`` that one step looks at, at most."""

_TARGETS_AT_ONCE: Final = 200


class Circuit:
    """One walk over all sessions by incarnation that begins where the last one stopped.

    So a walk that stops early, at a limit, does not make the next one pass the same sessions again.
    """

    def __init__(self, start: int) -> None:
        self.position = start
        self.done = False
        self._end = start or MAX_INTEGER
        self._wrapped = start == 0

    def advance(self, scanned: int) -> None:
        """All up to ``scanned`` has been looked at."""
        if scanned < MAX_INTEGER:
            self.position = scanned
            self.done = self._wrapped and scanned >= self._end
        else:
            self.position = 0
            self.done = self._wrapped
            self._wrapped = True


class TrimTarget(NamedTuple):
    """Rows of ``incarnation`` to delete: below ``first_seq``, or (None) all, the session being gone."""

    incarnation: int
    first_seq: int | None


def _scan(
    connection: sqlite3.Connection, columns: str, condition: tuple[str, Sequence[object]], after: int, limit: int
) -> tuple[list[Any], int]:
    """Up to ``limit`` rows that meet the condition, and the incarnation up to which that is all."""
    boundary = connection.execute(
        "SELECT incarnation FROM sessions WHERE incarnation > ? ORDER BY incarnation LIMIT 1 OFFSET ?",
        (after, _SCANNED_SESSIONS - 1),
    ).fetchone()
    end: int = boundary[0] if boundary is not None else MAX_INTEGER
    where, parameters = condition
    rows = connection.execute(
        f"SELECT {columns} FROM sessions WHERE incarnation > ? AND incarnation <= ? AND {where}"  # noqa: S608
        " ORDER BY incarnation LIMIT ?",
        (after, end, *parameters, limit),
    ).fetchall()
    return rows, rows[-1][0] if len(rows) == limit else end


def find_expired(connection: sqlite3.Connection, after: int, now_us: int, limit: int) -> tuple[list[int], int]:
    """Incarnations that look expired, and how far was looked."""
    with read_transaction(connection):
        rows, scanned = _scan(connection, "incarnation", (f"{sql_expires_us} <= ?", [now_us]), after, limit)
    return [row[0] for row in rows], scanned


def remove_expired(connection: sqlite3.Connection, incarnations: Sequence[int], now_us: int) -> list[Expired]:
    """Remove those that are expired still."""
    with write_transaction(connection):
        gone = [
            Expired(head.id, head.incarnation, head.owner)
            for head in heads_by_incarnation(connection, incarnations).values()
            if head.expires_us is not None and head.expires_us <= now_us
        ]
        remove_sessions(connection, [session.incarnation for session in gone])
    return gone


def find_trimmable(connection: sqlite3.Connection, after: int, policy: TrimPolicy) -> tuple[list[TrimTarget], int]:
    """Sessions with rows to delete, and how far was looked; the graveyard comes first."""
    with read_transaction(connection):
        if after == 0:
            graves = connection.execute("SELECT incarnation FROM graveyard LIMIT ?", (_TARGETS_AT_ONCE,)).fetchall()
            if graves:
                return [TrimTarget(row[0], None) for row in graves], 0
        candidate = "last_seq >= trimmed_seq" if _bounds(policy) else "first_seq > trimmed_seq"
        rows, scanned = _scan(
            connection, "incarnation, first_seq, last_seq, trimmed_seq", (candidate, []), after, _TARGETS_AT_ONCE
        )
        return _targets(connection, rows, policy), scanned


def find_trimmable_of(
    connection: sqlite3.Connection, ids: Sequence[tuple[str, int]], policy: TrimPolicy
) -> list[TrimTarget]:
    """Those of the given (id, incarnation) pairs that have rows to delete."""
    incarnations = [incarnation for _, incarnation in ids]
    with read_transaction(connection):
        graves = select_in(connection, "SELECT incarnation FROM graveyard WHERE incarnation IN", incarnations)
        targets = [TrimTarget(row[0], None) for row in graves]
        rows = select_in(
            connection,
            "SELECT incarnation, first_seq, last_seq, trimmed_seq FROM sessions WHERE incarnation IN",
            incarnations,
        )
        return targets + _targets(connection, rows, policy)


def _targets(connection: sqlite3.Connection, rows: Iterable[Any], policy: TrimPolicy) -> list[TrimTarget]:
    targets = list[TrimTarget]()
    for incarnation, first_seq, last_seq, trimmed_seq in rows:
        kept_from = _apply_policy(connection, incarnation, first_seq, last_seq, policy)
        if kept_from > trimmed_seq:
            targets.append(TrimTarget(incarnation, kept_from))
    return targets


def _bounds(policy: TrimPolicy) -> bool:
    return policy.min_time_us is not None or policy.max_bytes is not None


def _apply_policy(
    connection: sqlite3.Connection, incarnation: int, first_seq: int, last_seq: int, policy: TrimPolicy
) -> int:
    """The first seq that the policy keeps. Appends that come meanwhile can only move it up."""
    if policy.min_time_us is not None:
        young = connection.execute(
            "SELECT seq FROM events WHERE incarnation = ? AND seq >= ? AND time_us >= ? ORDER BY seq LIMIT 1",
            (incarnation, first_seq, policy.min_time_us),
        ).fetchone()
        first_seq = young[0] if young is not None else last_seq + 1
    if policy.max_bytes is not None:
        size = 0
        for seq, length in connection.execute(
            "SELECT seq, length(CAST(data AS BLOB)) FROM events WHERE incarnation = ? AND seq >= ? ORDER BY seq DESC",
            (incarnation, first_seq),
        ):
            size += length
            if size > policy.max_bytes:
                return int(seq) + 1
    return first_seq


def trim(connection: sqlite3.Connection, targets: Sequence[TrimTarget], limit: int) -> int:
    """Delete up to ``limit`` rows of the targets, in their order; returns how many."""
    deleted = 0
    with write_transaction(connection):
        for incarnation, first_seq in targets:
            if deleted == limit:
                break
            if first_seq is not None:
                connection.execute(
                    "UPDATE sessions SET first_seq = max(first_seq, ?) WHERE incarnation = ?", (first_seq, incarnation)
                )
            deleted += delete_events(connection, incarnation, below_seq=first_seq, limit=limit - deleted)
            if deleted < limit:
                _finish(connection, incarnation, first_seq)
    return deleted


def _finish(connection: sqlite3.Connection, incarnation: int, first_seq: int | None) -> None:
    """Nothing is left to delete: do not look here again."""
    if first_seq is None:
        connection.execute("DELETE FROM graveyard WHERE incarnation = ?", (incarnation,))
    else:
        connection.execute(
            "UPDATE sessions SET trimmed_seq = max(trimmed_seq, ?) WHERE incarnation = ?", (first_seq, incarnation)
        )
