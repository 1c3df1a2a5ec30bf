"""The registry: who is let go when, who never is, and loads that come back too late."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import ActorConfig, Config, JanitorConfig
from holdfast.errors import Overloaded
from holdfast.model import LATEST, Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

LATER = Durability.MEMORY
PATIENCE_S = 10


def open_store(backend: FaultyBackend, clock: ManualClock, **actors: Any) -> Supervisor:
    config = Config(ttl_s=None, actors=ActorConfig(**actors), janitor=JanitorConfig(jitter=0))
    return Supervisor(backend, config, clock=clock)


def hot(store: Supervisor) -> set[str]:
    return set(store._engine.registry.hot)


async def test_idle_actors_are_let_go(backend: FaultyBackend, clock: ManualClock) -> None:
    """A whole interval without use, as the passivator sees it."""
    async with open_store(backend, clock, idle_s=10) as store:
        used, idle = await store.create("used"), await store.create("idle")
        await idle.set("k", 1)
        await clock.advance(10)
        assert hot(store) == {"used", "idle"}
        await used.append("x")
        await clock.advance(10)
        assert hot(store) == {"used"}
        await clock.advance(10)
        assert hot(store) == set()
        statistics = store.statistics()
        assert (statistics.registry.passivated, statistics.registry.hot_bytes) == (2, 0)
        assert statistics.workers["passivator"].done == 2
        assert await idle.get("k") == 1


async def test_too_many_are_let_go_with_a_second_chance(backend: FaultyBackend, clock: ManualClock) -> None:
    """The coldest first, but not if it was used since the last look."""
    async with open_store(backend, clock, max_hot_sessions=3) as store:
        for name in "abc":
            await store.create(name)
        await store.create("d")
        assert hot(store) == {"b", "c", "d"}
        await (await store.require("b")).get("k")
        await store.create("e")
        assert hot(store) == {"b", "d", "e"}
        assert await store.get("a") is not None
        assert len(hot(store)) == 3


async def test_too_many_bytes_are_let_go(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_bytes=1_000) as store:
        sessions = [await store.create(f"s{number}") for number in range(3)]
        for session in sessions[:2]:
            await session.set("k", "x" * 397)  # 400 bytes with its key and quotes
        assert store.statistics().registry.hot_bytes == 800
        await sessions[2].set("k", "x" * 397)
        assert store.statistics().registry.hot_bytes == 1_200
        await store.create("more")
        assert hot(store) == {"s1", "s2", "more"}
        assert store.statistics().registry.hot_bytes == 800
        assert await sessions[0].get("k") == "x" * 397
        assert store.statistics().registry.hot_bytes <= 1_200


async def test_bytes_follow_the_state(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        await session.set_many({"a": "xx", "b": "xx"})  # 1 + 4 each
        await session.set("a", "xxxx")
        assert store.statistics().registry.hot_bytes == 12
        await session.remove("b")
        assert store.statistics().registry.hot_bytes == 7
        await session.clear()
        assert store.statistics().registry.hot_bytes == 0


async def test_who_is_in_use_is_never_let_go(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        sessions = {name: await store.create(name) for name in ("busy", "subscribed", "idle")}
        sessions["touched"] = await store.create("touched", ttl_s=100)
        registry = store._engine.registry
        hold = backend.inject(FaultKind.HELD)
        async with sessions["subscribed"].subscribe():
            await sessions["busy"].append("x", durability=LATER)
            await hold.struck()
            clock._elapsed_us += 1_000_000  # without waking the keeper, which would store the touch
            await sessions["touched"].get("k")
            assert registry.passivate_idle() == 0  # all were used
            assert registry.passivate_idle() == 1
            assert hot(store) == {"busy", "subscribed", "touched"}
            hold.release()
            await clock.advance(2)
        await clock.settle()
        registry.passivate_idle()  # that its touch was stored counts as use
        registry.passivate_idle()
        assert hot(store) == set()
        assert [event.data for event in await sessions["busy"].events()] == ["x"]


async def test_room_is_made_around_who_is_in_use(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_sessions=2) as store:
        for name in "abc":
            await store.create(name)
        a = await store.require("a")
        await store.require("b")
        assert hot(store) == {"a", "b"}
        async with a.subscribe():
            for name in ("c", "b", "c", "b"):
                await store.require(name)
                assert hot(store) == {"a", name}


async def test_activity_is_stored_before_an_actor_is_let_go(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_sessions=1) as store:
        session = await store.create("a", ttl_s=10)
        await clock.advance(7)
        await session.get("k")
        with anyio.fail_after(PATIENCE_S):
            await store.create("b")
        assert hot(store) == {"b"}
        await clock.advance(9.9)
        assert [info.id for info in (await store.list()).sessions] == ["a", "b"]
        assert await store.get("a") is not None


async def test_overloaded_when_all_stay_in_use(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=0.02) as store:
        await store.create("passive")
        session = await store.create("s")
        async with session.subscribe():
            for call in (lambda: store.create("new"), lambda: store.get("passive")):
                with pytest.raises(Overloaded) as caught:
                    await call()
                assert (caught.value.what, caught.value.limit) == ("max_hot_sessions", 1)
            assert hot(store) == {"s"}
        assert await store.get("passive") is not None
        assert await store.get("new") is None


# Loads that come back late. Two instances on one store: so each `get` asks the store.


@pytest.fixture
async def store(shared: MemoryData, clock: ManualClock) -> AsyncIterator[Supervisor]:
    async with Supervisor(FaultyBackend(MemoryBackend(shared)), Config(ttl_s=None), clock=clock) as store:
        yield store


def faults(store: Supervisor) -> FaultyBackend:
    backend = store._backend
    assert isinstance(backend, FaultyBackend)
    return backend


async def make_inexact(session: Session, shared: MemoryData, clock: ManualClock) -> None:
    """Another instance writes in between, so that the next read loads the whole state."""
    async with Supervisor(MemoryBackend(shared), Config(ttl_s=None), clock=clock) as other:
        await (await other.require(session.id)).set("k", "other")
    await session.append("x")


async def load_while(store: Supervisor, change: Any, clock: ManualClock) -> Session | None:
    """What a `get` answers whose load has read the store before ``change``, and returns after it."""
    found = list[Session | None]()

    async def get() -> None:
        found.append(await store.get("s"))

    hold = faults(store).inject(FaultKind.HELD_DONE, "load")
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await hold.struck()
            await clock.settle()
            await change()
            assert found == []
            hold.release()
    return found[0]


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_late_load_does_not_resurrect(
    store: Supervisor, shared: MemoryData, clock: ManualClock, how: str
) -> None:
    session = await store.create("s", ttl_s=1_000)
    await make_inexact(session, shared, clock)

    async def expire() -> None:
        clock._elapsed_us += 1_000_000_000
        assert [gone.id for gone in await store.expire()] == ["s"]

    assert await load_while(store, session.delete if how == "deleted" else expire, clock) is None
    assert hot(store) == set()
    assert await store.get("s") is None
    await store.create("s")


async def test_a_late_state_load_does_not_resurrect(store: Supervisor, shared: MemoryData, clock: ManualClock) -> None:
    """As before, with the snapshot of the whole state, from which an actor could be made."""
    session = await store.create("s")
    await make_inexact(session, shared, clock)
    registry = store._engine.registry
    found = list[Any]()

    async def find() -> None:
        found.append(await registry.find("s"))

    hold = faults(store).inject(FaultKind.HELD_DONE, "load")
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(find)
            await hold.struck()
            assert await session.delete()
            hold.release()
    assert found == [None]
    assert hot(store) == set()
    assert registry._loads == {}


async def test_a_late_load_does_not_end_a_session_created_meanwhile(store: Supervisor, clock: ManualClock) -> None:
    created = list[Session]()

    async def create() -> None:
        created.append(await store.create("s"))

    found = await load_while(store, create, clock)
    assert found is not None
    assert found.incarnation == created[0].incarnation
    assert not store._engine.registry.hot["s"].ended
    await created[0].append("x")
    assert [event.data for event in await found.events()] == ["x"]


async def test_a_late_load_knows_the_lives_apart(store: Supervisor, shared: MemoryData, clock: ManualClock) -> None:
    """It has read the old life of an id that was deleted and created again meanwhile."""
    old = await store.create("s")
    await make_inexact(old, shared, clock)
    created = list[Session]()

    async def replace() -> None:
        await old.delete()
        created.append(await store.create("s"))
        await created[0].set("k", "new")

    found = await load_while(store, replace, clock)
    assert found is not None
    assert found.incarnation == created[0].incarnation
    assert await found.state() == {"k": "new"}
    assert await found.events() == []


async def test_loads_leave_nothing_behind(store: Supervisor, clock: ManualClock) -> None:
    """Done, failed and cancelled ones."""
    await store.create("s")
    await store.get("s")
    await store.get("unknown")
    hold = faults(store).inject(FaultKind.HELD, "load")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.get, "s")
        await hold.struck()
        tasks.cancel_scope.cancel()
    hold.release()
    assert store._engine.registry._loads == {}


# What recent events take


async def test_recent_events_count_as_hot_bytes(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, ring_events=2) as store:
        session = await store.create("s")

        def ring_bytes() -> int:
            registry = store.statistics().registry
            assert registry.hot_bytes == registry.ring_bytes
            return registry.ring_bytes

        await session.append("x" * 998)
        assert ring_bytes() == 0  # nobody listens
        async with session.subscribe():
            await session.append("x" * 998)
            one = ring_bytes()
            assert 1_000 < one < 1_500
            await session.append_many(["x" * 998] * 3)
            assert ring_bytes() == 2 * one
            await session.append("x" * 98)
            assert ring_bytes() == 2 * one - 900
        assert ring_bytes() == 0
        async with session.subscribe():
            await session.append("x")
            assert ring_bytes() > 0
            await session.delete()
            assert ring_bytes() == 0


async def test_a_collected_subscription_gives_its_recent_events_up(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        events = session.subscribe(after=LATEST)
        await session.append("before")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, events)
            await clock.settle()
            await session.append("x")
        assert store.statistics().registry.ring_bytes > 0
        del events
        gc.collect()
        await clock.advance(2)
        registry = store.statistics().registry
        assert (registry.ring_bytes, registry.subscribed_sessions) == (0, 0)


async def test_many_recent_events_make_others_passive(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_bytes=5_000) as store:
        session, other = await store.create("s"), await store.create("other")
        await other.set("k", "x")
        async with session.subscribe():
            await session.append("x" * 6_000)
            await store.create("third")
            assert hot(store) == {"s", "third"}
