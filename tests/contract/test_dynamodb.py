"""The contract kit, bound to DynamoDB emulators: two backends on one table are two instances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from holdfast.backends.base import Backend, Batch, Marker
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.servers.dynamodb import config_for, fast_endpoint


POLLED = {
    "test_replay_joins_live_while_writers_write",
    "test_one_stream_only",
    "test_events_of_another_instance_arrive_live",
    "test_an_end_on_another_instance_arrives",
}


class PatientClock(ManualClock):
    """A wait of less than its resolution is one of it; else a poll that waits for so little stops the time."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(max(seconds, 1e-6) if seconds > 0 else 0)


class TestDynamoDB(BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = 200

    @pytest.fixture
    def clock(self) -> ManualClock:
        return PatientClock()

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        config = config_for(fast_endpoint())
        return lambda: DynamoDBBackend(config)

    @pytest.fixture(autouse=True)
    async def time_flows(self, request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[None]:
        """The engine learns of other instances' commits by polling, by the clock."""
        if request.node.originalname not in POLLED:
            yield
            return
        async with clock.flowing():
            yield

    async def test_marker_survives_restart(
        self, direct: Direct, backend: Backend, make_backend: MakeBackend, clock: ManualClock
    ) -> None:
        """C43: it does so in the session itself: another object that sends the same flush again does nothing twice.

        There is no marker beside the sessions, which would double the price of a lone write; so an object
        can say what became of its own flushes only.
        """
        head = await direct.create("s")
        batch = Batch(
            writes=[blind(head, events=[new_event("once")])],
            marker=Marker("writer", 0, 1),
            durability=Durability.PROCESS,
            now_us=clock.now_us(),
            max_events=None,
        )
        outcomes = await backend.commit(batch)
        await backend.close()
        again = make_backend()
        await again.open()
        try:
            assert await again.commit(batch) == outcomes
            assert texts(await Direct(again, clock).events(head)) == ["once"]
        finally:
            await again.close()
