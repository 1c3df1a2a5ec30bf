"""The contract kit, bound to PostgreSQL: two backends on one schema are two instances."""

from __future__ import annotations

import pytest

from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.servers.postgres import new_schema, shared_url


class TestPostgres(BackendContract, StoreContract):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        schema = new_schema()
        return lambda: PostgresBackend(PostgresConfig(dsn=shared_url(), schema=schema))
