"""The contract kit, bound to PostgreSQL: two backends on one schema are two instances."""

from __future__ import annotations

import pytest

from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.testing import ManualClock
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.servers.postgres import new_schema, shared_url


class _Clock(ManualClock):
    """Sleeps a microsecond at least: a shorter sleep would end, and begin again, in the same moment for ever."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds if seconds <= 0 else max(seconds, 1e-6))


class TestPostgres(BackendContract, StoreContract):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return _Clock()

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        schema = new_schema()
        return lambda: PostgresBackend(PostgresConfig(dsn=shared_url(), schema=schema))
