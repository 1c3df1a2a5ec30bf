"""The contract kit, bound to PostgreSQL: two backends on one schema are two instances."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest

from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.testing import ManualClock
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.servers.postgres import new_schema, shared_url


class _Clock(ManualClock):
    """Sleeps a microsecond at least: a shorter sleep would end, and begin again, in the same moment for ever."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds if seconds <= 0 else max(seconds, 1e-6))


class _Binding:
    version: ClassVar[int | None] = None
    pooled: ClassVar[bool] = False

    @pytest.fixture
    def clock(self) -> ManualClock:
        return _Clock()

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url(self.version, pooled=self.pooled)
        schema = new_schema()
        return lambda: PostgresBackend(PostgresConfig(dsn=url, schema=schema))


class TestPostgres(_Binding, BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = int(os.environ.get("HOLDFAST_SOAK_SESSIONS", "20000"))


class _OnAsyncio(_Binding):
    """The backend's part, on one event loop: what differs is beyond the driver."""

    @pytest.fixture(params=[pytest.param("asyncio", id="asyncio")])
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        return request.param


class TestPostgres15(_OnAsyncio, BackendContract):
    version = 15


class TestPgBouncer(_OnAsyncio, BackendContract):
    """In transaction mode: no statement is kept, and there are no hints."""

    pooled = True
