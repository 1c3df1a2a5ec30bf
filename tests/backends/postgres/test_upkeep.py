"""Expiry and trimming on PostgreSQL: in bounded transactions, whatever there is of one session."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast.backends.base import TrimPolicy
from holdfast.backends.memory import MemoryBackend
from holdfast.backends.postgres import PostgresBackend, upkeep
from holdfast.errors import Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head
from tests.backends.postgres.support import sql
from tests.servers.postgres import shared_url

SECOND = 1_000_000

pytestmark = pytest.mark.anyio


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


async def too_long(connection: Any, so: bool) -> None:
    """Have the server give a statement up, as if what follows took longer than a statement may."""
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 20")
        await connection.execute(f"SELECT pg_sleep({int(so)})")


async def test_expiry_that_takes_too_long_goes_on_with_less(
    backend: PostgresBackend, direct: Direct, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: sessions that are too much for one statement together go in several."""
    expire, asked = upkeep.expire_some, list[int]()

    async def slow(*args: Any, limit: int, **options: Any) -> Any:
        asked.append(limit)
        await too_long(args[0], limit > 3)
        return await expire(*args, limit=limit, **options)

    monkeypatch.setattr(upkeep, "expire_some", slow)
    monkeypatch.setattr(backend._expired_page, "now", 8)
    heads = [await direct.create(f"s{number}", ttl_us=SECOND) for number in range(7)]
    await clock.advance(2)
    gone = await backend.expire(clock.now_us(), 100)
    assert sorted(each.id for each in gone) == [head.id for head in heads]
    assert asked[:4] == [8, 4, 2, 3]


async def test_expiry_that_fails_tells_what_it_has_removed(
    backend: PostgresBackend, direct: Direct, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C38: the ids of what an earlier transaction removed reach the caller."""
    monkeypatch.setattr(backend._expired_page, "now", 2)
    run, pages = backend._run, 0

    async def fail_at_times(function: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise Unavailable("gone")
        return await run(function)

    for number in range(10):
        await direct.create(f"s{number}", ttl_us=SECOND)
    await clock.advance(2)
    monkeypatch.setattr(backend, "_run", fail_at_times)
    gone = await backend.expire(clock.now_us(), 100)
    assert len(gone) == 2
    gone += await backend.expire(clock.now_us(), 100)
    assert sorted(each.id for each in gone) == [f"s{number}" for number in range(10)]
    pages = 1
    with pytest.raises(Unavailable):
        await backend.expire(clock.now_us(), 100)


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_large_events_are_removed_by_and_by(
    backend: PostgresBackend, direct: Direct, clock: ManualClock, schema: str, how: str
) -> None:
    """C41, P11: a session's end takes a moment, however much it holds; the rest of it is trimmed."""
    head = await direct.create("s", ttl_us=SECOND)
    await sql(
        shared_url(),
        f"INSERT INTO \"{schema}\".events SELECT {head.incarnation}, n, '', 'message', '\"x\"', NULL, n"
        f' FROM generate_series(1, 20) AS n; UPDATE "{schema}".sessions SET last_seq = 20;'
        # 20 MiB each: repeated bytes are compressed, but count in full.
        f" UPDATE \"{schema}\".events SET data = convert_to(repeat('x', 20 * 1024 * 1024), 'UTF8')",
        fetch=False,
    )
    if how == "deleted":
        await direct.one(blind(head, delete=True))
    else:
        await clock.advance(2)
        assert len(await backend.expire(clock.now_us(), 10)) == 1
    count = f'SELECT count(*) FROM "{schema}".events'
    assert (await sql(shared_url(), count))[0][0] == 20 - 3
    assert await backend.trim(None, TrimPolicy(), 100) == 20 - 3
    assert (await sql(shared_url(), count))[0][0] == 0


# --- trimming and retention ------------------------------------------------------


async def test_trimming_that_takes_too_long_goes_on_with_less(
    backend: PostgresBackend, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    trim, asked = upkeep.trim_some, list[int]()

    async def slow(*args: Any) -> Any:
        asked.append(args[-1])
        await too_long(args[0], args[-1] > 3)
        return await trim(*args)

    monkeypatch.setattr(upkeep, "trim_some", slow)
    monkeypatch.setattr(backend._trimmed_page, "now", 8)
    head = await direct.append(await direct.create("s"), *"x" * 12)
    await direct.one(blind(head, floor_seq=11))
    assert await backend.trim(None, TrimPolicy(), 100) == 10
    assert asked[:4] == [8, 4, 2, 3]
    assert len(await direct.events(head)) == 2


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
        monkeypatch.setattr(backend._retained_page, "now", 5)
        await backend.trim(which, TrimPolicy(max_bytes=kept * size), 1_000)
        assert len(pages) > 1
        assert pages[-1] is None
        assert [len(await direct.events(head)) for head in heads] == [kept] * 6 + [0, kept]


async def test_retention_that_takes_too_long_goes_on_with_less(
    backend: PostgresBackend, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: a page past ``statement_timeout`` is halved until it fits; the next may be a little larger."""
    retain, asked = upkeep.retain_some, list[int]()

    async def slow(*args: Any) -> Any:
        *_, max_events = args
        asked.append(max_events)
        await too_long(args[0], max_events >= 50_000)
        return await retain(*args)

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

    async def hurried(connection: Any, *args: Any) -> Any:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 30")
            pages.append(await retain(connection, *args))
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


@pytest.mark.parametrize("seed", range(4))
async def test_retention_keeps_what_the_reference_keeps(
    backend: PostgresBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """P9: whatever the policy and the size of a page, a session's events are those that the memory backend keeps."""
    chance = random.Random(seed)
    monkeypatch.setattr(upkeep, "_SCANNED_SESSIONS", 3)
    reference = MemoryBackend()
    await reference.open()
    lanes = Direct(backend, clock), Direct(reference, clock)
    heads = [new_head(f"s{number}", clock.now_us()) for number in range(8)]
    for lane in lanes:
        await lane.commit(*map(creation, heads))
    for turn in range(12):
        for head in chance.sample(heads, 4):
            times = sorted(turn * 100 + chance.randrange(100) for _ in range(chance.randrange(9)))
            events = [new_event("x" * chance.randrange(9), time_us=time_us) for time_us in times]
            for lane in lanes:
                await lane.one(blind(head, events=events))
        min_time_us, max_bytes = max(0, turn * 100 - chance.randrange(300)), chance.randrange(120)
        policy = TrimPolicy(chance.choice([None, min_time_us]), chance.choice([None, max_bytes]))
        ids = chance.choice([None, [(head.id, head.incarnation) for head in chance.sample(heads, 5)]])
        backend._retained_page.now = chance.choice([1, 2, 5, 100])
        for lane in lanes:
            await lane.backend.trim(ids, policy, 10_000)
        for head in heads:
            found, wanted = [await lane.page(head) for lane in lanes]
            assert found == wanted, (policy, ids)
    await reference.close()
