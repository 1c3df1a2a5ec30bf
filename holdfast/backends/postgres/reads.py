"""Reads: sessions, events, lists. Each is one statement, hence one moment's view of the store."""

from __future__ import annotations

from collections.abc import Sequence
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
from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.names import Names
from holdfast.model import Event

__all__ = [
    "COUNT",
    "EVENTS",
    "EVENTS_OF_STREAM",
    "LAST_EVENTS",
    "LIST",
    "LOAD",
    "count_sessions",
    "list_sessions",
    "load_sessions",
    "read_event_page",
]

_SCANNED_EVENTS: Final = 5_000
"""Events that one page looks at, at most, in search of those of its stream."""

_HEAD: Final = (
    "s.id, s.incarnation, s.owner, s.created_us, s.active_us, s.ttl_us, s.deadline_us, s.closed, s.metadata,"
    " s.first_seq, s.last_seq, s.version"
)

LOAD: Final = f"""
    SELECT r.place, r.wanted AND NOT (r.incarnation = s.incarnation AND r.version = s.version), {_HEAD},
        c.keys, c.raws, c.versions
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::boolean[]) WITH ORDINALITY
        AS r (id, incarnation, version, wanted, place)
    JOIN @sessions AS s ON s.id = r.id
    LEFT JOIN LATERAL (
        SELECT array_agg(t.key) AS keys, array_agg(t.value) AS raws, array_agg(t.version) AS versions
        FROM @state AS t
        WHERE t.incarnation = s.incarnation
            AND r.wanted AND NOT (r.incarnation = s.incarnation AND r.version = s.version)
    ) AS c ON true"""  # noqa: S608

# The first event past the size comes without its data: it says where the page ends.
_PAGE: Final = """
    SELECT s.first_seq, s.last_seq, e.seq, e.stream, e.type, e.retry_ms, e.time_us, e.data
    FROM @sessions AS s
    LEFT JOIN LATERAL (
        SELECT p.seq, p.stream, p.type, p.retry_ms, p.time_us,
            CASE WHEN p.number = 1 OR p.size <= $6 THEN p.data END AS data
        FROM (
            SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.seq) AS size, row_number() OVER (ORDER BY e.seq)
                AS number
            FROM (
                SELECT e.* FROM @events AS e
                WHERE e.incarnation = s.incarnation AND e.seq > $3 AND e.seq >= s.first_seq {where}
                ORDER BY e.seq LIMIT $5
            ) AS e
        ) AS p
        WHERE p.number <= 2 OR p.size - octet_length(p.data) <= $6
    ) AS e ON true
    WHERE s.incarnation = $1 AND s.id = $2
    ORDER BY e.seq"""

EVENTS: Final = _PAGE.replace("{where}", "AND $4::bytea IS NULL")
EVENTS_OF_STREAM: Final = _PAGE.replace(
    "{where}", f"AND e.seq < GREATEST($3 + 1, s.first_seq) + {_SCANNED_EVENTS} AND e.stream = $4"
)

LAST_EVENTS: Final = """
    SELECT s.first_seq, s.last_seq, e.seq, e.stream, e.type, e.retry_ms, e.time_us, e.data
    FROM @sessions AS s
    LEFT JOIN LATERAL (
        SELECT e.* FROM @events AS e
        WHERE e.incarnation = s.incarnation AND e.seq > $3 AND e.seq >= s.first_seq
            AND ($4::bytea IS NULL OR e.stream = $4)
        ORDER BY e.seq DESC LIMIT $5
    ) AS e ON true
    WHERE s.incarnation = $1 AND s.id = $2
    ORDER BY e.seq"""

_LIVE: Final = "(LEAST(s.active_us + s.ttl_us, s.deadline_us) > $1) IS NOT false"
LIST: Final = (
    f"SELECT {_HEAD} FROM @sessions AS s WHERE {_LIVE}{{conditions}} AND s.incarnation > {{after}}"  # noqa: S608
    " ORDER BY s.incarnation LIMIT {limit}"
)
COUNT: Final = f"SELECT count(*) FROM @sessions AS s WHERE {_LIVE}{{conditions}}"  # noqa: S608


def _as_head(row: Sequence[Any]) -> Head:
    """From the columns of `_HEAD`."""
    session_id, incarnation, owner, created, active, ttl, deadline, closed, metadata, first, last, version = row
    return Head(
        id=session_id,
        incarnation=incarnation,
        owner=None if owner is None else owner.decode(),
        created_us=created,
        active_us=active,
        ttl_us=ttl,
        deadline_us=deadline,
        status="closed" if closed else "active",
        metadata=metadata,
        first_seq=first,
        last_seq=last,
        version=version,
    )


async def load_sessions(connection: Connection, names: Names, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
    rows = await connection.fetch(
        names.sql(LOAD),
        [request.id for request in requests],
        [request.incarnation for request in requests],
        [request.version for request in requests],
        [not request.head_only for request in requests],
    )
    snapshots: list[Snapshot | None] = [None] * len(requests)
    for place, wanted, *head, keys, raws, versions in rows:
        snapshots[place - 1] = Snapshot(_as_head(head), _as_state(keys, raws, versions) if wanted else None)
    return snapshots


def _as_state(
    keys: Sequence[bytes] | None, raws: Sequence[bytes] | None, versions: Sequence[int] | None
) -> dict[str, StateValue]:
    if keys is None or raws is None or versions is None:
        return {}
    return {key.decode(): StateValue(raw, version) for key, raw, version in zip(keys, raws, versions, strict=True)}


async def read_event_page(connection: Connection, names: Names, query: EventQuery) -> EventPage | None:
    stream = None if query.stream is None else query.stream.encode()
    values = [query.incarnation, query.id, query.after_seq, stream, query.limit]
    if query.last:
        rows = await connection.fetch(names.sql(LAST_EVENTS), *values)
    else:
        statement = EVENTS if stream is None else EVENTS_OF_STREAM
        rows = await connection.fetch(names.sql(statement), *values, query.max_bytes)
    if not rows:
        return None
    first_seq, last_seq = rows[0][:2]
    found = [row for row in rows if row[2] is not None]
    if query.last:
        return EventPage([_as_event(query, row) for row in found], last_seq, False, first_seq, last_seq)
    return _as_page(query, found, first_seq, last_seq)


def _as_page(query: EventQuery, rows: Sequence[Any], first_seq: int, last_seq: int) -> EventPage:
    """Seqs have no gaps: how far the statement looked follows from its window."""
    start = max(query.after_seq + 1, first_seq)
    window = query.limit if query.stream is None else _SCANNED_EVENTS
    end = min(start + window - 1, last_seq)
    if rows and len(rows) == query.limit:
        end = rows[-1][2]
    if rows and rows[-1][7] is None:
        end = rows[-1][2] - 1
        rows = rows[:-1]
    scanned_seq = max(end, query.after_seq)
    events = [_as_event(query, row) for row in rows]
    return EventPage(events, scanned_seq, scanned_seq < last_seq, first_seq, last_seq)


def _as_event(query: EventQuery, row: Sequence[Any]) -> Event:
    _, _, seq, stream, event_type, retry_ms, time_us, raw = row
    return Event(
        session_id=query.id,
        incarnation=query.incarnation,
        seq=seq,
        stream=stream.decode(),
        type=event_type.decode(),
        raw=raw,
        retry_ms=retry_ms,
        time_us=time_us,
    )


async def list_sessions(
    connection: Connection, names: Names, where: SessionFilter, after: int, limit: int
) -> SessionPage:
    conditions, values = _conditions(where)
    statement = LIST.format(conditions=conditions, after=f"${len(values) + 1}", limit=f"${len(values) + 2}")
    rows = await connection.fetch(names.sql(statement), *values, after, limit + 1)
    heads = [_as_head(row) for row in rows[:limit]]
    return SessionPage(heads, heads[-1].incarnation if len(rows) > limit else None)


async def count_sessions(connection: Connection, names: Names, where: SessionFilter) -> int:
    """Looks at every session that the owner narrows it down to: for all of them, that is a scan."""
    conditions, values = _conditions(where)
    async with connection.transaction(isolation="read_committed", readonly=True):
        await connection.execute("SET LOCAL enable_seqscan = on")
        count: int = await connection.fetchval(names.sql(COUNT.format(conditions=conditions)), *values)
    return count


def _conditions(where: SessionFilter) -> tuple[str, list[object]]:
    conditions, values = "", list[object]([where.now_us])
    if where.owner is not None:
        values.append(where.owner.encode())
        conditions += f" AND s.owner = ${len(values)}"
    if where.status is not None:
        conditions += " AND s.closed" if where.status == "closed" else " AND NOT s.closed"
    return conditions, values
