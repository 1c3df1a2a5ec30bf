"""Reads: sessions, events, lists. Each function is one moment's view of the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from holdfast.backends.base import (
    EventPage,
    EventQuery,
    Head,
    LoadRequest,
    SessionFilter,
    SessionPage,
    Snapshot,
    StateValue,
)
from holdfast.backends.sqlite.connection import read_transaction
from holdfast.backends.sqlite.rows import HEAD_COLUMNS, as_head, heads_by_id, select_in, sql_expires_us
from holdfast.model import Event

__all__ = ["count_sessions", "list_sessions", "load_sessions", "read_event_page"]

_EVENT_COLUMNS: Final = "seq, stream, type, CAST(data AS BLOB), retry_ms, time_us"

_SCANNED_EVENTS: Final = 5_000
"""Events that one page looks at, at most, in search of those of its stream."""


def load_sessions(connection: sqlite3.Connection, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
    with read_transaction(connection):
        by_id = heads_by_id(connection, [request.id for request in requests])
        found = [(request, by_id.get(request.id)) for request in requests]
        states = _load_states(
            connection,
            [head.incarnation for request, head in found if head is not None and _needs_state(request, head)],
        )
    return [
        None if head is None else Snapshot(head, states[head.incarnation] if _needs_state(request, head) else None)
        for request, head in found
    ]


def _needs_state(request: LoadRequest, head: Head) -> bool:
    unchanged = (head.incarnation, head.version) == (request.incarnation, request.version)
    return not (request.head_only or unchanged)


def _load_states(connection: sqlite3.Connection, incarnations: Sequence[int]) -> dict[int, dict[str, StateValue]]:
    states: dict[int, dict[str, StateValue]] = {incarnation: {} for incarnation in incarnations}
    select = "SELECT incarnation, key, CAST(value AS BLOB), version FROM state WHERE incarnation IN"
    for incarnation, key, raw, version in select_in(connection, select, list(states)):
        states[incarnation][key] = StateValue(raw, version)
    return states


def read_event_page(connection: sqlite3.Connection, query: EventQuery) -> EventPage | None:
    with read_transaction(connection):
        bounds: tuple[int, int] | None = connection.execute(
            "SELECT first_seq, last_seq FROM sessions WHERE incarnation = ? AND id = ?", (query.incarnation, query.id)
        ).fetchone()
        if bounds is None:
            return None
        return _newest(connection, query, *bounds) if query.last else _next(connection, query, *bounds)


def _newest(connection: sqlite3.Connection, query: EventQuery, first_seq: int, last_seq: int) -> EventPage:
    rows = _select_events(
        connection, query, max(query.after_seq + 1, first_seq), last_seq, order="DESC", limit=query.limit
    )
    events = [_as_event(query, row) for row in rows]
    events.reverse()
    return EventPage(events, last_seq, False, first_seq, last_seq)


def _next(connection: sqlite3.Connection, query: EventQuery, first_seq: int, last_seq: int) -> EventPage:
    """Seqs have no gaps: without a filter, the page's end is known before it is read."""
    start = max(query.after_seq + 1, first_seq)
    window = query.limit if query.stream is None else max(query.limit, _SCANNED_EVENTS)
    end = min(start + window - 1, last_seq)
    events, size = list[Event](), 0
    for row in _select_events(connection, query, start, end, order="ASC", limit=query.limit):
        size += len(row[3])
        if events and size > query.max_bytes:
            end = row[0] - 1
            break
        events.append(_as_event(query, row))
    if len(events) == query.limit:
        end = events[-1].seq
    scanned_seq = max(end, query.after_seq)
    return EventPage(events, scanned_seq, scanned_seq < last_seq, first_seq, last_seq)


def _select_events(
    connection: sqlite3.Connection, query: EventQuery, start: int, end: int, *, order: str, limit: int
) -> Iterable[Any]:
    of_stream, parameters = ("", ()) if query.stream is None else ("AND stream = ?", (query.stream,))
    return connection.execute(
        f"SELECT {_EVENT_COLUMNS} FROM events WHERE incarnation = ? AND seq BETWEEN ? AND ? {of_stream}"  # noqa: S608
        f" ORDER BY seq {order} LIMIT ?",
        (query.incarnation, start, end, *parameters, limit),
    )


def _as_event(query: EventQuery, row: Any) -> Event:
    seq, stream, event_type, raw, retry_ms, time_us = row
    return Event(
        session_id=query.id,
        incarnation=query.incarnation,
        seq=seq,
        stream=stream,
        type=event_type,
        raw=raw,
        retry_ms=retry_ms,
        time_us=time_us,
    )


def list_sessions(connection: sqlite3.Connection, where: SessionFilter, after: int, limit: int) -> SessionPage:
    condition, parameters = _condition(where)
    rows = connection.execute(
        f"SELECT {HEAD_COLUMNS} FROM sessions WHERE {condition} AND incarnation > ? ORDER BY incarnation LIMIT ?",  # noqa: S608
        (*parameters, after, limit + 1),
    ).fetchall()
    heads = [as_head(row) for row in rows[:limit]]
    return SessionPage(heads, heads[-1].incarnation if len(rows) > limit else None)


def count_sessions(connection: sqlite3.Connection, where: SessionFilter) -> int:
    condition, parameters = _condition(where)
    count: int = connection.execute(f"SELECT count(*) FROM sessions WHERE {condition}", parameters).fetchone()[0]  # noqa: S608
    return count


def _condition(where: SessionFilter) -> tuple[str, list[object]]:
    conditions, parameters = [f"{sql_expires_us} > ?"], list[object]([where.now_us])
    if where.owner is not None:
        conditions.append("owner = ?")
        parameters.append(where.owner)
    if where.status is not None:
        conditions.append("status = ?")
        parameters.append(where.status)
    return " AND ".join(conditions), parameters
