"""Expiry and trimming on PostgreSQL: in bounded transactions, whatever there is of one session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast.backends.base import TrimPolicy
from holdfast.backends.postgres import PostgresBackend, upkeep
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event
from tests.backends.postgres_support import MakeBackend, opened, sql
from tests.servers.postgres import new_schema, shared_url

SECOND = 1_000_000

pytestmark = pytest.mark.anyio


@pytest.fixture
def schema() -> str:
    return new_schema()


@pytest.fixture
async def make_backend(schema: str) -> AsyncIterator[MakeBackend]:
    async with opened(shared_url(), schema) as make:
        yield make


@pytest.fixture
async def backend(make_backend: MakeBackend) -> PostgresBackend:
    return await make_backend()


@pytest.fixture
def direct(backend: PostgresBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)


# --- expiry ----------------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False])
async def test_cancelled_expiry_ends_behind_its_transaction(
    backend: PostgresBackend, direct: Direct, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """C38, C49: with nothing in hand it leaves; the ids of what it has removed reach the caller."""
    monkeypatch.setattr(upkeep, "_SCANNED_SESSIONS", 2)
    heads = [await direct.create(f"s{number}", ttl_us=5 * SECOND) for number in range(10)]
    await clock.advance(4)
    if alive:
        await direct.commit(*(blind(head, units=0, active_us=clock.now_us()) for head in heads))
    await clock.advance(2)
    run, pages, gone = backend._run, 0, list[Any]()
    with anyio.CancelScope() as scope:

        async def run_and_cancel(function: Any) -> Any:
            nonlocal pages
            pages += 1
            if pages == 2:
                scope.cancel()
            return await run(function)

        monkeypatch.setattr(backend, "_run", run_and_cancel)
        gone += await backend.expire(clock.now_us(), 100)
    assert (pages, scope.cancelled_caught) == (2, alive)
    assert len(gone) == (0 if alive else 4)
    monkeypatch.setattr(backend, "_run", run)
    assert len(await backend.expire(clock.now_us(), 100)) == (0 if alive else 6)


# --- retention -------------------------------------------------------------------


async def test_retention_reads_a_bounded_number_of_events(
    backend: PostgresBackend, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: pages by events, whatever a session has of them; all sessions are reached, and the given ones."""
    pages = list[Any]()
    retain = upkeep.retain_some

    async def count(*args: Any, **options: Any) -> Any:
        pages.append(await retain(*args, **options))
        return pages[-1]

    monkeypatch.setattr(upkeep, "retain_some", count)
    heads = [await direct.create(f"s{number}") for number in range(8)]
    ids = [(head.id, head.incarnation) for head in heads]
    for count_of_events, head in zip((4, 4, 25, 4, 4, 4, 0, 4), heads, strict=True):
        if count_of_events:
            await direct.append(head, *"x" * count_of_events)
    size = len(new_event("x").raw)
    for which, kept in ((None, 2), (ids, 1)):
        pages.clear()
        monkeypatch.setattr(backend, "_retained_events", 5)
        await backend.trim(which, TrimPolicy(max_bytes=kept * size), 1_000)
        assert len(pages) > 1
        assert pages[-1] is None
        assert [len(await direct.events(head)) for head in heads] == [kept] * 6 + [0, kept]


async def test_retention_that_takes_too_long_goes_on_with_less(
    backend: PostgresBackend, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: a page past ``statement_timeout`` is halved until it fits; the next may be a little larger."""
    retain, asked = upkeep.retain_some, list[int]()

    async def slow(connection: Any, *args: Any, max_events: int, **options: Any) -> Any:
        asked.append(max_events)
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 50")
            await connection.execute(f"SELECT pg_sleep({max_events // 50_000})")
        return await retain(connection, *args, max_events=max_events, **options)

    monkeypatch.setattr(upkeep, "retain_some", slow)
    head = await direct.create("s")
    await direct.append(head, *"xxxx")
    policy = TrimPolicy(max_bytes=3)
    assert await backend.trim(None, policy, 100) == 3
    assert asked == [100_000, 50_000, 25_000]
    await backend.trim([(head.id, head.incarnation)], policy, 100)
    assert asked[3:] == [28_126]


async def test_retention_of_a_huge_session_gets_on(
    backend: PostgresBackend, direct: Direct, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: a session whose own events take far longer to read than a statement may stops nobody, and is trimmed too."""
    retain, pages = upkeep.retain_some, list[Any]()

    async def hurried(connection: Any, *args: Any, **options: Any) -> Any:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 30")
            pages.append(await retain(connection, *args, **options))
        return pages[-1]

    first, huge, last = [await direct.create(name) for name in ("first", "huge", "last")]
    for head in (first, last):
        await direct.append(head, *"x" * 10)
    await sql(
        shared_url(),
        f"INSERT INTO \"{schema}\".events SELECT {huge.incarnation}, n, '', 'message', '\"x\"', NULL, n"
        f" FROM generate_series(1, 200000) AS n; UPDATE \"{schema}\".sessions SET last_seq = 200000 WHERE id = 'huge'",
        fetch=False,
    )
    monkeypatch.setattr(upkeep, "retain_some", hurried)
    size = len(new_event("x").raw)

    async def trim(policy: TrimPolicy) -> int:
        return sum([deleted async for deleted in _passes(backend, policy)])

    assert await trim(TrimPolicy(max_bytes=150_000 * size)) == 50_000
    assert len(pages) > 1
    assert (await direct.head("huge")).first_seq == 50_001
    assert await trim(TrimPolicy(min_time_us=150_001)) == 100_000 + 20
    assert (await direct.head("huge")).first_seq == 150_001
    await direct.append(last, *"x" * 10)
    assert await trim(TrimPolicy(min_time_us=-1, max_bytes=4 * size)) == 50_000 - 4 + 6


async def _passes(backend: PostgresBackend, policy: TrimPolicy) -> AsyncIterator[int]:
    """As the trimmer goes about it: until less than all that it may delete was there."""
    limit = deleted = 20_000
    while deleted == limit:
        deleted = await backend.trim(None, policy, limit)
        yield deleted
