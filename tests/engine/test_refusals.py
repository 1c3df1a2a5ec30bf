"""Refusals at the edge: sessions that are gone, blocks that have ended, a backend that gives junk."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from holdfast import Config, Supervisor
from holdfast.backends.base import LoadRequest, Snapshot
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.errors import HoldfastError, InvalidInput
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from holdfast.testing.faults import touches

pytestmark = pytest.mark.anyio

PATIENCE_S = 5


@pytest.mark.parametrize("kind", ["closed", "rejected"])
async def test_a_refusal_of_several_units_of_a_session_that_is_gone_is_answered(kind: str) -> None:
    """P11: nothing goes back into the mailbox of an actor that has ended."""
    data = MemoryData()
    inner = FaultyBackend(MemoryBackend(data))
    backend = FaultyBackend(inner)
    async with (
        Supervisor(backend, Config(drain_timeout_s=0.2)) as here,
        Supervisor(MemoryBackend(data)) as there,
    ):
        session, busy = await here.create("s"), await here.create("busy")
        other = await there.require("s")
        if kind == "closed":
            await session.close()
        answers = list[str]()

        async def write(call: Any) -> None:
            try:
                await call()
            except HoldfastError as exc:
                answers.append(type(exc).__name__)

        first = backend.inject(FaultKind.HELD, when=touches("busy"))
        second = backend.inject(FaultKind.HELD_DONE if kind == "closed" else FaultKind.HELD, when=touches("s"))
        if kind == "rejected":
            inner.inject(FaultKind.REJECTED, when=touches("s"))
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(busy.append, "x")
                await first.struck()
                tasks.start_soon(write, lambda: session.append("x"))
                tasks.start_soon(write, lambda: session.update("k", lambda _: 1))
                await anyio.wait_all_tasks_blocked()
                first.release()
                await second.struck()
                assert await other.delete()
                assert await here.get("s") is None
                second.release()
        assert len(answers) == 2


async def test_a_read_that_ends_during_the_drain_does_not_make_it_incomplete(clock: ManualClock) -> None:
    """C50: the drain's last `store_touches` posts, and nobody waits for what it has posted."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    async with Supervisor(backend, Config(drain_timeout_s=PATIENCE_S), clock=clock) as store:
        one, two = await store.create("one", ttl_s=3_600), await store.create("two", ttl_s=3_600)
        write = backend.inject(FaultKind.HELD_DONE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.append, "x")
            await write.struck()
            await clock.advance(2)
            await one.get("k")
            load = backend.inject(FaultKind.HELD_DONE, "load")
            tasks.start_soon(two.get, "k")
            await load.struck()
            tasks.start_soon(store.close)
            await anyio.wait_all_tasks_blocked()
            touch = backend.inject(FaultKind.HELD_DONE, when=touches("one"))
            write.release()
            await touch.struck()
            load.release()
            await anyio.wait_all_tasks_blocked()
            touch.release()
    assert store.drain_report is not None
    assert store.drain_report.complete


async def test_a_unit_with_nothing_in_it_is_over_too() -> None:
    """P3: what is added after an empty block, or one that raised, is lost without a word."""
    async with Supervisor(MemoryBackend()) as store:
        session = await store.create("s")
        async with session.unit() as unit:
            pass
        with pytest.raises(InvalidInput):
            unit.append("late")


async def test_a_unit_whose_block_raised_is_over_too() -> None:
    async with Supervisor(MemoryBackend()) as store:
        session = await store.create("s")
        with pytest.raises(ZeroDivisionError):
            async with session.unit() as unit:
                unit.append("a")
                raise ZeroDivisionError
        with pytest.raises(InvalidInput):
            unit.append("late")


class Junk(MemoryBackend):
    junk = False

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        found = await super().load(requests)
        if self.junk:
            self.junk = False
            nothing: Any = object()
            return [nothing for _ in found]
        return found


async def test_junk_from_a_load_harms_one_session_alone(clock: ManualClock) -> None:
    """P11: a bug of the backend's ends no task of the engine's."""
    data = MemoryData()
    backend = Junk(data)
    here = Supervisor(backend, Config(drain_timeout_s=0.2), clock=clock)
    async with here, Supervisor(MemoryBackend(data), clock=clock) as there:
        session = await here.create("s")
        neighbour = await here.create("neighbour")
        await session.set("k", 1)
        await (await there.require("s")).set("k", 2)
        backend.junk = True
        with anyio.fail_after(PATIENCE_S):
            with contextlib.suppress(HoldfastError):
                await session.update("k", lambda value: value + 1)
            await neighbour.append("x")
