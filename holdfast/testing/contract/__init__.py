"""The contract kit: CONFORMANCE tests that any backend can be bound to.

    class TestMine(BackendContract, StoreContract):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda: MyBackend(tmp_path / "store")

`BackendContract` tests the `Backend` protocol directly, `StoreContract` the users' API through
supervisors. Each runs on every event loop that the project's ``anyio_backend`` fixture gives; the
numbers in the docstrings (C24, P6) are those of CONFORMANCE.md and DESIGN.md.
"""

# ruff: noqa: E402 - assertions are rewritten only in modules that are imported after this call

from __future__ import annotations

import pytest

_PARTS = (
    "direct", "backend_commits", "backend_reads", "backend_upkeep",
    "sessions", "state", "events", "subscriptions", "expiry", "faults", "limits",
)  # fmt: skip
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from holdfast.testing.contract.backend_commits import CommitContract
from holdfast.testing.contract.backend_reads import ReadContract
from holdfast.testing.contract.backend_upkeep import UpkeepContract
from holdfast.testing.contract.base import MakeBackend
from holdfast.testing.contract.events import EventContract
from holdfast.testing.contract.expiry import ExpiryContract
from holdfast.testing.contract.faults import FaultContract
from holdfast.testing.contract.limits import LimitContract
from holdfast.testing.contract.sessions import SessionContract
from holdfast.testing.contract.state import StateContract
from holdfast.testing.contract.subscriptions import SubscriptionContract

__all__ = ["BackendContract", "MakeBackend", "StoreContract"]


class BackendContract(CommitContract, ReadContract, UpkeepContract):
    """All duties of `holdfast.backends.base.Backend`."""


class StoreContract(
    SessionContract, StateContract, EventContract, SubscriptionContract, ExpiryContract, FaultContract, LimitContract
):
    """What users are promised, on any store."""
