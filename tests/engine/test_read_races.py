"""Reads: what comes in between them does not get into their answers, and a store that does not answer is given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from holdfast import Config, Session, Supervisor
from holdfast.backends.base import Status
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Limits, RetentionConfig, WriterConfig
from holdfast.errors import EventGap, InvalidCursor, Unavailable
from holdfast.model import Cursor, Durability, Event
from holdfast.testing import FaultKind, FaultyBackend, InjectedCrash, ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_head
from holdfast.testing.faults import Operation
from tests.engine.gated import Gated

pytestmark = pytest.mark.anyio

PATIENCE_S = 5


async def test_a_read_overtaken_by_writes_and_a_close_is_answered() -> None:
    """The last resort of such a read is a turn of its own, which a closed session refuses; the read must not."""
    data = MemoryData()
    backend = Gated(data)
    async with Supervisor(backend) as here, Supervisor(MemoryBackend(data)) as there:
        session = await here.create("s")
        await session.set("k", 1)
        other = await there.require("s")
        loads = 0

        async def overtake() -> None:
            nonlocal loads
            loads += 1
            if loads <= 3:
                await other.set("k", 1 + loads)
                await session.append("own")
            if loads == 3:
                await session.close()

        backend.after_load = overtake
        with anyio.fail_after(PATIENCE_S):
            assert await session.get("k") == 4
            assert loads > 3
            assert await session.get("k") == 4
            assert (await session.info()).status == "closed"


async def test_a_row_at_version_minus_one_is_read() -> None:
    """A copy under way may be at any version; none of them stands for "not known"."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    clock = ManualClock()
    copier = Direct(MemoryBackend(data), clock)
    head = new_head("s", clock.now_us(), version=-3)
    async with Supervisor(backend, clock=clock) as store:
        await copier.one(creation(head, sets={"a": (b"1", 1)}))
        session = await store.require("s")
        assert await session.state() == {"a": 1}
        outcome = await copier.one(blind(await copier.head("s"), sets={"b": (b"2", 1)}))
        assert (outcome.status, outcome.base_version) == (Status.COMMITTED, -2)
        assert (await session.info()).version == -1  # the head alone: what is known of the state is old now
        loads = backend.calls["load"]
        with anyio.fail_after(PATIENCE_S):
            assert await session.state() == {"a": 1, "b": 2}
        assert backend.calls["load"] <= loads + 2


async def test_metadata_do_not_go_back() -> None:
    """An own write that is settled late leaves alone what a load has learnt meanwhile."""
    data, clock = MemoryData(), ManualClock()
    backend = FaultyBackend(MemoryBackend(data))
    seen = list[Any]()
    async with Supervisor(backend, clock=clock) as here, Supervisor(MemoryBackend(data), clock=clock) as there:
        session = await here.create("s", ttl_s=8)
        other = await there.require("s")
        hold = backend.inject(FaultKind.HELD_DONE)

        async def read() -> None:
            seen.append((await session.info()).metadata)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.set_metadata, {"by": "here, first"})
            await hold.struck()
            await other.set_metadata({"by": "there, then"})
            await clock.advance(7)
            tasks.start_soon(read)  # near the end of the session's life: it waits until its touch is stored
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            hold.release()
    assert seen == [{"by": "there, then"}]


async def test_events_have_both_ends_of_one_moment() -> None:
    """A full log that moved on between the look at its end and the read of its page was never empty."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    config = Config(retention=RetentionConfig(max_events=3))
    async with Supervisor(backend, config) as here, Supervisor(MemoryBackend(data), config) as there:
        session = await here.create("s")
        await session.append_many(range(3))
        other = await there.require("s")
        hold = backend.inject(FaultKind.HELD, "read_events")
        answers = list[list[Event]]()

        async def read() -> None:
            answers.append(await session.events())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await hold.struck()
            await other.append_many(range(3, 8))
            hold.release()
        assert [event.seq for event in answers[0]] == [6, 7, 8]


# A store that does not answer


def impatient(**fields: Any) -> Config:
    return Config(writer=WriterConfig(read_timeout_s=0.02), **fields)


@pytest.mark.parametrize("subscribed", [False, True])
async def test_a_gap_is_not_looked_into_for_ever(subscribed: bool) -> None:
    """The second read of an `EventGap`, which finds the oldest event there is."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, impatient(retention=RetentionConfig(max_events=2))) as store:
        session = await store.create()
        first = await session.append(0)
        await session.append_many(range(5))

        async def read() -> Any:
            return await (anext(session.subscribe(after=first.id)) if subscribed else session.events(after=first.id))

        hold = backend.inject(FaultKind.HELD, "read_events", skip=1)
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(Unavailable, match=r"within 0\.02 s"):
                await read()
            hold.release()
            with pytest.raises(EventGap) as gap:
                await read()
        assert gap.value.first_id == (await session.events())[0].id


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("list_sessions", lambda store: store.list()),
        ("count_sessions", lambda store: store.count()),
        ("count_sessions", lambda store: store.create()),
        ("describe", lambda store: store.describe()),
    ],
    ids=["list", "count", "create", "describe"],
)
async def test_a_store_that_does_not_answer_is_unavailable(
    operation: Operation, call: Callable[[Supervisor], Awaitable[Any]]
) -> None:
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, impatient(limits=Limits(max_sessions=5))) as store:
        hold = backend.inject(FaultKind.HELD, operation)
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(Unavailable, match=r"within 0\.02 s"):
                await call(store)
            assert hold.hits == 1
            await call(store)


async def event_page(store: Supervisor, session: Session) -> Any:
    return await session.events()


async def last_events(store: Supervisor, session: Session) -> Any:
    return await session.last_events(1)


async def next_event(store: Supervisor, session: Session) -> Any:
    return await anext(session.subscribe())


async def count(store: Supervisor, session: Session) -> Any:
    return await store.count()


READS: list[tuple[Operation, Callable[[Supervisor, Session], Awaitable[Any]]]] = [
    ("read_events", event_page),
    ("read_events", last_events),
    ("read_events", next_event),
    ("count_sessions", count),
]


@pytest.mark.parametrize(("operation", "read"), READS, ids=[read.__name__ for _, read in READS])
async def test_failed_reads_open_the_breaker(
    operation: Operation, read: Callable[[Supervisor, Session], Awaitable[Any]], clock: ManualClock
) -> None:
    """Of reads alone; it closes with the first that succeeds."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, clock=clock) as store:
        session = await store.create()
        await session.append("x")
        fault = backend.inject(FaultKind.UNAVAILABLE, operation, times=None)
        for _ in range(5):
            assert store.statistics().read_breaker == "closed"
            with pytest.raises(Unavailable):
                await read(store, session)
        assert store.statistics().read_breaker == "open"
        assert store.statistics().read_breaker_opened == 1
        calls = backend.calls[operation]
        with pytest.raises(Unavailable, match="left alone"):
            await read(store, session)
        assert backend.calls[operation] == calls
        await session.append("writes go on")
        fault.release()
        await clock.advance(1)
        await read(store, session)
        assert store.statistics().read_breaker == "closed"


@pytest.mark.parametrize(("operation", "read"), READS, ids=[read.__name__ for _, read in READS])
async def test_a_bug_of_the_backend_is_unavailable(
    operation: Operation, read: Callable[[Supervisor, Session], Awaitable[Any]]
) -> None:
    """What gets out of a read is one of our errors, with the bug as its cause; it counts as a failure."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend) as store:
        session = await store.create()
        await session.append("x")
        backend.inject(FaultKind.CRASH, operation)
        with pytest.raises(Unavailable) as raised:
            await read(store, session)
        assert isinstance(raised.value.__cause__, InjectedCrash)
        assert store._engine.read_breaker.failures == 1
        await read(store, session)
        assert store._engine.read_breaker.failures == 0


@pytest.mark.parametrize("how", ["events", "last_events", "replay", "subscribe"])
async def test_a_cursor_that_was_handed_out_is_never_ahead(how: str, clock: ManualClock) -> None:
    """Where a read goes to the store and finds what is committed before the actor has heard of it."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, Config(ttl_s=None), clock=clock) as store:
        session = await store.create("s")
        await session.append(1)
        hold = backend.inject(FaultKind.HELD_DONE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.append, 2)
            await hold.struck()
            await clock.settle()
            match how:
                case "events":
                    seen = await session.events()
                case "last_events":
                    seen = await session.last_events(5)
                case "replay":
                    seen = [event async for event in session.replay()]
                case _:
                    subscription = session.subscribe()
                    seen = [await anext(subscription), await anext(subscription)]
            assert [event.data for event in seen] == [1, 2]
            cursor = seen[-1].id
            ahead = str(Cursor.parse(cursor)._replace(seq=3))
            with anyio.fail_after(PATIENCE_S):
                assert await session.events(after=cursor) == []
                for refused in (session.events(after=ahead), session.delete_events_before(ahead)):
                    with pytest.raises(InvalidCursor):
                        await refused
                async with session.subscribe(after=cursor) as events:
                    tasks.start_soon(session.append, 3)
                    hold.release()
                    assert (await anext(events)).data == 3
        assert await session.delete_events_before(cursor) == 1


async def test_what_is_older_than_a_cursor_handed_out_early_is_dropped(clock: ManualClock) -> None:
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, Config(ttl_s=None), clock=clock) as store:
        session = await store.create("s")
        await session.append(1)
        hold = backend.inject(FaultKind.HELD_DONE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.append, 2)
            await hold.struck()
            await clock.settle()
            cursor = (await session.events())[-1].id
            dropped = list[int]()

            async def drop() -> None:
                dropped.append(await session.delete_events_before(cursor))

            tasks.start_soon(drop)
            await clock.settle()
            hold.release()
        assert dropped == [1]
        assert [event.data for event in await session.events()] == [2]


async def test_a_refusal_is_believed_only_of_a_read_that_began_after_it() -> None:
    """Not of one that was under way when the state was doubted, and comes back with what was true before.

    Found by the histories: a compare-and-set was refused for a version that another instance had replaced before.
    """
    data, clock = MemoryData(), ManualClock()
    backend = FaultyBackend(MemoryBackend(data))
    async with Supervisor(backend, clock=clock) as here, Supervisor(MemoryBackend(data), clock=clock) as there:
        session = await here.create("s")
        await session.set("a", "here")
        other = await there.require("s")
        written = backend.inject(FaultKind.HELD_DONE)
        read, late = [backend.inject(kind, "load") for kind in (FaultKind.HELD_DONE, FaultKind.HELD)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.set, "b", 1)
            await written.struck()
            tasks.start_soon(session.get, "a")  # brings the state after that write, and before the next
            await read.struck()
            await other.set("a", "there")
            _, version = await other.get_versioned("a")

            async def swap() -> None:
                await session.compare_and_set("a", "swapped", version=version)

            tasks.start_soon(swap)
            await clock.settle()
            written.release()
            await clock.settle()
            read.release()
            await late.struck()
            await session.append("a turn, while the state is doubted", durability=Durability.MEMORY)
            await clock.settle()
            late.release()
        assert await session.get("a") == "swapped"
