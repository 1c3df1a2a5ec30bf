"""How the store tests open supervisors: one, two side by side, or one after another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from holdfast.config import Config
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.base import ContractBase, MakeBackend
from holdfast.testing.faults import FaultyBackend

__all__ = ["OpenFaulty", "OpenStore", "StoreBase"]

OpenStore = Callable[..., Supervisor]
OpenFaulty = Callable[..., tuple[Supervisor, FaultyBackend]]


class StoreBase(ContractBase):
    """Fixtures over `make_backend`. A supervisor is opened by ``async with``."""

    @pytest.fixture
    def open_store(self, make_backend: MakeBackend, clock: ManualClock) -> OpenStore:
        """``open_store(**settings)``: one more supervisor on the store of the test."""

        def open_store(**settings: Any) -> Supervisor:
            return Supervisor(make_backend(), Config(**settings), clock=clock)

        return open_store

    @pytest.fixture
    def open_faulty(self, make_backend: MakeBackend, clock: ManualClock) -> OpenFaulty:
        """As ``open_store``, with a `FaultyBackend` between, which comes back too."""

        def open_faulty(**settings: Any) -> tuple[Supervisor, FaultyBackend]:
            backend = FaultyBackend(make_backend())
            return Supervisor(backend, Config(**settings), clock=clock), backend

        return open_faulty

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Supervisor]:
        async with open_store() as store:
            yield store

    @pytest.fixture
    async def second(self, store: Supervisor, open_store: OpenStore) -> AsyncIterator[Supervisor]:
        """A second instance on the store of ``store``; the same one where there can be no other."""
        if store.capabilities.exclusive:
            yield store
            return
        async with open_store() as second:
            yield second
