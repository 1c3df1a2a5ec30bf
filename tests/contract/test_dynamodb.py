"""The contract kit, bound to DynamoDB emulators: two backends on one table are two instances.

All of it on asyncio against the faster emulator; the backend's own part on trio too, and against the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from holdfast.backends.base import Backend, Batch, Marker
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.backends.dynamodb.sender import Sender
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.servers.dynamodb import config_for, fast_endpoint, ministack_endpoint

PAGE = Path(__file__).parents[2] / "docs/dynamodb.md"
CREATES = {"CreateTable", "DescribeTimeToLive", "UpdateTimeToLive"}
"""Allowed where the table is made."""

POLLED = {
    "test_replay_joins_live_while_writers_write",
    "test_one_stream_only",
    "test_events_of_another_instance_arrive_live",
    "test_an_end_on_another_instance_arrives",
}


def permitted() -> set[str]:
    """The actions of the policy in the docs; a transaction is permitted by what it holds."""
    [policy] = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [statement] = json.loads(policy)["Statement"]
    return {action.removeprefix("dynamodb:") for action in statement["Action"]} | {"TransactWriteItems"} | CREATES


class Binding:
    """What is DynamoDB's own, whichever server and loop."""

    endpoint: ClassVar[Any] = staticmethod(fast_endpoint)

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        config = config_for(self.endpoint())
        return lambda: DynamoDBBackend(config)

    @pytest.fixture(autouse=True)
    def only_permitted_actions(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The policy in the docs is enough for each test of the kit."""
        called = set[str]()
        original = Sender.send

        async def recorded(sender: Sender, operation: str, params: Any) -> Any:
            called.add(operation)
            return await original(sender, operation, params)

        monkeypatch.setattr(Sender, "send", recorded)
        yield
        assert called <= permitted()

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


class PollingStore:
    """For the kit's tests of whole stores."""

    @pytest.fixture(autouse=True)
    async def time_flows(self, request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[None]:
        """The engine learns of other instances' commits by polling, by the clock."""
        if request.node.originalname not in POLLED:
            yield
            return
        async with clock.flowing():
            yield


class TestDynamoDB(Binding, PollingStore, BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = 200

    @pytest.fixture(scope="module", params=["asyncio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestDynamoDBOnTrio(Binding, BackendContract):
    @pytest.fixture(scope="module", params=["trio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestDynamoDBOnMinistack(Binding, BackendContract):
    endpoint: ClassVar[Any] = staticmethod(ministack_endpoint)

    @pytest.fixture(scope="module", params=["asyncio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param
