"""A file of its own for each test, and a backend on it. A module with other settings has a `config` of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def config(path: Path) -> SQLiteConfig:
    return SQLiteConfig(path=str(path))


@pytest.fixture
async def backend(config: SQLiteConfig) -> AsyncIterator[SQLiteBackend]:
    backend = SQLiteBackend(config)
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
def direct(backend: SQLiteBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)
