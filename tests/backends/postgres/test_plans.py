"""No hot statement reads a whole table: as planned by default, and as counted while everything runs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from holdfast.backends.base import EventQuery, LoadRequest, SessionFilter, TrimPolicy
from holdfast.backends.postgres import PostgresBackend, reads
from holdfast.backends.postgres.names import Names
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head
from tests.backends.postgres.support import MakeBackend, sql
from tests.servers.postgres import shared_url

SECOND = 1_000_000
TABLES = ("sessions", "state", "events", "overdue", "markers")

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[pytest.param("asyncio", id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def backend(make_backend: MakeBackend, schema: str, clock: ManualClock) -> PostgresBackend:
    """Filled: 3,000 sessions with two keys and ten events each, one owner in ten, analysed."""
    backend = await make_backend()
    direct = Direct(backend, clock, "filler")
    for start in range(0, 3_000, 500):
        await direct.commit(
            *(
                creation(
                    new_head(f"s{number}", clock.now_us(), owner=f"o{number % 10}", ttl_us=3_600 * SECOND),
                    sets={"a": (b"1", 1), "b": (b"2", 1)},
                    events=[new_event(str(n), stream=f"{n % 2}", time_us=clock.now_us()) for n in range(10)],
                )
                for number in range(start, start + 500)
            )
        )
    await sql(shared_url(), "; ".join(f'ANALYZE "{schema}".{table}' for table in TABLES), fetch=False)
    return backend


async def test_plans_of_the_reads(backend: PostgresBackend, direct_head: Any, schema: str) -> None:
    """By the server's own choice, with nothing switched off."""
    names, head = Names(schema, ""), direct_head
    page = [head.incarnation, head.id, 3, None, 5, 1_000]
    plain = reads.LIST.format(conditions="", after="$2", limit="$3")
    owned = reads.LIST.format(conditions=" AND s.owner = $2", after="$3", limit="$4")
    now = head.active_us
    for statement, values in (
        (reads.LOAD, [[head.id], [-1], [-1], [True]]),
        (reads.EVENTS, page),
        (reads.EVENTS_OF_STREAM, [*page[:3], b"1", *page[4:]]),
        (reads.LAST_EVENTS, page[:5]),
        (plain, [now, head.incarnation, 10]),
        (owned, [now, b"o1", head.incarnation, 10]),
        (reads.COUNT.format(conditions=" AND s.owner = $2"), [now, b"o1"]),
    ):
        plan = "\n".join(row[0] for row in await sql(shared_url(), "EXPLAIN " + names.sql(statement), *values))
        assert "Seq Scan" not in plan, plan
        assert "Index" in plan, plan
    assert "Seq Scan" in (await sql(shared_url(), "EXPLAIN " + names.sql(reads.COUNT.format(conditions="")), now))[1][0]


@pytest.fixture
async def direct_head(backend: PostgresBackend, clock: ManualClock) -> Any:
    return await Direct(backend, clock).head("s1500")


async def test_nothing_hot_scans_a_table(backend: PostgresBackend, clock: ManualClock, schema: str) -> None:
    """The server counts sequential scans, also those within functions."""
    before = await _scans(schema)
    direct = Direct(backend, clock)
    heads = [await direct.head(f"s{number}") for number in range(0, 3_000, 30)]
    await direct.commit(*(blind(head, sets={"c": (b"1", 1)}, events=[new_event("x")], removes={"a"}) for head in heads))
    await direct.commit(*(blind(head, events=[new_event("x")]) for head in heads), max_events=11)
    await direct.commit(blind(new_head("unknown", 0), events=[new_event("x")]))
    await direct.commit(*(blind(head, cleared=True, floor_seq=5) for head in heads))
    await direct.commit(blind(heads[0], delete=True), creation(new_head("new", clock.now_us())))
    await direct.commit(creation(new_head("new", clock.now_us())))
    await backend.resolve(direct.last_marker)
    await backend.load([LoadRequest(head.id) for head in heads])
    for query in ({}, {"stream": "1"}, {"last": True, "limit": 3}):
        await backend.read_events(EventQuery(heads[1].id, heads[1].incarnation, **query))
    await backend.list_sessions(SessionFilter(clock.now_us(), owner="o3"), heads[2].incarnation, 20)
    await backend.list_sessions(SessionFilter(clock.now_us()), heads[2].incarnation, 20)
    await backend.trim([(head.id, head.incarnation) for head in heads[:5]], TrimPolicy(), 100)
    await backend.trim(None, TrimPolicy(), 10_000)
    await backend.trim([(head.id, head.incarnation) for head in heads[:5]], TrimPolicy(max_bytes=9), 100)
    await direct.create("soon", ttl_us=SECOND)
    await clock.advance(5)
    assert [gone.id for gone in await backend.expire(clock.now_us(), 10)] == ["soon"]
    await backend.close()  # what its connections have counted is told at their end
    with anyio.fail_after(10):
        while (await _scans(schema))["sessions"][1] <= before["sessions"][1]:
            await anyio.sleep(0.05)
    after = await _scans(schema)
    assert {table: after[table][0] - before[table][0] for table in TABLES[:3]} == dict.fromkeys(TABLES[:3], 0)


async def test_touches_and_appends_stay_in_their_page(
    backend: PostgresBackend, clock: ManualClock, schema: str
) -> None:
    """No index has what a commit changes (HOT). At its cap a session is updated twice: the second drops an event."""
    direct = Direct(backend, clock)
    heads = [await direct.head(f"s{number}") for number in range(0, 3_000, 3)]
    for _ in range(3):
        await clock.advance(1)
        writes = [blind(head, active_us=clock.now_us(), events=[new_event("x")]) for head in heads]
        await direct.commit(*writes, max_events=5)
    await backend.close()
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'sessions'"
    with anyio.fail_after(10):
        while (await sql(shared_url(), query, schema))[0][0] < 6_000:
            await anyio.sleep(0.05)
    updated, hot = (await sql(shared_url(), query, schema))[0]
    assert (updated, hot) == (6_000, 6_000)


async def _scans(schema: str) -> dict[str, tuple[int, int]]:
    rows = await sql(
        shared_url(), "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE schemaname = $1", schema
    )
    return {name: (seq, idx or 0) for name, seq, idx in rows}
