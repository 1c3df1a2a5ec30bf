"""What all parts of the kit share: the binding, and how to open stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import ClassVar

import pytest

from holdfast.backends.base import Backend
from holdfast.testing.clock import ManualClock

__all__ = ["ContractBase", "MakeBackend"]

MakeBackend = Callable[[], Backend]


class ContractBase:
    """The root of the kit's classes. A binding overrides `make_backend`."""

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.anyio]

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """A callable that makes a backend, not yet open, on *the same* store at each call.

        The store is new for each test. Backends made one after another stand for restarts, backends
        open side by side for several instances (unless their capabilities say exclusive).
        """
        raise NotImplementedError("a binding of the contract kit must define the fixture make_backend")

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def backend(self, make_backend: MakeBackend) -> AsyncIterator[Backend]:
        """An open backend."""
        backend = make_backend()
        await backend.open()
        yield backend
        await backend.close()

    @pytest.fixture
    async def other(self, backend: Backend, make_backend: MakeBackend) -> AsyncIterator[Backend]:
        """A second open backend on the store of ``backend``; the same one where there can be no other."""
        if backend.capabilities.exclusive:
            yield backend
            return
        other = make_backend()
        await other.open()
        yield other
        await other.close()
