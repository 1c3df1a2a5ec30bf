"""Flushes in which every write appends one event, as most do in a busy store: a function of their own.

One statement moves the heads on and stores the events; its parts need not see each other's rows. Unlike
`commit` it locks no row beforehand: the rows are updated in order of incarnation, and so locked in that
order. The numbers of a flush travel as the text of an array, and all its data as one value: the driver
takes 0.2 to 0.5 µs for each element of an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from holdfast.backends.base import Batch, SessionWrite
from holdfast.backends.postgres.driver import array_text

__all__ = ["APPEND", "APPEND_STATEMENT", "append_columns"]

APPEND: Final = """
CREATE FUNCTION @append (
    p_writer text, p_lane int, p_flush bigint, p_now bigint, p_sync text, p_max_events bigint,
    w_incarnation bigint[], w_id text[], w_accepted bigint[], w_active bigint[],
    e_bounds int[], e_data bytea, e_stream bytea[], e_type bytea[], e_retry bigint[], e_time bigint[],
    OUT o_ordinal int[], OUT o_status int[], OUT o_version bigint[], OUT o_seq bigint[], OUT o_base_first bigint[],
    OUT o_first bigint[]
) LANGUAGE plpgsql AS $append$
DECLARE
    v_dropped bigint[];
    v_refused int[];
    v_statuses int[];
    v_zeros bigint[];
BEGIN
    IF NOT @begin_flush(p_writer, p_lane, p_flush, p_now, p_sync) THEN
        RETURN;
    END IF;
    -- Joined by a nested loop (see begin_flush), rows are updated, and so locked, as the sorted writes come.
    WITH moved AS (
        UPDATE @sessions AS s
        SET active_us = GREATEST(s.active_us, w.active), version = s.version + 1, last_seq = s.last_seq + 1
        FROM (
            SELECT u.incarnation, u.id, u.accepted, coalesce(u.active, u.accepted) AS active,
                coalesce(u.stream, '') AS stream, coalesce(u.type, 'message') AS type, u.retry,
                coalesce(u.time, u.accepted) AS time, u.place::int AS place
            FROM unnest(w_incarnation, w_id, w_accepted, w_active, e_stream, e_type, e_retry, e_time) WITH ORDINALITY
                AS u (incarnation, id, accepted, active, stream, type, retry, time, place)
            ORDER BY u.incarnation
        ) AS w
        -- Were ids compared by =, the planner would take their index, whose entries are long and in no useful order.
        WHERE s.incarnation = w.incarnation AND s.id IS NOT DISTINCT FROM w.id AND NOT s.closed
            AND coalesce(LEAST(s.active_us + s.ttl_us, s.deadline_us) > w.accepted, true)
        RETURNING s.incarnation, s.version - 1 AS version, s.last_seq AS seq, s.first_seq,
            w.stream, w.type, w.retry, w.time, w.place
    ), stored AS (
        INSERT INTO @events (incarnation, seq, stream, type, data, retry_ms, time_us)
        SELECT m.incarnation, m.seq, m.stream, m.type,
            substr(e_data, e_bounds[m.place] + 1, e_bounds[m.place + 1] - e_bounds[m.place]), m.retry, m.time
        FROM moved AS m
    )
    SELECT array_agg(m.place - 1), array_agg(m.version), array_agg(m.seq - 1), array_agg(m.first_seq),
        array_agg(GREATEST(m.first_seq, m.seq - p_max_events + 1)),
        array_agg(m.incarnation) FILTER (WHERE m.seq - p_max_events >= m.first_seq)
    INTO o_ordinal, o_version, o_seq, o_base_first, o_first, v_dropped
    FROM moved AS m;

    IF v_dropped IS NOT NULL THEN
        UPDATE @sessions SET first_seq = last_seq - p_max_events + 1 WHERE incarnation = ANY (v_dropped);
        INSERT INTO @overdue (incarnation) SELECT unnest(v_dropped) ON CONFLICT DO NOTHING;
    END IF;
    IF coalesce(cardinality(o_ordinal), 0) < cardinality(w_incarnation) THEN
        -- The refused rows are not locked, and may have changed since; the answer holds for one moment of this
        -- call nevertheless. A closed session stays closed, and one that was not to be had then was missing.
        SELECT array_agg(f.place), array_agg(f.status), array_agg(0::bigint) INTO v_refused, v_statuses, v_zeros
        FROM (
            SELECT w.place::int - 1 AS place,
                CASE
                    WHEN s.closed AND coalesce(LEAST(s.active_us + s.ttl_us, s.deadline_us) > w.accepted, true) THEN 4
                    ELSE 1
                END AS status
            FROM unnest(w_incarnation, w_id, w_accepted) WITH ORDINALITY AS w (incarnation, id, accepted, place)
            LEFT JOIN @sessions AS s ON s.incarnation = w.incarnation AND s.id = w.id
            WHERE w.place - 1 <> ALL (coalesce(o_ordinal, '{}'))
        ) AS f;
        o_status := array_fill(0, ARRAY[coalesce(cardinality(o_ordinal), 0)]) || v_statuses;
        o_ordinal := o_ordinal || v_refused;
        o_version := o_version || v_zeros;
        o_seq := o_seq || v_zeros;
        o_base_first := o_base_first || v_zeros;
        o_first := o_first || v_zeros;
    END IF;

    UPDATE @markers AS m
    SET ordinals = o_ordinal, status = o_status, base_version = o_version, base_seq = o_seq,
        base_first_seq = o_base_first, first_seq = o_first
    WHERE m.writer = p_writer AND m.lane = p_lane;
END
$append$"""
"""``o_ordinal``: which write, from 0, an outcome is of. ``o_status``: NULL if all are committed."""

APPEND_STATEMENT: Final = (
    "SELECT * FROM @append($1, $2, $3, $4, $5, $6, $7::text::bigint[], string_to_array($8, ' '),"
    " $9::text::bigint[], $10::text::bigint[], $11::text::int[], $12, $13, $14, $15::text::bigint[],"
    " $16::text::bigint[])"
)

_NONE_UNUSUAL: Final = ("{}", (), (), "{}", "{}")
"""``w_active`` and ``e_time`` are ``w_accepted``, ``e_stream`` is empty, ``e_type`` "message", ``e_retry`` NULL."""


def append_columns(batch: Batch) -> tuple[Any, ...] | None:
    """The arguments from ``w_incarnation`` on; None if a write is anything but the append of one event."""
    incarnations, ids, accepted, data = list[int](), list[str](), list[int](), list[bytes]()
    usual = True
    for write in batch.writes:
        if (
            len(write.events) != 1
            or write.units != 1
            or write.create is not None
            or write.fenced
            or write.sets
            or write.removes
            or write.cleared
            or write.metadata is not None
            or write.floor_seq
            or write.close
            or write.delete
        ):
            return None
        event, accepted_us = write.events[0], write.accepted_us
        incarnations.append(write.incarnation)
        ids.append(write.id)
        accepted.append(accepted_us)
        data.append(event.raw)
        usual = usual and (
            write.active_us == accepted_us == event.time_us
            and not event.stream
            and event.type == "message"
            and event.retry_ms is None
        )
    joined = " ".join(ids)
    if joined.count(" ") >= len(ids):
        return None  # ids have no blanks; one that had would be taken for two
    active, *others = _NONE_UNUSUAL if usual else _unusual_columns(batch.writes)
    bounds = array_text(list(accumulate(map(len, data), initial=0)))
    return (array_text(incarnations), joined, array_text(accepted), active, bounds, b"".join(data), *others)


def _unusual_columns(writes: Sequence[SessionWrite]) -> tuple[Any, ...]:
    """``w_active``, ``e_stream``, ``e_type``, ``e_retry`` and ``e_time`` in full."""
    events = [write.events[0] for write in writes]
    return (
        array_text([write.active_us for write in writes]),
        [event.stream.encode() for event in events],
        [event.type.encode() for event in events],
        array_text([event.retry_ms for event in events]),
        array_text([event.time_us for event in events]),
    )
