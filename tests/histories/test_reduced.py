"""What histories have found, reduced to one process: kept as tests of the engine."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import holdfast
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import RetentionConfig
from holdfast.errors import EventGap
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend

pytestmark = pytest.mark.anyio


async def first_after(session: holdfast.Session, event_id: str) -> Any:
    """What a new subscription with this cursor shows first; None: it says that there is a gap."""
    async with session.subscribe(after=event_id) as events:
        try:
            return (await anext(events)).data
        except EventGap:
            return None


async def test_a_cursor_of_dropped_events_is_a_gap_while_somebody_listens() -> None:
    """P7, CONFORMANCE 27. Seen as: an event given to a subscription after another process had dropped it."""
    async with holdfast.open("memory://") as store:
        session = await store.create()
        async with session.subscribe(after=holdfast.LATEST):
            events = [await session.append(number) for number in range(10)]
            assert await session.delete_events_before(events[8].id) == 8
            assert await first_after(session, events[0].id) is None


async def test_a_cursor_below_the_newest_n_is_a_gap_while_somebody_listens() -> None:
    """P9: reads never show more than ``max_events``."""
    async with holdfast.open("memory://", retention={"max_events": 3}) as store:
        session = await store.create()
        async with session.subscribe(after=holdfast.LATEST):
            events = [await session.append(number) for number in range(10)]
            assert await first_after(session, events[0].id) is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio runs ready tasks in any order: only sometimes
async def test_a_read_that_ends_together_with_a_conflict_leaves_no_write_behind() -> None:
    """P6, P11. Seen as: a process whose writes to one session all hang, with nothing under way."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(shared=data))
    config = holdfast.Config(ttl_s=None, drain_timeout_s=0.1)
    async with Supervisor(backend, config) as store, Supervisor(MemoryBackend(shared=data), config) as other:
        session = await store.create("s")
        assert await session.update("n", _increment, 0) == 1
        assert await (await other.require("s")).update("n", _increment, 0) == 2
        commit = backend.inject(FaultKind.HELD, "commit")
        load = backend.inject(FaultKind.HELD_DONE, "load")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.update, "n", _increment, 0)
            await commit.struck()
            tasks.start_soon(session.get, "n")
            await load.struck()
            load.release()
            commit.release()
            with anyio.move_on_after(1):
                while await (await other.require("s")).get("n") == 2:
                    await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        assert await session.get("n") == 3


async def test_a_log_that_always_has_events_is_never_read_as_empty() -> None:
    """P9: the newest N stay. Seen as: a read that shows neither what was dropped in its midst nor what came for it."""
    config = holdfast.Config(retention=RetentionConfig(max_events=3))
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, config) as store:
        session = await store.create()
        for number in range(3):
            await session.append(number)
        read = backend.inject(FaultKind.HELD, "read_events")
        found = list[holdfast.Event]()

        async def look() -> None:
            found.extend(await session.events())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await read.struck()
            for number in range(3, 6):
                await session.append(number)
            read.release()
        assert len(found) == 3


def _increment(value: int) -> int:
    return value + 1
