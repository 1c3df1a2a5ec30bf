"""The contract kit, bound to Valkey: two backends with one prefix are two instances."""

from __future__ import annotations

import pytest

from holdfast.backends.urls import create_backend
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.contract.loops import UVLOOP, only
from tests.servers.valkey import new_prefix, shared_url


class TestValkey(BackendContract, StoreContract):
    anyio_backend = only("asyncio", "trio")

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("valkey", prefix=new_prefix())
        return lambda: create_backend(url)


class TestValkeyCluster(BackendContract, StoreContract):
    """Cluster mode: each session in a slot of its own, nothing atomic but one session's script."""

    anyio_backend = only("asyncio")

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("cluster", prefix=new_prefix())
        return lambda: create_backend(url)


class TestRedis(BackendContract):
    """Redis 7.0, the oldest that is supported, where it is installed."""

    anyio_backend = only("asyncio", UVLOOP)

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url("redis", prefix=new_prefix())
        return lambda: create_backend(url)
