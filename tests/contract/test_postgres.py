"""The contract kit, bound to PostgreSQL: two backends on one schema are two instances."""

from __future__ import annotations

import os
from typing import ClassVar

import pytest

from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from holdfast.testing.contract.stores import StoreBase
from tests.contract.loops import UVLOOP, only
from tests.servers.postgres import new_schema, shared_url


class _Binding(StoreBase):
    version: ClassVar[int | None] = None
    pooled: ClassVar[bool] = False

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        url = shared_url(self.version, pooled=self.pooled)
        schema = new_schema()
        return lambda: PostgresBackend(PostgresConfig(dsn=url, schema=schema))


class TestPostgres(_Binding, BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = int(os.environ.get("HOLDFAST_SOAK_SESSIONS", "3000"))
    anyio_backend = only("asyncio", "trio")


class TestPostgresOnUvloop(_Binding, BackendContract):
    """What touches the driver."""

    anyio_backend = only(UVLOOP)


class TestPostgres15(_Binding, BackendContract):
    version = 15
    anyio_backend = only("asyncio")


class TestPgBouncer(_Binding, BackendContract):
    """In transaction mode: no statement is kept, and there are no hints."""

    pooled = True
    anyio_backend = only("asyncio")
