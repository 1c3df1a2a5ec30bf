"""The contract kit, bound to Valkey: two backends with one prefix are two instances."""

from __future__ import annotations

import pytest

from holdfast.backends.urls import create_backend
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.servers.valkey import new_prefix, shared_url


class TestValkey(BackendContract, StoreContract):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("valkey", prefix=new_prefix())
        return lambda: create_backend(url)


class TestValkeyCluster(BackendContract, StoreContract):
    """Cluster mode: each session in a slot of its own, nothing atomic but one session's script."""

    @pytest.fixture(scope="class", params=["asyncio", "trio"])
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> str:
        """Two loops will do: what differs from one server knows nothing of loops."""
        name: str = request.param
        return name

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("cluster", prefix=new_prefix())
        return lambda: create_backend(url)


class TestRedis(BackendContract):
    """Redis 7.0, the oldest that is supported, where it is installed."""

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("redis", prefix=new_prefix())
        return lambda: create_backend(url)
