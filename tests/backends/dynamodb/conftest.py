"""A table of a test's own, and two backends on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from holdfast.backends.dynamodb import DynamoDBBackend, DynamoDBConfig
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.servers.dynamodb import config_for, fast_endpoint
from tests.servers.http_proxy import HttpProxy


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    with HttpProxy(fast_endpoint()) as proxy:
        yield proxy


@pytest.fixture
def config() -> DynamoDBConfig:
    return config_for(fast_endpoint())


@pytest.fixture
def make(config: DynamoDBConfig) -> Callable[[], DynamoDBBackend]:
    """On one table."""
    return lambda: DynamoDBBackend(config)


@pytest.fixture
async def backend(make: Callable[[], DynamoDBBackend]) -> AsyncIterator[DynamoDBBackend]:
    backend = make()
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
async def other(backend: DynamoDBBackend, make: Callable[[], DynamoDBBackend]) -> AsyncIterator[DynamoDBBackend]:
    """It takes ``backend`` so that the table is there."""
    other = make()
    await other.open()
    yield other
    await other.close()


@pytest.fixture
def direct(backend: DynamoDBBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)
