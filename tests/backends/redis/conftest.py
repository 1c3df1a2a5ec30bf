"""A store of its own for each test, on one server and on a cluster that all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from holdfast.backends.redis import RedisBackend
from holdfast.backends.urls import create_backend
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.servers.valkey import new_prefix, shared_url


@pytest.fixture(params=["valkey", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return shared_url(request.param, prefix=new_prefix())


@pytest.fixture
async def backend(url: str) -> AsyncIterator[RedisBackend]:
    backend = create_backend(url)
    assert isinstance(backend, RedisBackend)
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
def direct(backend: RedisBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)
