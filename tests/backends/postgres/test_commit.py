"""Commits on PostgreSQL: several instances at once, unknown outcomes, late commits, reference semantics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from holdfast.backends.base import EventQuery, LoadRequest, Marker, SessionWrite, Status
from holdfast.backends.memory import MemoryBackend
from holdfast.backends.postgres import PostgresBackend
from holdfast.errors import OutcomeUnknown, Overloaded, Rejected, StoreError, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, fenced, new_event, new_head, texts
from tests.backends.postgres.support import MakeBackend, batch_of, sql
from tests.servers.postgres import port_of, shared_url, with_port
from tests.servers.proxy import TcpProxy

SECOND = 1_000_000

pytestmark = pytest.mark.anyio


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", port_of(shared_url())) as proxy:
        yield proxy


@pytest.fixture
async def behind(proxy: TcpProxy, make_backend: MakeBackend) -> PostgresBackend:
    """A backend behind the proxy."""
    return await make_backend(dsn=with_port(shared_url(), proxy.port), pgbouncer=False, statement_timeout_s=2.0)


# --- several instances at once -------------------------------------------------


async def test_reversed_orders_do_not_deadlock(
    direct: Direct, make_backend: MakeBackend, clock: ManualClock, schema: str
) -> None:
    """P6: batches name the same sessions in opposite orders, creations of expired ids among them."""
    heads = [new_head(f"s{number:03}", clock.now_us()) for number in range(500)]
    await direct.commit(*map(creation, heads))
    other = await make_backend()
    lanes = [direct, *[Direct(other, clock, f"other{number}") for number in range(3)]]

    async def write(lane: Direct, *, backwards: bool) -> None:
        for turn in range(10):
            writes = [blind(head, events=[new_event("x")]) for head in heads]
            if turn % 2:
                writes += [creation(new_head(f"n{turn}-{number}", clock.now_us())) for number in range(5)]
            outcomes = await lane.commit(*(reversed(writes) if backwards else writes))
            assert {outcome.status for outcome in outcomes} <= {Status.COMMITTED, Status.EXISTS}

    async with anyio.create_task_group() as tasks:
        for number, lane in enumerate(lanes):  # two of each wait while one works, and begin together
            tasks.start_soon(lambda lane=lane, backwards=bool(number % 2): write(lane, backwards=backwards))
    for head in heads[::50]:
        assert [event.seq for event in await direct.events(head)] == list(range(1, 41))
    assert await direct.exists("n9-0")


async def test_racing_creations_of_an_expired_id(direct: Direct, make_backend: MakeBackend, clock: ManualClock) -> None:
    """C2, C25: one of them wins, the others find the id taken; nobody sees a driver's error."""
    lanes = [direct, *[Direct(await make_backend(), clock, f"lane{number}") for number in range(3)]]
    for turn in range(10):
        await direct.create(f"s{turn}", ttl_us=SECOND)
        await clock.advance(2)
        found = list[Status]()

        async def create(lane: Direct, turn: int = turn, found: list[Status] = found) -> None:
            found.append((await lane.one(creation(new_head(f"s{turn}", clock.now_us())))).status)

        async with anyio.create_task_group() as tasks:
            for lane in lanes:
                tasks.start_soon(create, lane)
        assert sorted(found) == [Status.COMMITTED, Status.EXISTS, Status.EXISTS, Status.EXISTS]


async def test_removes_see_what_was_committed_while_they_waited(
    direct: Direct, make_backend: MakeBackend, clock: ManualClock, schema: str
) -> None:
    """P6: a clear that waits for the row's lock also clears keys that the lock's holder set."""
    head = await direct.create("s")
    second = Direct(await make_backend(), clock, "second")
    lanes = [(Direct(direct.backend, clock), Direct(second.backend, clock)) for _ in range(4)]
    for turn in range(20):
        async with anyio.create_task_group() as tasks:
            for number, (setter, clearer) in enumerate(lanes):
                tasks.start_soon(setter.one, blind(head, sets={f"k{turn}.{number}": (b"1", 1)}))
                tasks.start_soon(clearer.one, blind(head, cleared=True))
        versions = await direct.versions("s")
        cleared_at = (await direct.head("s")).version
        assert all(version > cleared_at - 8 for version in versions.values())
        await second.one(blind(head, cleared=True))
        assert await direct.state("s") == {}


async def test_lock_is_awaited_and_given_up(make_backend: MakeBackend, clock: ManualClock, schema: str) -> None:
    """P11: a lock that somebody else holds for too long is a passing error, and nothing was done."""
    backend = await make_backend(statement_timeout_s=0.3)
    direct = Direct(backend, clock)
    head = await direct.create("s")
    query = f'DO $$ BEGIN UPDATE "{schema}".sessions SET owner = NULL; PERFORM pg_sleep(1.5); END $$'
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: sql(shared_url(), query, fetch=False))
        await anyio.sleep(0.4)
        with pytest.raises(Unavailable, match="57014"):
            await direct.one(blind(head, events=[new_event()]))
    assert await backend.resolve(direct.last_marker) is None
    assert await direct.events(head) == []


# --- unknown outcomes ----------------------------------------------------------


def is_result(data: bytes) -> bool:
    """A reply with the one row that was asked for, and word that the transaction is over."""
    return data.endswith(b"s\x00\x00\x00\x04Z\x00\x00\x00\x05I")


@pytest.mark.parametrize("committed", [True, False])
async def test_cut_connection_leaves_the_outcome_to_be_found(
    behind: PostgresBackend, direct: Direct, proxy: TcpProxy, committed: bool
) -> None:
    """C43: cut behind the COMMIT, or before the statement arrived: the marker tells which."""
    head = await direct.create("s")
    lane = Marker("w", 0, 0)
    await behind.commit(batch_of(blind(head, events=[new_event("first")]), marker=lane._replace(flush=1)))
    if committed:
        proxy.cut_at_reply(is_result)
    else:
        proxy.cut_at_request(lambda data: b"second" in data)
    with pytest.raises(OutcomeUnknown):
        await behind.commit(batch_of(blind(head, events=[new_event("second")]), marker=lane._replace(flush=2)))
    assert proxy.cuts == 1
    outcomes = await behind.resolve(lane._replace(flush=2))
    if committed:
        assert outcomes is not None
        assert [(outcome.status, outcome.base_seq) for outcome in outcomes] == [(Status.COMMITTED, 1)]
    else:
        assert outcomes is None
    assert texts(await direct.events(head)) == ["first", "second"][: 1 + committed]


@pytest.mark.parametrize("more", [{}, {"sets": {"k": (b"1", 1)}}], ids=["append", "general"])
async def test_commit_that_arrives_after_resolve_is_void(
    backend: PostgresBackend, behind: PostgresBackend, direct: Direct, proxy: TcpProxy, more: dict[str, Any]
) -> None:
    """P5: a statement that was held up on its way does nothing when it gets through at last."""
    head = await direct.create("s")
    marker = Marker("w", 0, 1)
    await behind.commit(batch_of(blind(head, units=0), marker=marker))
    marker = marker._replace(flush=2)
    proxy.black_hole()
    async with anyio.create_task_group() as tasks:

        async def commit() -> None:
            with pytest.raises(OutcomeUnknown):
                await behind.commit(batch_of(blind(head, events=[new_event("late")], **more), marker=marker))

        tasks.start_soon(commit)
        await anyio.sleep(0.1)
        assert await backend.resolve(marker) is None
        await backend.forget_markers("w", 0)
    proxy.heal()
    await anyio.sleep(0.2)
    assert await direct.events(head) == []
    with pytest.raises(Unavailable, match="void"):
        await backend.commit(batch_of(blind(head, events=[new_event("late")], **more), marker=marker))
    assert await direct.events(head) == []
    await backend.commit(batch_of(blind(head, events=[new_event("next")]), marker=marker._replace(flush=3)))
    assert texts(await direct.events(head)) == ["next"]


async def test_resolve_waits_for_a_commit_under_way(
    backend: PostgresBackend, direct: Direct, make_backend: MakeBackend, schema: str
) -> None:
    """P5, C49: given up by its caller, the commit waits for a lock in the database: None would be a lie."""
    head = await direct.create("s")
    marker = Marker("w", 0, 1)
    found = list[Any]()
    query = f'DO $$ BEGIN UPDATE "{schema}".sessions SET owner = NULL; PERFORM pg_sleep(2.5); END $$'
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: sql(shared_url(), query, fetch=False))
        await anyio.sleep(0.3)
        with anyio.move_on_after(0.1) as scope:
            await backend.commit(batch_of(blind(head, events=[new_event("kept")]), marker=marker))
        assert scope.cancelled_caught
        found.append(await backend.resolve(marker))
    assert [[outcome.status for outcome in outcomes] for outcomes in found] == [[Status.COMMITTED]]
    assert texts(await direct.events(head)) == ["kept"]


# --- values, errors, the pool ----------------------------------------------------


async def test_value_that_cannot_be_stored_is_rejected(direct: Direct) -> None:
    """P11: for good, so the engine looks for the culprit."""
    head = await direct.create("s")
    for poison in (
        blind(head, active_us=1 << 63),
        blind(head, sets={"\ud800": (b"1", 1)}),
        blind(head, sets={random.Random(1).randbytes(4_000).hex(): (b"1", 1)}),
        creation(new_head("bad\x00id", 0)),
        creation(new_head("twice", 0, incarnation=head.incarnation)),
    ):
        with pytest.raises(Rejected):
            await direct.one(poison)
    assert await direct.head("s") == head


async def test_queue_that_moves_is_no_exhaustion(make_backend: MakeBackend) -> None:
    """P10: a burst of reads waits for its turn, for longer than ``pool_timeout_s`` in all."""
    backend = await make_backend(pool_max=1, pool_timeout_s=0.4)
    began, done = anyio.current_time(), list[Any]()

    async def read() -> None:
        done.append(await backend._run(lambda connection: connection.execute("SELECT pg_sleep(0.1)")))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(read)
    assert len(done) == 8
    assert anyio.current_time() - began > 0.4


async def test_exhausted_pool_says_so(make_backend: MakeBackend, clock: ManualClock) -> None:
    backend = await make_backend(pool_max=1, pool_timeout_s=0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend._run, lambda connection: connection.execute("SELECT pg_sleep(0.6)"))
        await anyio.sleep(0.1)
        with pytest.raises(Overloaded, match="pool_max") as caught:
            await backend.load([LoadRequest("s")])
        assert caught.value.limit == 1
    assert await backend.load([LoadRequest("s")]) == [None]


async def test_callers_who_left_take_no_place(make_backend: MakeBackend) -> None:
    """C49: reads that had not begun are not done for nobody, while others wait; what had begun goes on."""
    backend = await make_backend(pool_max=1, pool_timeout_s=5.0)
    assert backend._inner is not None
    pool, ended = backend._inner.pool, list[int]()

    async def work(connection: Any, number: int) -> None:
        await connection.execute("SELECT pg_sleep(0.5)")
        ended.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(backend._run, lambda connection, number=number: work(connection, number))
            await anyio.sleep(0.02)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    await anyio.sleep(0.05)
    assert len(pool._running) == 1
    assert await backend.load([LoadRequest("s")]) == [None]
    assert ended == [0]


async def test_black_hole_takes_a_bounded_time(behind: PostgresBackend, proxy: TcpProxy, clock: ManualClock) -> None:
    """C44: nobody answers, not even with an error: calls end, the next ones do not wait for the same connections."""
    direct = Direct(behind, clock)
    head = await direct.create("s")
    proxy.black_hole()
    with anyio.fail_after(8):
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(Unavailable):
                    await behind.load([LoadRequest("s")])

            for _ in range(3):
                tasks.start_soon(read)
            with pytest.raises(StoreError):  # which one depends on who got the connection that there was
                await direct.one(blind(head, events=[new_event()]))
    assert behind._inner is not None
    assert behind._inner.pool.connections == 0
    with anyio.fail_after(8):
        await behind.close()


async def test_durability_is_the_servers_synchronous_commit(
    backend: PostgresBackend, clock: ManualClock, schema: str
) -> None:
    """P1: each level as the transaction had it; a marker remembers it for `resolve`."""
    for flush, (level, sync) in enumerate(
        [(Durability.MEMORY, "off"), (Durability.PROCESS, "off"), (Durability.DISK, "local")], 1
    ):
        marker = Marker("w", 0, flush)
        await backend.commit(batch_of(creation(new_head(f"s{flush}", 0)), marker=marker, durability=level))
        assert [row[0] for row in await sql(shared_url(), f'SELECT sync FROM "{schema}".markers')] == [sync]


# --- the same as the reference ----------------------------------------------------


async def test_random_batches_have_the_references_outcomes(
    backend: PostgresBackend, make_backend: MakeBackend, clock: ManualClock
) -> None:
    """Every rule of `holdfast.backends.rules`, written anew in SQL: compared with the memory backend."""
    rng = random.Random(7)
    memory = MemoryBackend()
    lanes = [Direct(memory, clock, "w"), Direct(backend, clock, "w")]
    known: dict[str, Any] = {}
    for turn in range(120):
        writes = [_random_write(rng, clock, known, f"s{number}") for number in rng.sample(range(12), 6)]
        max_events = rng.choice([None, 3])
        expected, found = [await lane.commit(*writes, max_events=max_events) for lane in lanes]
        assert found == expected, (turn, writes)
        assert await backend.resolve(lanes[1].last_marker) == expected
        ids = [f"s{number}" for number in range(12)]
        rows = [await lane.load([LoadRequest(name) for name in ids]) for lane in (memory, backend)]
        assert rows[0] == rows[1], turn
        known = {row.head.id: row.head for row in rows[0] if row is not None}
        for head in known.values():
            query = EventQuery(head.id, head.incarnation)
            assert await backend.read_events(query) == await memory.read_events(query)
        if turn % 10 == 9:
            await clock.advance(1)


def _random_write(rng: random.Random, clock: ManualClock, known: dict[str, Any], name: str) -> SessionWrite:
    head = known.get(name)
    content: dict[str, Any] = {
        "sets": {f"k{rng.randrange(4)}": (b"%d" % rng.randrange(99), 1) for _ in range(rng.randrange(3))},
        "events": [new_event(str(rng.random()), time_us=clock.now_us()) for _ in range(rng.randrange(4))],
        "accepted_us": clock.now_us(),
        "active_us": clock.now_us(),
        "units": rng.randrange(1, 3),
    }
    options: dict[str, Any] = {
        "cleared": True,
        "removes": {"k0", "k1"},
        "metadata": b'{"m":%d}' % rng.randrange(9),
        "floor_seq": rng.randrange(1, 12),
        "close": True,
        "delete": True,
    }
    content |= {option: value for option, value in options.items() if rng.random() < 0.15}
    if head is None or rng.random() < 0.15:
        new = new_head(name, clock.now_us(), ttl_us=rng.choice([None, SECOND]), owner=rng.choice([None, "o\x00"]))
        return creation(new, **content)
    make = rng.choice([blind, blind, fenced])
    wrong = rng.choice([{}, {}, {"version": head.version - 1}, {"incarnation": head.incarnation + 1_000_000}])
    return make(head, **(content | wrong))
