"""Flushes of single appends on PostgreSQL, which have a statement of their own: reference semantics, waits, plans."""

from __future__ import annotations

import random
from typing import Any

import anyio
import asyncpg
import pytest

from holdfast.backends.base import EventQuery, Head, LoadRequest, Marker, NewEvent, SessionWrite, Status, TrimPolicy
from holdfast.backends.memory import MemoryBackend
from holdfast.backends.postgres import PostgresBackend
from holdfast.backends.postgres.appends import append_columns
from holdfast.backends.postgres.commit import Committer
from holdfast.backends.postgres.names import Names
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head, texts
from tests.backends.postgres.support import batch_of, opened, sql
from tests.servers.postgres import shared_url

SECOND = 1_000_000
MARKER = Marker("w", 0, 1)

pytestmark = pytest.mark.anyio


def append(head: Head, text: str = "x", **fields: Any) -> SessionWrite:
    return blind(head, **({"events": [new_event(text)]} | fields))


# --- which flushes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"events": []},
        {"events": [new_event(), new_event()]},
        {"units": 0},
        {"units": 2},
        {"fenced": True},
        {"sets": {"k": (b"1", 1)}},
        {"removes": ["k"]},
        {"cleared": True},
        {"metadata": b"{}"},
        {"floor_seq": 1},
        {"close": True},
        {"delete": True},
        {"create": new_head("s", 0)},
        {"id": "one two"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_anything_else_goes_the_general_way(other: dict[str, Any]) -> None:
    head = new_head("s", 0)
    assert append_columns(batch_of(append(head), append(head), marker=MARKER)) is not None
    assert append_columns(batch_of(append(head), append(head, **other), marker=MARKER)) is None


# --- the same as the reference --------------------------------------------------------


async def test_random_appends_have_the_references_outcomes(
    backend: PostgresBackend, clock: ManualClock, schema: str
) -> None:
    """Closed, expired, missing and foreign rows among them; rare columns; caps that change."""
    rng = random.Random(11)
    memory = MemoryBackend()
    lanes = [Direct(memory, clock, "w"), Direct(backend, clock, "w")]
    heads = [
        new_head(f"s{number}", clock.now_us(), ttl_us=rng.choice([None, None, 40 * SECOND]), **deadline)
        for number, deadline in enumerate([{}, {}, {}, {"deadline_us": clock.now_us() + 60 * SECOND}] * 5)
    ]
    found = set[Status]()
    for lane in lanes:
        await lane.commit(*map(creation, heads))
    for turn in range(100):
        if turn % 25 == 24:
            closed = rng.choice(heads)
            for lane in lanes:
                await lane.commit(blind(closed, close=True, accepted_us=clock.now_us()))
        usual = rng.random() < 0.5
        writes = [_random_append(rng, clock, head, usual=usual) for head in rng.sample(heads, rng.randrange(1, 12))]
        assert append_columns(batch_of(*writes, marker=MARKER)) is not None
        max_events = rng.choice([None, 3, 5])
        expected, outcomes = [await lane.commit(*writes, max_events=max_events) for lane in lanes]
        assert outcomes == expected, (turn, writes)
        assert await backend.resolve(lanes[1].last_marker) == expected
        found |= {outcome.status for outcome in outcomes}
        await clock.advance(1)
    assert found == {Status.COMMITTED, Status.MISSING, Status.CLOSED}
    requests = [LoadRequest(head.id) for head in heads]
    assert await backend.load(requests) == await memory.load(requests)
    pages = list[Any]()
    for head in heads:
        pages.append(await backend.read_events(EventQuery(head.id, head.incarnation)))
        assert pages[-1] == await memory.read_events(EventQuery(head.id, head.incarnation))
    await backend.trim(None, TrimPolicy(), 10_000)
    stored = await sql(shared_url(), f'SELECT count(*) FROM "{schema}".events')
    assert stored[0][0] == sum(len(page.events) for page in pages)


def _random_append(rng: random.Random, clock: ManualClock, head: Head, *, usual: bool) -> SessionWrite:
    now_us = clock.now_us()
    event = new_event(str(rng.random()) * rng.randrange(3), time_us=now_us)
    fields: dict[str, Any] = {"accepted_us": now_us, "active_us": now_us}
    if not usual:
        event = NewEvent(
            rng.choice(["", "a\x00b", "ü"]), rng.choice(["message", "é"]), b"", rng.choice([None, 7]), now_us - 5
        )
        fields["active_us"] = now_us + rng.randrange(-2, 3) * SECOND
    wrong = {"incarnation": head.incarnation + 1_000_000}, {"id": "unknown"}, {"accepted_us": now_us + 50 * SECOND}
    if rng.random() < 0.2:
        fields |= rng.choice(wrong)
    return blind(head, events=[event], **fields)


# --- behind a lock --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected", "kept"),
    [
        ("UPDATE {sessions} SET closed = true WHERE id = 's'", Status.CLOSED, ["other"]),
        ("DELETE FROM {sessions} WHERE id = 's'", Status.MISSING, ["other"]),
        (
            "UPDATE {sessions} SET last_seq = 7, first_seq = 8, version = 9 WHERE id = 's'",
            Status.COMMITTED,
            ["late", "other"],
        ),
    ],
    ids=["closed", "deleted", "advanced"],
)
async def test_append_sees_what_was_committed_while_it_waited(
    direct: Direct, schema: str, change: str, expected: Status, kept: list[str]
) -> None:
    """The row as its lock's holder left it is what counts; the flush's other writes are not harmed."""
    head, other = await direct.create("s"), await direct.create("t")
    statement = change.format(sessions=f'"{schema}".sessions')
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: sql(shared_url(), f"DO $$ BEGIN {statement}; PERFORM pg_sleep(0.8); END $$", fetch=False)
        )
        await anyio.sleep(0.3)
        outcomes = await direct.commit(append(other, "other"), append(head, "late"))
    assert [outcome.status for outcome in outcomes] == [Status.COMMITTED, expected]
    assert await direct.backend.resolve(direct.last_marker) == outcomes
    found = [
        event
        for each in (head, other)
        if (page := await direct.backend.read_events(EventQuery(each.id, each.incarnation))) is not None
        for event in page.events
    ]
    assert texts(found) == kept
    if expected is Status.COMMITTED:
        assert (outcomes[1].base_version, outcomes[1].base_seq, outcomes[1].base_first_seq) == (9, 7, 8)
        assert found[0].seq == 8


# --- plans ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, 15])
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("sessions", [3, 3_000])
async def test_rows_are_looked_up_in_the_order_of_the_locks(
    schema: str, clock: ManualClock, version: int | None, sessions: int
) -> None:
    """P6: by a nested loop, driven by the sorted writes, whatever the planner knows of the tables."""
    url = shared_url(version)
    async with opened(url, schema) as make:
        direct = Direct(await make(), clock)
        heads = [new_head(f"s{number:04}", clock.now_us()) for number in range(sessions)]
        for start in range(0, sessions, 500):
            await direct.commit(*(creation(head, sets={"k": (b"1", 1)}) for head in heads[start : start + 500]))
        await sql(url, f'ANALYZE "{schema}".sessions, "{schema}".state', fetch=False)
    appends = [append(head) for head in reversed(heads[:500])]
    general = [append(head, sets={"k": (b"2", 1)}, removes=["r"]) for head in reversed(heads[:500])]
    general.append(creation(new_head("new", clock.now_us())))
    plans = [*await _plans(url, schema, 1, appends), *await _plans(url, schema, 2, general)]
    (moved,) = [plan for plan in plans if "CTE moved" in plan]
    assert moved.index("Sort Key: u.incarnation") < moved.index("Index Scan using sessions_pkey on sessions")
    assert len(plans) > 10
    for plan in plans:
        for unbounded in ("Hash Join", "Merge Join", "Seq Scan"):
            assert unbounded not in plan


async def _plans(url: str, schema: str, flush: int, writes: list[SessionWrite]) -> list[str]:
    """Of all statements within the function that commits the writes, as the server has carried them out."""
    batch = batch_of(*writes, marker=MARKER._replace(flush=flush))
    logged = list[str]()
    connection = await asyncpg.connect(url, server_settings={"enable_seqscan": "off", "jit": "off"})
    try:
        connection.add_log_listener(lambda _, message: logged.append(message.message))
        await connection.execute("LOAD 'auto_explain'")
        for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = warning"):
            await connection.execute(f"SET auto_explain.{setting}")
        outcomes = await Committer(Names(schema, "")).commit(connection, batch)
        assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
        await connection.execute("SELECT 1")
    finally:
        await connection.close()
    return [plan for plan in logged if schema in plan]
