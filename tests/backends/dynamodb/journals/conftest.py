"""Two instances on one table, the first through a proxy, and sessions that share a journal."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from holdfast.backends.dynamodb import DynamoDBBackend, DynamoDBConfig, journals
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.backends.dynamodb.journals.support import IDS, SECOND, Crowd
from tests.servers.dynamodb import config_for, fast_endpoint
from tests.servers.http_proxy import HttpProxy


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def config(proxy: HttpProxy) -> DynamoDBConfig:
    return config_for(proxy.url, request_timeout_s=0.5)


@pytest.fixture
async def other(backend: DynamoDBBackend) -> AsyncIterator[DynamoDBBackend]:
    """Not through the proxy."""
    other = DynamoDBBackend(config_for(fast_endpoint(), table=backend._config.table))
    await other.open()
    yield other
    await other.close()


@pytest.fixture
def second(other: DynamoDBBackend, clock: ManualClock) -> Direct:
    return Direct(other, clock, "second")


@pytest.fixture
async def crowd(direct: Direct) -> Crowd:
    """In a journal, with some entries there."""
    crowd = Crowd(direct, [await direct.create(each, ttl_us=600 * SECOND) for each in IDS])
    await crowd.append(journals.JOINS_AFTER + 3)
    return crowd
