"""A schema of its own for each test, and the backends on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from holdfast.backends.postgres import PostgresBackend
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.backends.postgres.support import MakeBackend, opened
from tests.servers.postgres import new_schema, shared_url


@pytest.fixture
def schema() -> str:
    return new_schema()


@pytest.fixture
async def make_backend(schema: str) -> AsyncIterator[MakeBackend]:
    async with opened(shared_url(), schema) as make:
        yield make


@pytest.fixture
async def backend(make_backend: MakeBackend) -> PostgresBackend:
    return await make_backend()


@pytest.fixture
def direct(backend: PostgresBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)
