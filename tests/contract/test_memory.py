"""The contract kit, bound to the memory backend: two backends on one `MemoryData` are two instances."""

from __future__ import annotations

import pytest

from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.testing.contract import BackendContract, MakeBackend, StoreContract
from tests.contract.loops import only


class TestMemory(BackendContract, StoreContract):
    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        data = MemoryData()
        return lambda: MemoryBackend(shared=data)


class TestMemoryAlone(BackendContract, StoreContract):
    """Nobody else can write: reads come from the actors."""

    anyio_backend = only("asyncio", "trio")

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        backend = MemoryBackend()
        return lambda: backend
