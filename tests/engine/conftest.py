"""A store in memory that fails when a test says so, and one that several instances share."""

from __future__ import annotations

import pytest

from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.testing import FaultyBackend

pytest.register_assert_rewrite("tests.engine.compared")


@pytest.fixture
def backend() -> FaultyBackend:
    return FaultyBackend(MemoryBackend())


@pytest.fixture
def shared() -> MemoryData:
    return MemoryData()
