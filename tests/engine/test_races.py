"""Races and mixtures that once broke a promise, one test each."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from holdfast import LATEST, Config, Durability, Supervisor
from holdfast.backends.base import Batch
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.errors import Conflict, SessionClosed, SessionExists
from holdfast.testing import FaultyBackend, ManualClock
from holdfast.testing.faults import FaultKind
from tests.engine.gated import Gated

pytestmark = pytest.mark.anyio

PATIENCE_S = 10


async def test_a_key_has_the_version_of_its_own_write() -> None:
    """Not that of another instance's write that was seen while it was under way: a stale version must conflict."""
    data = MemoryData()
    gated = Gated(data)
    taken, go = anyio.Event(), anyio.Event()

    async def hold(batch: Batch) -> None:
        if any(write.sets for write in batch.writes):
            taken.set()
            await go.wait()

    async with Supervisor(gated) as one, Supervisor(MemoryBackend(data)) as two:
        session = await one.create("s")
        other = await two.require("s")
        await session.set("k", "first")
        gated.before_commit = hold
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.set, "k", "mine")
                await taken.wait()
                await other.set("k", "theirs")
                _, stale = await other.get_versioned("k")
                await session.get("k")
                go.set()
        gated.before_commit = None
        assert await session.get_versioned("k") == await other.get_versioned("k")
        with pytest.raises(Conflict):
            await session.compare_and_set("k", "lost", version=stale)


@pytest.mark.parametrize("store_level", [None, Durability.MEMORY])
async def test_what_has_an_answer_waits_for_it_whatever_the_durability(store_level: Durability | None) -> None:
    async with Supervisor(MemoryBackend(), Config(durability=store_level)) as store:
        session = await store.create()
        await session.set("k", 1)
        await session.set("k", 2)
        with pytest.raises(Conflict):
            await session.compare_and_set("k", 9, version=1, durability=Durability.MEMORY)
        for number in range(5):
            await session.append(number)
        events = await session.events()
        assert await session.delete_events_before(events[3].id, durability=Durability.MEMORY) == 3
        assert await session.close(durability=Durability.MEMORY) is True
        assert await session.close(durability=Durability.MEMORY) is False


async def test_units_after_a_close_are_refused_though_they_share_its_flush() -> None:
    backend = FaultyBackend(MemoryBackend())
    answers: list[Any] = []

    async with Supervisor(backend) as store:
        session, busy = await store.create("s"), await store.create("busy")

        async def close() -> None:
            answers.append(await session.close())

        async def append() -> None:
            with pytest.raises(SessionClosed):
                await session.append("late")
            answers.append("refused")

        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy.set, "k", 1)
            await hold.struck()
            for call in (close, close, append):
                tasks.start_soon(call)
                await anyio.wait_all_tasks_blocked()
            hold.release()
        assert sorted(map(str, answers)) == ["False", "True", "refused"]  # callers are woken in any order
        assert await session.events() == []


async def test_a_refused_unit_does_not_take_a_legal_one_with_it() -> None:
    """On a closed session an append fails and a delete works, in one flush too."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend) as store:
        session, busy = await store.create("s"), await store.create("busy")
        await session.close()
        deleted: list[bool] = []

        async def append() -> None:
            with pytest.raises(SessionClosed):
                await session.append("x")

        async def delete() -> None:
            deleted.append(await session.delete())

        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy.set, "k", 1)
            await hold.struck()
            for call in (append, delete):
                tasks.start_soon(call)
                await anyio.wait_all_tasks_blocked()
            hold.release()
        assert deleted == [True]
        assert await store.get("s") is None


async def test_an_id_whose_session_lives_by_a_read_is_not_free(clock: ManualClock) -> None:
    """The read is not stored yet, and the row looks expired."""
    async with Supervisor(MemoryBackend(), Config(ttl_s=10, background=True), clock=clock) as store:
        session = await store.create("s")
        await clock.advance(9.9)
        assert await session.get("k") is None
        clock._elapsed_us += 200_000
        with pytest.raises(SessionExists):
            await store.create("s")


async def test_a_subscription_whose_first_step_was_cancelled_goes_on() -> None:
    gated = Gated(MemoryData())
    go = anyio.Event()
    async with Supervisor(gated) as store:
        session = await store.create()
        await session.append("old")
        events = session.subscribe(after=LATEST)
        gated.after_load = go.wait
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, events)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        gated.after_load = None
        go.set()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:

                async def later() -> None:
                    await anyio.wait_all_tasks_blocked()
                    await session.append("new")

                tasks.start_soon(later)
                assert (await anext(events)).data == "new"


async def test_an_outer_cancellation_does_not_cut_the_drain_short() -> None:
    data = MemoryData()
    gated = Gated(data)

    async def slow(_batch: Batch) -> None:
        await anyio.wait_all_tasks_blocked()

    with anyio.CancelScope() as scope:
        async with Supervisor(gated) as store:
            session = await store.create("s")
            gated.before_commit = slow
            for number in range(5):
                await session.append(number, durability=Durability.MEMORY)
            scope.cancel()
            await anyio.sleep(0)
    assert store.drain_report is not None
    assert store.drain_report.complete
    assert len(data.rows["s"].events) == 5
