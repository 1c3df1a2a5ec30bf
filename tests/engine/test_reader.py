"""Loads that have to wait for their turn."""

from __future__ import annotations

import anyio
import pytest

from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import ActorConfig, Config
from holdfast.errors import HoldfastError, Overloaded, StoreClosed
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
NAMES = "abcd"


@pytest.fixture
def backend() -> FaultyBackend:
    return FaultyBackend(MemoryBackend(MemoryData()))


def config(*, overload_wait_s: float) -> Config:
    actors = ActorConfig(max_hydrations=1, overload_wait_s=overload_wait_s)
    return Config(ttl_s=None, drain_timeout_s=0.01, actors=actors)


@pytest.fixture
async def told(backend: FaultyBackend) -> dict[str, object]:
    async with Supervisor(backend) as store:
        for name in NAMES:
            await store.create(name)
    return {}


async def look(store: Supervisor, name: str, told: dict[str, object]) -> None:
    try:
        told[name] = await store.require(name)
    except HoldfastError as exc:
        told[name] = type(exc)


async def test_who_finds_no_room_waits_for_it(
    backend: FaultyBackend, told: dict[str, object], clock: ManualClock
) -> None:
    """One load is read, one waits for the reader, and the others for its place."""
    async with Supervisor(backend, config(overload_wait_s=PATIENCE_S), clock=clock) as store:
        hold = backend.inject(FaultKind.HELD, "load")
        async with anyio.create_task_group() as tasks:
            for name in NAMES:
                tasks.start_soon(look, store, name, told)
                await clock.settle()
            assert store.statistics().reader.waiting == 1
            hold.release()
        assert not any(isinstance(each, type) for each in told.values())


async def test_who_finds_none_for_too_long_is_told(
    backend: FaultyBackend, told: dict[str, object], clock: ManualClock
) -> None:
    async with Supervisor(backend, config(overload_wait_s=0.01), clock=clock) as store:
        hold = backend.inject(FaultKind.HELD, "load")
        async with anyio.create_task_group() as tasks:
            for name in NAMES[:2]:
                tasks.start_soon(look, store, name, told)
                await clock.settle()
            await look(store, "c", told)
            assert told == {"c": Overloaded}
            hold.release()


async def test_at_the_end_everybody_is_told_at_once(
    backend: FaultyBackend, told: dict[str, object], clock: ManualClock
) -> None:
    async with Supervisor(backend, config(overload_wait_s=PATIENCE_S), clock=clock) as store:
        backend.inject(FaultKind.HELD, "load")
        with anyio.fail_after(PATIENCE_S / 2):
            async with anyio.create_task_group() as tasks:
                for name in NAMES:
                    tasks.start_soon(look, store, name, told)
                    await clock.settle()
                await store.close()
    assert told == dict.fromkeys(NAMES, StoreClosed)
