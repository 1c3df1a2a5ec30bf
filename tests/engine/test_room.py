"""Waiting for room among the hot sessions: by events, in order, and leaving nothing behind."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from holdfast.errors import StoreClosed
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from tests.engine.test_registry import LATER, PATIENCE_S, hot, open_store

pytestmark = pytest.mark.anyio


async def test_a_caller_gets_the_place_of_a_session_that_comes_out_of_use(
    backend: FaultyBackend, clock: ManualClock
) -> None:
    """However it was in use."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        session = await store.create("s")
        async with anyio.create_task_group() as tasks:
            async with session.subscribe():
                tasks.start_soon(store.create, "after-subscription")
                await clock.settle()
            await clock.settle()
            assert hot(store) == {"after-subscription"}

            hold = backend.inject(FaultKind.HELD)
            await (await store.require("after-subscription")).append("x", durability=LATER)
            await hold.struck()
            tasks.start_soon(store.require, "s")
            await clock.settle()
            assert hot(store) == {"after-subscription"}
            hold.release()
            await clock.settle()
            assert hot(store) == {"s"}

            hold = backend.inject(FaultKind.HELD, "load")
            tasks.start_soon(store._engine.registry.refresh_head, "s")
            await hold.struck()
            tasks.start_soon(store.create, "after-load")
            await clock.settle()
            assert hot(store) == {"s"}
            hold.release()
            await clock.settle()
            assert hot(store) == {"after-load"}


async def test_the_place_of_a_session_that_is_gone_is_taken(backend: FaultyBackend, clock: ManualClock) -> None:
    """Though somebody still holds a subscription to it."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        session = await store.create("s")
        async with anyio.create_task_group() as tasks, session.subscribe():
            tasks.start_soon(store.create, "next")
            await clock.settle()
            assert hot(store) == {"s"}
            store._engine.registry.end(session.id, session.incarnation)
            await clock.settle()
            assert hot(store) == {"next"}


async def test_who_waits_for_room_is_served_in_order(backend: FaultyBackend, clock: ManualClock) -> None:
    """Also before a newcomer that finds room at once; and who gives up does not hold the others up."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        registry = store._engine.registry
        served = list[str]()

        async def make_room(name: str) -> None:
            await registry.make_room()
            served.append(name)

        session = await store.create("s")
        async with anyio.create_task_group() as tasks:
            async with session.subscribe():
                impatient = anyio.CancelScope()

                async def give_up() -> None:
                    with impatient:
                        await make_room("gives up")

                tasks.start_soon(give_up)
                await clock.settle()
                for name in ("first", "second"):
                    tasks.start_soon(make_room, name)
                    await clock.settle()
                impatient.cancel()
                await clock.settle()
                assert served == []
            await make_room("newcomer")
        assert served == ["first", "second", "newcomer"]
        assert registry.budget.emptied is None
        assert not registry._room.awaited


async def test_activity_noted_while_somebody_waits_for_room_is_stored_at_once(
    backend: FaultyBackend, clock: ManualClock
) -> None:
    """It would keep its session in use until the keeper's next tick."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        session = await store.create("s", ttl_s=1_000)
        async with anyio.create_task_group() as tasks:
            async with session.subscribe():
                tasks.start_soon(store.create, "next")
                await clock.settle()
                clock._elapsed_us += 1_000_000  # without waking the keeper
                await session.get("k")
            await clock.settle()
            assert hot(store) == {"next"}


async def test_who_waits_for_room_at_the_end_hears_of_it_at_once(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        await store.create("old")
        session = await store.create("s")
        closed = list[str]()

        async def call(name: str) -> None:
            with pytest.raises(StoreClosed):
                await (store.create("new") if name == "create" else store.require("old"))
            closed.append(name)

        async with session.subscribe():
            with anyio.fail_after(PATIENCE_S / 2):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call, "create")
                    tasks.start_soon(call, "require")
                    await clock.settle()
                    await store.close()
    assert sorted(closed) == ["create", "require"]


@pytest.mark.parametrize(("order", "most_loads"), [("abab", 6), ("aabb", 4)])
async def test_callers_for_one_session_do_not_keep_others_waiting(
    backend: FaultyBackend, clock: ManualClock, order: str, most_loads: int
) -> None:
    """Each waits for room with what it has read; the first to get it makes the session hot for all of them."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        for name in "ab":
            await store.create(name)
        session = await store.create("s")
        with anyio.fail_after(PATIENCE_S / 2):
            async with anyio.create_task_group() as tasks:
                async with session.subscribe():
                    for name in order:
                        tasks.start_soon(store.require, name)
                        await clock.settle()
                    assert hot(store) == {"s"}
        assert backend.calls["load"] <= most_loads
        assert store._engine.registry._loads == {}


async def test_what_was_read_before_the_wait_for_room_may_be_old(backend: FaultyBackend, clock: ManualClock) -> None:
    """While a caller waits, its session may become hot, change, and be let go again."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        changed, other = await store.create("changed"), await store.create("other")
        session = await store.create("s")
        found = list[object]()

        async def look() -> None:
            found.append(await changed.get("k"))

        with anyio.fail_after(PATIENCE_S / 2):
            async with anyio.create_task_group() as tasks:
                async with session.subscribe():
                    for call in (lambda: changed.set("k", "new"), lambda: other.get("k"), look):
                        tasks.start_soon(call)
                        await clock.settle()
                    assert hot(store) == {"s"}
        assert found == ["new"]
        assert await changed.get("k") == "new"


async def test_a_collected_subscription_gives_its_place_up_at_once(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=PATIENCE_S) as store:
        session = await store.create("s")
        await session.append("x")
        events = session.subscribe()
        await anext(events)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "next")
            await clock.settle()
            assert hot(store) == {"s"}
            del events
            await clock.settle()
            assert hot(store) == {"next"}


async def test_room_of_which_nobody_was_told_is_found_in_the_end(backend: FaultyBackend, clock: ManualClock) -> None:
    """A subscription that another thread's garbage collection ended."""
    async with open_store(backend, clock, max_hot_sessions=1, overload_wait_s=0.05) as store:
        session = await store.create("s")
        registry = store._engine.registry
        async with anyio.create_task_group() as tasks, session.subscribe():
            tasks.start_soon(store.create, "next")
            await clock.settle()
            subscribers = registry.hot["s"].subscribers
            assert subscribers is not None
            subscribers.clear()
            await anyio.to_thread.run_sync(registry.subscription_collected)
            assert not registry._room._freed._set, "another thread must leave the event loop alone"
            await clock.settle()
            assert hot(store) == {"s"}
            with anyio.fail_after(PATIENCE_S):
                while "s" in hot(store):
                    await anyio.sleep(0.005)
        assert hot(store) == {"next"}
