"""The test tools themselves: a clock that stands still, and a leak check that finds leaks."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import anyio
import pytest

from holdfast.backends.base import Batch, Marker
from holdfast.backends.memory import MemoryBackend
from holdfast.errors import OutcomeUnknown
from holdfast.model import Durability
from holdfast.testing import FaultKind, FaultyBackend, Leaks, ManualClock, assert_no_leaks

pytestmark = pytest.mark.anyio


async def test_sleepers_wake_in_the_order_of_their_deadlines(clock: ManualClock) -> None:
    log = list[tuple[str, float]]()
    start_us = clock.now_us()

    async def loop(name: str, seconds: float) -> None:
        while True:
            await clock.sleep(seconds)
            log.append((name, clock.monotonic()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop, "a", 2)
        tasks.start_soon(loop, "b", 3)
        await clock.advance(7)
        tasks.cancel_scope.cancel()
    assert sorted(log) == [("a", 2.0), ("a", 4.0), ("a", 6.0), ("b", 3.0), ("b", 6.0)]
    assert [at for _, at in log] == sorted(at for _, at in log)
    assert clock.now_us() - start_us == 7_000_000
    assert clock.sleeping == 0


async def test_time_flows_only_where_asked(clock: ManualClock) -> None:
    with anyio.move_on_after(0.02) as scope:
        await clock.sleep(1)
    assert scope.cancelled_caught
    with pytest.raises(ZeroDivisionError):
        async with clock.flowing():
            await clock.sleep(1)
            raise ZeroDivisionError


async def test_leaks_are_found(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(Leaks, match="task"):
            async with assert_no_leaks(patience_s=0.02):
                tasks.start_soon(anyio.sleep_forever)
        tasks.cancel_scope.cancel()
    files = list[IO[str]]()
    with pytest.raises(Leaks, match="leaked"):
        async with assert_no_leaks(patience_s=0.02):
            files.append((tmp_path / "leaked").open("w"))
    files[0].close()


async def test_faults_strike_as_planned() -> None:
    backend = FaultyBackend(MemoryBackend())
    batch = Batch(writes=[], marker=Marker("w", 0, 1), durability=Durability.MEMORY, now_us=0, max_events=None)
    unknown = backend.inject(FaultKind.UNKNOWN_DONE, skip=1)
    await backend.commit(batch)
    with pytest.raises(OutcomeUnknown):
        await backend.commit(batch)
    await backend.commit(batch)
    assert (unknown.hits, backend.calls["commit"]) == (1, 3)
    assert await backend.resolve(batch.marker) == []
    held = backend.inject(FaultKind.HELD)
    done = list[int]()

    async def commit() -> None:
        await backend.commit(batch)
        done.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        await held.struck()
        assert done == []
        held.release()
    assert done == [1]
