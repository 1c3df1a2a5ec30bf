"""The functions in the database for expiry and trimming; those of the writer are in `functions`.

Each is one transaction of bounded size.
"""

from __future__ import annotations

from typing import Final

__all__ = ["UPKEEP_FUNCTIONS"]

_REMOVE: Final = """
CREATE FUNCTION @remove (p_gone bigint[]) RETURNS void LANGUAGE plpgsql AS $remove$
DECLARE
    v_seen int;
    v_deleted int;
BEGIN
    DELETE FROM @sessions WHERE incarnation = ANY (p_gone);
    DELETE FROM @state WHERE incarnation = ANY (p_gone);
    -- No more events, and no more bytes of them, than go in a moment: `trim` does the rest. In one statement: found by
    -- another one, a row's place might be another row's by now.
    WITH seen AS MATERIALIZED (
        SELECT e.ctid AS place, sum(e.size) OVER (ROWS UNBOUNDED PRECEDING) <= 67108864 AS small
        FROM (
            SELECT e.ctid, octet_length(e.data) AS size FROM @events AS e
            WHERE e.incarnation = ANY (p_gone) LIMIT 5000
        ) AS e
    ), deleted AS (
        DELETE FROM @events WHERE ctid = ANY (ARRAY(SELECT s.place FROM seen AS s WHERE s.small))
    )
    SELECT count(*), count(*) FILTER (WHERE s.small) INTO v_seen, v_deleted FROM seen AS s;
    IF v_seen = 5000 OR v_seen > v_deleted THEN
        INSERT INTO @overdue (incarnation)
        SELECT g.incarnation FROM unnest(p_gone) AS g (incarnation)
        WHERE EXISTS (SELECT FROM @events AS e WHERE e.incarnation = g.incarnation)
        ON CONFLICT DO NOTHING;
    END IF;
END
$remove$"""

_EXPIRE: Final = """
CREATE FUNCTION @expire (
    p_now bigint, p_limit int, p_scanned int,
    OUT scanned int, OUT ids text[], OUT incarnations bigint[], OUT owners bytea[]
) LANGUAGE plpgsql AS $expire$
DECLARE
    v_seen bigint[];
    v_dues bigint[];
BEGIN
    PERFORM @set_up();
    -- What is locked is being written to, or another instance is at it.
    SELECT count(*), array_agg(f.incarnation), array_agg(f.expires),
        (array_agg(f.id) FILTER (WHERE f.expires <= p_now))[:p_limit],
        (array_agg(f.incarnation) FILTER (WHERE f.expires <= p_now))[:p_limit],
        (array_agg(f.owner) FILTER (WHERE f.expires <= p_now))[:p_limit]
    INTO scanned, v_seen, v_dues, ids, incarnations, owners
    FROM (
        SELECT s.incarnation, s.id, s.owner, LEAST(s.active_us + s.ttl_us, s.deadline_us) AS expires
        FROM @sessions AS s WHERE s.due_us <= p_now
        ORDER BY s.due_us LIMIT p_scanned
        FOR UPDATE SKIP LOCKED
    ) AS f;
    UPDATE @sessions AS s SET due_us = u.due
    FROM unnest(v_seen, v_dues) AS u (incarnation, due)
    WHERE s.incarnation = u.incarnation AND u.due > p_now;
    IF cardinality(incarnations) > 0 THEN
        PERFORM @remove(incarnations);
    END IF;
END
$expire$"""

_RETAIN: Final = """
CREATE FUNCTION @retain (
    p_incarnations bigint[], p_start bigint, p_before bigint, p_bytes bigint, p_sessions int, p_rows bigint,
    p_min_time bigint, p_max_bytes bigint,
    OUT o_next bigint, OUT o_before bigint, OUT o_bytes bigint
) LANGUAGE plpgsql AS $retain$
DECLARE
    v_page bigint[];
    v_rows bigint := p_rows;
    v_session record;
    v_event record;
    v_kept bigint;
    v_before bigint;
    v_bytes bigint;
    v_raised bigint[] := '{}';
    v_firsts bigint[] := '{}';
BEGIN
    PERFORM @set_up();
    IF p_incarnations IS NULL THEN
        v_page := ARRAY(
            SELECT s.incarnation FROM @sessions AS s WHERE s.incarnation >= p_start
            ORDER BY s.incarnation LIMIT p_sessions + 1
        );
    ELSE
        v_page := ARRAY(
            SELECT i.incarnation FROM unnest(p_incarnations) AS i (incarnation) WHERE i.incarnation >= p_start
            ORDER BY i.incarnation LIMIT p_sessions + 1
        );
    END IF;
    o_next := v_page[p_sessions + 1];
    -- Events that come meanwhile can only move a bound up: it is found without a lock.
    FOR v_session IN
        SELECT s.incarnation, s.first_seq, s.last_seq FROM @sessions AS s
        WHERE s.incarnation = ANY (v_page[:p_sessions]) ORDER BY s.incarnation
    LOOP
        IF v_rows <= 0 THEN
            o_next := v_session.incarnation;
            EXIT;
        END IF;
        v_kept := v_session.first_seq;
        v_before := v_session.last_seq + 1;
        v_bytes := 0;
        IF v_session.incarnation = p_start AND p_before IS NOT NULL THEN
            v_before := p_before;
            v_bytes := p_bytes;
        END IF;
        -- By age: from the oldest up to the first that may stay.
        IF p_min_time IS NOT NULL AND v_kept <= v_session.last_seq THEN
            SELECT e.seq INTO v_kept FROM @events AS e
            WHERE e.incarnation = v_session.incarnation AND e.seq >= v_session.first_seq
                AND e.seq < v_session.first_seq + v_rows AND e.time_us >= p_min_time
            ORDER BY e.seq LIMIT 1;
            v_kept := coalesce(v_kept, LEAST(v_session.first_seq + v_rows, v_session.last_seq + 1));
            v_rows := v_rows - (v_kept - v_session.first_seq);
        END IF;
        -- By bytes: from the newest down to the first that may not stay.
        IF p_max_bytes IS NOT NULL THEN
            FOR v_event IN
                SELECT e.seq, octet_length(e.data) AS size FROM @events AS e
                WHERE e.incarnation = v_session.incarnation AND e.seq >= v_kept AND e.seq < v_before
                ORDER BY e.seq DESC LIMIT v_rows
            LOOP
                v_rows := v_rows - 1;
                v_bytes := v_bytes + v_event.size;
                IF v_bytes > p_max_bytes THEN
                    v_kept := v_before;
                    EXIT;
                END IF;
                v_before := v_event.seq;
            END LOOP;
        END IF;
        IF v_kept > v_session.first_seq THEN
            v_raised := v_raised || v_session.incarnation;
            v_firsts := v_firsts || v_kept;
        END IF;
        IF v_rows <= 0 AND v_kept < v_before THEN
            -- More of this one: what is too old is gone already, of the rest so much has been counted.
            o_next := v_session.incarnation;
            o_before := NULLIF(v_before, v_session.last_seq + 1);
            o_bytes := v_bytes;
            EXIT;
        END IF;
    END LOOP;
    IF cardinality(v_raised) > 0 THEN
        PERFORM 1 FROM @sessions AS s WHERE s.incarnation = ANY (v_raised) ORDER BY s.incarnation FOR UPDATE;
        UPDATE @sessions AS s SET first_seq = GREATEST(s.first_seq, u.kept)
        FROM unnest(v_raised, v_firsts) AS u (incarnation, kept) WHERE s.incarnation = u.incarnation;
        INSERT INTO @overdue (incarnation) SELECT unnest(v_raised) ON CONFLICT DO NOTHING;
    END IF;
END
$retain$"""

_TRIM: Final = """
CREATE FUNCTION @trim (p_incarnations bigint[], p_limit int, p_sessions int, OUT deleted int, OUT taken int)
LANGUAGE plpgsql AS $trim$
DECLARE
    v_targets bigint[];
    v_alive bigint[];
    v_first bigint[];
BEGIN
    PERFORM @set_up();
    SELECT array_agg(f.incarnation), count(*) INTO v_targets, taken
    FROM (
        SELECT o.incarnation FROM @overdue AS o
        WHERE p_incarnations IS NULL OR o.incarnation = ANY (p_incarnations)
        ORDER BY o.incarnation LIMIT p_sessions
        FOR UPDATE SKIP LOCKED
    ) AS f;
    deleted := 0;
    IF taken = 0 THEN
        RETURN;
    END IF;
    -- With the sessions locked, nobody can put them on the list again before this is done.
    SELECT array_agg(f.incarnation), array_agg(f.first_seq) INTO v_alive, v_first
    FROM (
        SELECT s.incarnation, s.first_seq FROM @sessions AS s WHERE s.incarnation = ANY (v_targets)
        ORDER BY s.incarnation FOR UPDATE
    ) AS f;
    DELETE FROM @events WHERE ctid = ANY (ARRAY(
        SELECT e.ctid
        FROM unnest(v_targets) AS t (incarnation)
        LEFT JOIN unnest(v_alive, v_first) AS a (incarnation, first_seq) ON a.incarnation = t.incarnation
        CROSS JOIN LATERAL (
            SELECT e.ctid FROM @events AS e
            WHERE e.incarnation = t.incarnation AND e.seq < coalesce(a.first_seq, 9223372036854775807)
            ORDER BY e.seq LIMIT p_limit
        ) AS e
        LIMIT p_limit
    ));
    GET DIAGNOSTICS deleted = ROW_COUNT;
    IF deleted < p_limit THEN
        DELETE FROM @overdue WHERE incarnation = ANY (v_targets);
    END IF;
END
$trim$"""

UPKEEP_FUNCTIONS: Final = (_REMOVE, _EXPIRE, _RETAIN, _TRIM)
