"""The contract kit, bound to SQLite: two backends on one file are two instances."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.contract.loops import only


class TestSQLite(BackendContract, StoreContract):
    mass_expiry_sessions: ClassVar[int] = int(os.environ.get("HOLDFAST_SOAK_SESSIONS", "3000"))

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        return lambda: SQLiteBackend(SQLiteConfig(path=str(tmp_path / "sessions.db")))


class TestSQLiteExclusive(BackendContract, StoreContract):
    """The file is locked: reads come from the actors."""

    anyio_backend = only("asyncio", "trio")

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        return lambda: SQLiteBackend(SQLiteConfig(path=str(tmp_path / "sessions.db"), exclusive=True))
