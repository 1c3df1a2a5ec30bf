"""The functions in the database: each is one round trip, and one transaction.

A function and not one statement with several parts, because all parts of a statement see the
database as it was before the statement waited for a row's lock; a ``DELETE`` would miss what another
instance committed meanwhile. In a function each statement sees what is committed when it begins, and
the rows are locked by then. That holds in READ COMMITTED, which is checked at open.

Writes are the rows of parallel arrays: those to existing sessions first (``w_…``, in order of
incarnation), then creations (``c_…``, in order of id). ``…_of`` in the arrays of their content is the
place in that order, from 1.
"""

from __future__ import annotations

from typing import Final

from holdfast.backends.postgres.appends import APPEND
from holdfast.backends.postgres.upkeep_functions import UPKEEP_FUNCTIONS

__all__ = ["CHANGES", "CLOSES", "COMMIT_PARAMETERS", "DELETES", "FUNCTIONS"]

CHANGES: Final = 1
"""A bit of ``w_flags``: the session must not be closed."""
CLOSES: Final = 2
DELETES: Final = 4

COMMIT_PARAMETERS: Final = (
    ("p_writer", "text"), ("p_lane", "int"), ("p_flush", "bigint"), ("p_now", "bigint"), ("p_sync", "text"),
    ("p_max_events", "bigint"), ("p_order", "int[]"),
    ("w_incarnation", "bigint[]"), ("w_id", "text[]"), ("w_accepted", "bigint[]"), ("w_active", "bigint[]"),
    ("w_fence", "bigint[]"), ("w_units", "bigint[]"), ("w_events", "bigint[]"), ("w_flags", "int[]"),
    ("w_floor", "bigint[]"), ("w_metadata", "bytea[]"),
    ("c_incarnation", "bigint[]"), ("c_id", "text[]"), ("c_accepted", "bigint[]"), ("c_owner", "bytea[]"),
    ("c_created", "bigint[]"), ("c_active", "bigint[]"), ("c_ttl", "bigint[]"), ("c_deadline", "bigint[]"),
    ("c_closed", "boolean[]"), ("c_metadata", "bytea[]"), ("c_first", "bigint[]"), ("c_last", "bigint[]"),
    ("c_version", "bigint[]"), ("c_base_version", "bigint[]"), ("c_base_seq", "bigint[]"),
    ("c_base_first", "bigint[]"), ("c_kept", "boolean[]"),
    ("x_of", "int[]"), ("r_of", "int[]"), ("r_key", "bytea[]"),
    ("s_of", "int[]"), ("s_key", "bytea[]"), ("s_value", "bytea[]"), ("s_offset", "bigint[]"),
    ("e_of", "int[]"), ("e_offset", "bigint[]"), ("e_stream", "bytea[]"), ("e_type", "bytea[]"),
    ("e_data", "bytea[]"), ("e_retry", "bigint[]"), ("e_time", "bigint[]"),
)  # fmt: skip
"""In the order of the arguments. A column that no write of a batch uses may be an empty array: all NULL.

So may one that is the same in most batches: then ``w_active`` is ``w_accepted``; ``w_units``, ``w_events``,
``w_flags`` and ``e_offset`` are 1; ``e_stream`` is empty, ``e_type`` "message"; if ``e_of`` is, each write has one
event.
"""

_SET_UP: Final = """
CREATE FUNCTION @set_up () RETURNS void LANGUAGE plpgsql AS $set_up$
BEGIN
    -- A plan made while the tables were small must not read all of them later.
    PERFORM set_config('enable_seqscan', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true),
        -- By a warning alone the server tells that it has committed without waiting for a standby to the end.
        set_config('client_min_messages', 'warning', true);
END
$set_up$"""

_BEGIN_FLUSH: Final = """
CREATE FUNCTION @begin_flush (p_writer text, p_lane int, p_flush bigint, p_now bigint, p_sync text) RETURNS boolean
LANGUAGE plpgsql AS $begin_flush$
BEGIN
    PERFORM set_config('synchronous_commit', p_sync, true), @set_up(),
        -- What is left is to look up the rows one by one, in order of the writes. Of a small table the planner would
        -- rather read all of an index, and keep to that plan when the table has grown.
        set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true);
    -- Set up otherwise since the store was opened, or another server: it would not wait for anybody.
    IF p_sync = 'on' AND current_setting('synchronous_standby_names') = '' THEN
        RAISE EXCEPTION 'synchronous_standby_names is empty' USING ERRCODE = '55000';
    END IF;
    -- The marker is the fence: from here on `resolve` waits for this transaction; a flush that it has
    -- declared void comes too late.
    INSERT INTO @markers AS m (writer, lane, flush, voided, sync, time_us)
    VALUES (p_writer, p_lane, p_flush, 0, p_sync, p_now)
    ON CONFLICT (writer, lane) DO UPDATE
        SET flush = excluded.flush, sync = excluded.sync, time_us = excluded.time_us
        WHERE m.flush < excluded.flush AND m.voided < excluded.flush;
    RETURN FOUND;
END
$begin_flush$"""

_COMMIT: Final = """
CREATE FUNCTION @commit (
    {parameters},
    OUT o_status int[], OUT o_version bigint[], OUT o_seq bigint[], OUT o_base_first bigint[], OUT o_first bigint[]
) LANGUAGE plpgsql AS $commit$
DECLARE
    v_writes int := cardinality(w_incarnation);
    v_creations int := cardinality(c_incarnation);
    v_incarnations bigint[] := w_incarnation || c_incarnation;
    v_found int[];
    v_taken bigint[];
    v_gone bigint[] := '{}';
    v_dropped boolean;
    v_deletes boolean;
BEGIN
    IF NOT @begin_flush(p_writer, p_lane, p_flush, p_now, p_sync) THEN
        RETURN;
    END IF;

    -- Rows are locked by ascending incarnation in every transaction, so none waits for another in a circle.
    IF v_creations > 0 THEN
        PERFORM 1 FROM @sessions AS s
        WHERE s.incarnation = ANY (w_incarnation) OR s.id = ANY (c_id)
        ORDER BY s.incarnation FOR UPDATE;
    END IF;
    SELECT array_agg(f.place), array_agg(f.status), array_agg(f.version), array_agg(f.last_seq),
        array_agg(f.first_seq), array_agg(f.new_first), bool_or(f.new_first > f.first_seq), bool_or(f.deletes)
    INTO v_found, o_status, o_version, o_seq, o_base_first, o_first, v_dropped, v_deletes
    FROM (
        SELECT w.place::int AS place, s.version, s.last_seq, s.first_seq, coalesce(w.flags, 1) & 4 <> 0 AS deletes,
            CASE
                WHEN LEAST(s.active_us + s.ttl_us, s.deadline_us) <= w.accepted THEN 1
                WHEN w.fence <> s.version THEN 3
                WHEN s.closed AND coalesce(w.flags, 1) & 1 <> 0 THEN 4
                ELSE 0
            END AS status,
            GREATEST(
                s.first_seq,
                LEAST(coalesce(w.floor, 0), s.last_seq + coalesce(w.events, 1) + 1),
                s.last_seq + coalesce(w.events, 1) - p_max_events + 1
            ) AS new_first
        FROM unnest(w_incarnation, w_id, w_accepted, w_fence, w_events, w_flags, w_floor) WITH ORDINALITY
            AS w (incarnation, id, accepted, fence, events, flags, floor, place)
        JOIN @sessions AS s ON s.incarnation = w.incarnation AND s.id = w.id
        ORDER BY s.incarnation
        FOR UPDATE OF s
    ) AS f;
    IF v_writes > coalesce(cardinality(v_found), 0) THEN
        SELECT array_agg(coalesce(o_status[f.index], 1)), array_agg(coalesce(o_version[f.index], 0)),
            array_agg(coalesce(o_seq[f.index], 0)), array_agg(coalesce(o_base_first[f.index], 0)),
            array_agg(coalesce(o_first[f.index], 0))
        INTO o_status, o_version, o_seq, o_base_first, o_first
        FROM (
            SELECT array_position(v_found, p.place) AS index FROM generate_series(1, v_writes) AS p (place)
            ORDER BY p.place
        ) AS f;
    ELSIF v_writes = 0 THEN
        o_status := '{}';
        o_version := '{}';
        o_seq := '{}';
        o_base_first := '{}';
        o_first := '{}';
    END IF;

    IF v_creations > 0 THEN
        SELECT coalesce(array_agg(f.incarnation) FILTER (WHERE f.lapsed), '{}'),
            coalesce(array_agg(f.place) FILTER (WHERE NOT f.lapsed), '{}')
        INTO v_gone, v_taken
        FROM (
            SELECT c.place, s.incarnation,
                coalesce(LEAST(s.active_us + s.ttl_us, s.deadline_us) <= c.accepted, false) AS lapsed
            FROM unnest(c_id, c_accepted) WITH ORDINALITY AS c (id, accepted, place)
            JOIN @sessions AS s ON s.id = c.id
            ORDER BY s.incarnation
            FOR UPDATE OF s
        ) AS f;
        o_status := o_status || ARRAY(
            SELECT CASE WHEN p.place = ANY (v_taken) THEN 2 ELSE 0 END
            FROM generate_series(1, v_creations) AS p (place) ORDER BY p.place
        );
        o_version := o_version || c_base_version;
        o_seq := o_seq || c_base_seq;
        o_base_first := o_base_first || c_base_first;
        o_first := o_first || c_first;
    END IF;

    IF v_deletes THEN
        v_gone := v_gone || ARRAY(
            SELECT u.incarnation FROM unnest(w_incarnation, o_status, w_flags) AS u (incarnation, status, flags)
            WHERE u.status = 0 AND coalesce(u.flags, 1) & 4 <> 0
        );
    END IF;
    IF cardinality(v_gone) > 0 THEN
        PERFORM @remove(v_gone);
    END IF;
    IF v_writes > 0 THEN
        UPDATE @sessions AS s
        SET active_us = GREATEST(s.active_us, coalesce(u.active, u.accepted)),
            version = s.version + coalesce(u.units, 1),
            last_seq = s.last_seq + coalesce(u.events, 1), first_seq = u.first,
            closed = s.closed OR coalesce(u.flags, 1) & 2 <> 0, metadata = coalesce(u.metadata, s.metadata)
        FROM unnest(w_incarnation, o_status, w_accepted, w_active, w_units, w_events, o_first, w_flags, w_metadata)
            AS u (incarnation, status, accepted, active, units, events, first, flags, metadata)
        WHERE s.incarnation = u.incarnation AND u.status = 0;
    END IF;
    IF v_creations > 0 THEN
        INSERT INTO @sessions (incarnation, id, owner, created_us, active_us, ttl_us, deadline_us, due_us, closed,
            metadata, first_seq, last_seq, version)
        SELECT c.incarnation, c.id, c.owner, c.created, c.active, c.ttl, c.deadline,
            LEAST(c.active + c.ttl, c.deadline), c.closed, c.metadata, c.first, c.last, c.version
        FROM unnest(c_incarnation, c_id, c_owner, c_created, c_active, c_ttl, c_deadline, c_closed, c_metadata,
                c_first, c_last, c_version, c_kept) WITH ORDINALITY
            AS c (incarnation, id, owner, created, active, ttl, deadline, closed, metadata, first, last, version, kept,
                place)
        WHERE c.kept AND o_status[v_writes + c.place] = 0
        ORDER BY c.id;
    END IF;
    IF v_dropped OR v_creations > 0 THEN
        INSERT INTO @overdue (incarnation)
        SELECT u.incarnation
        FROM unnest(v_incarnations, o_status, o_base_first, o_first) AS u (incarnation, status, base_first, first)
        WHERE u.status = 0 AND u.first > u.base_first
        ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(x_of) > 0 THEN
        DELETE FROM @state AS s
        WHERE s.incarnation = ANY (ARRAY(
            SELECT v_incarnations[x.place] FROM unnest(x_of) AS x (place) WHERE o_status[x.place] = 0
        ));
    END IF;
    IF cardinality(r_of) > 0 THEN
        DELETE FROM @state AS s USING unnest(r_of, r_key) AS r (place, key)
        WHERE s.incarnation = v_incarnations[r.place] AND s.key = r.key AND o_status[r.place] = 0;
    END IF;
    IF cardinality(s_of) > 0 THEN
        INSERT INTO @state (incarnation, key, value, version)
        SELECT v_incarnations[n.place], n.key, n.value, o_version[n.place] + n.unit
        FROM unnest(s_of, s_key, s_value, s_offset) AS n (place, key, value, unit)
        WHERE o_status[n.place] = 0
        ON CONFLICT (incarnation, key) DO UPDATE SET value = excluded.value, version = excluded.version;
    END IF;
    IF cardinality(e_data) > 0 AND cardinality(e_of) = 0 THEN
        INSERT INTO @events (incarnation, seq, stream, type, data, retry_ms, time_us)
        SELECT e.incarnation, e.seq + 1, coalesce(e.stream, ''), coalesce(e.type, 'message'), e.data, e.retry, e.time
        FROM unnest(v_incarnations, o_status, o_seq, e_stream, e_type, e_data, e_retry, e_time)
            AS e (incarnation, status, seq, stream, type, data, retry, time)
        WHERE e.status = 0;
    ELSIF cardinality(e_data) > 0 THEN
        INSERT INTO @events (incarnation, seq, stream, type, data, retry_ms, time_us)
        SELECT v_incarnations[e.place], o_seq[e.place] + coalesce(e.number, 1),
            coalesce(e.stream, ''), coalesce(e.type, 'message'), e.data, e.retry, e.time
        FROM unnest(e_of, e_offset, e_stream, e_type, e_data, e_retry, e_time)
            AS e (place, number, stream, type, data, retry, time)
        WHERE o_status[e.place] = 0;
    END IF;

    UPDATE @markers AS m
    SET ordinals = p_order, status = o_status, base_version = o_version, base_seq = o_seq,
        base_first_seq = o_base_first, first_seq = o_first
    WHERE m.writer = p_writer AND m.lane = p_lane;
END
$commit$""".replace("{parameters}", ", ".join(" ".join(parameter) for parameter in COMMIT_PARAMETERS))

_RESOLVE: Final = """
CREATE FUNCTION @resolve (
    p_writer text, p_lane int, p_flush bigint, p_now bigint,
    OUT o_sync text, OUT ordinals int[], OUT o_status int[], OUT o_version bigint[], OUT o_seq bigint[],
    OUT o_base_first bigint[], OUT o_first bigint[]
) LANGUAGE plpgsql AS $resolve$
DECLARE
    v_marker @markers;
BEGIN
    -- Waits for the commit if it is under way; if it is not, and did not happen, it never will.
    INSERT INTO @markers AS m (writer, lane, flush, voided, sync, time_us)
    VALUES (p_writer, p_lane, 0, p_flush, 'local', p_now)
    ON CONFLICT (writer, lane) DO UPDATE
        SET voided = CASE WHEN m.flush = p_flush THEN m.voided ELSE GREATEST(m.voided, p_flush) END
    RETURNING * INTO v_marker;
    -- This transaction is durable only when the ones before it are: so is, then, the commit that it tells of.
    PERFORM set_config('synchronous_commit', v_marker.sync, true), @set_up();
    IF v_marker.flush = p_flush THEN
        IF v_marker.sync = 'on' AND current_setting('synchronous_standby_names') = '' THEN
            RAISE EXCEPTION 'synchronous_standby_names is empty' USING ERRCODE = '55000';
        END IF;
        o_sync := v_marker.sync;
        ordinals := v_marker.ordinals;
        o_status := v_marker.status;
        o_version := v_marker.base_version;
        o_seq := v_marker.base_seq;
        o_base_first := v_marker.base_first_seq;
        o_first := v_marker.first_seq;
    END IF;
END
$resolve$"""

FUNCTIONS: Final = (_SET_UP, _BEGIN_FLUSH, _COMMIT, APPEND, _RESOLVE, *UPKEEP_FUNCTIONS)
"""All, in any order: names in their bodies are looked up when they run."""
