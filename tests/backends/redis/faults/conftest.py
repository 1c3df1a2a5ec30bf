"""A server to be abused, and a backend that reaches it through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from holdfast.backends.redis import RedisBackend
from tests.backends.redis.faults.support import abused_server, behind, proxied
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ValkeyServer


@pytest.fixture(params=["one server", "cluster"])
def server(request: pytest.FixtureRequest) -> ValkeyServer:
    return abused_server(request.param)


@pytest.fixture
def proxy(server: ValkeyServer) -> Iterator[TcpProxy]:
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture
async def backend(proxy: TcpProxy) -> AsyncIterator[RedisBackend]:
    async with behind(proxy) as backend:
        yield backend
