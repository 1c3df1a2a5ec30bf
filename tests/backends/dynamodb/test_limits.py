"""A unit's keys are bounded, its events are not: what the engine refuses, and what it merges into one write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast import Session
from holdfast.backends.base import Batch, Outcome
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.backends.dynamodb.limits import MAX_UNIT_KEYS
from holdfast.errors import LimitExceeded
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.faults import FaultyBackend
from tests.servers.dynamodb import config_for, fast_endpoint

pytestmark = pytest.mark.anyio

EVENTS = 10 * MAX_UNIT_KEYS


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Watched(FaultyBackend):
    """Notes how many keys and events each write has."""

    def __init__(self, inner: DynamoDBBackend) -> None:
        super().__init__(inner)
        self.writes: list[tuple[int, int]] = []

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.writes += [(len(write.sets) + len(write.removes), len(write.events)) for write in batch.writes]
        return await super().commit(batch)


@pytest.fixture
async def backend() -> Watched:
    return Watched(DynamoDBBackend(config_for(fast_endpoint())))


@pytest.fixture
async def session(backend: Watched) -> AsyncIterator[Session]:
    async with Supervisor(backend) as store:
        session = await store.create()
        backend.writes.clear()
        yield session


def keys(count: int) -> dict[str, Any]:
    return {f"k{number}": number for number in range(count)}


async def test_a_unit_with_as_many_keys_as_there_can_be_and_many_events(session: Session, backend: Watched) -> None:
    async with session.unit() as unit:
        for key, value in keys(MAX_UNIT_KEYS - 1).items():
            unit.set(key, value)
        unit.remove("gone")
        for number in range(EVENTS):
            unit.append(number)
    assert backend.writes == [(MAX_UNIT_KEYS, EVENTS)]
    assert await session.state() == keys(MAX_UNIT_KEYS - 1)
    assert len(await session.events()) == EVENTS


async def test_a_unit_with_more_keys_is_refused_before_anything_is_sent(session: Session, backend: Watched) -> None:
    with pytest.raises(LimitExceeded) as refused:
        await session.set_many(keys(MAX_UNIT_KEYS + 1))
    assert (refused.value.limit, refused.value.actual) == (MAX_UNIT_KEYS, MAX_UNIT_KEYS + 1)
    assert "keys" in str(refused.value)
    assert backend.writes == []
    assert await session.state() == {}


async def test_units_that_wait_together_are_merged_up_to_the_limit(session: Session, backend: Watched) -> None:
    """None is rejected for the company that it is in."""
    async with anyio.create_task_group() as tasks:
        for key, value in keys(2 * MAX_UNIT_KEYS + 5).items():
            tasks.start_soon(session.set, key, value)
            tasks.start_soon(session.append, value)
    assert max(keys for keys, _ in backend.writes) == MAX_UNIT_KEYS
    assert len(backend.writes) <= 4
    assert await session.state() == keys(2 * MAX_UNIT_KEYS + 5)
    assert len(await session.events()) == 2 * MAX_UNIT_KEYS + 5


async def test_events_that_wait_together_are_one_write(session: Session, backend: Watched) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(EVENTS):
            tasks.start_soon(session.append, number)
    assert [keys for keys, _ in backend.writes] == [0] * len(backend.writes)
    assert max(events for _, events in backend.writes) > MAX_UNIT_KEYS
