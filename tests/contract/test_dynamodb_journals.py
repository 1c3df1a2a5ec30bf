"""The contract kit on DynamoDB once more, with every write that can go into a journal in one.

Sessions join at once, and do so again as soon as another instance has ended their journal.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from holdfast.backends.dynamodb import DynamoDBBackend, journals
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.contract.test_dynamodb import Binding, PollingStore
from tests.servers.dynamodb import config_for, fast_endpoint, ministack_endpoint


class Journalled(Binding):
    endpoint: ClassVar[Any] = staticmethod(fast_endpoint)

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        config = config_for(self.endpoint(), journal_from=1)
        return lambda: DynamoDBBackend(config)

    @pytest.fixture(autouse=True)
    def eagerly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journals, "JOINS_AFTER", 0)
        monkeypatch.setattr(journals, "REST_S", 0)


class TestJournals(Journalled, PollingStore, BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = 200

    @pytest.fixture(scope="module", params=["asyncio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestJournalsOnTrio(Journalled, BackendContract):
    @pytest.fixture(scope="module", params=["trio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestJournalsOnMinistack(Journalled, BackendContract):
    endpoint: ClassVar[Any] = staticmethod(ministack_endpoint)

    @pytest.fixture(scope="module", params=["asyncio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> Any:
        return request.param
