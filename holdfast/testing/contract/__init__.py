"""The contract kit: CONFORMANCE tests that any backend can be bound to.

    class TestMine(BackendContract, StoreContract):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return lambda: MyBackend(tmp_path / "store")

`BackendContract` tests the `Backend` protocol directly, `StoreContract` the users' API through
supervisors. Each runs on every event loop that the project's ``anyio_backend`` fixture gives; the
numbers in the docstrings (C24, P6) are those of CONFORMANCE.md and DESIGN.md.
"""

from __future__ import annotations

import pytest

_PARTS = ("direct", "backend_commits", "backend_reads", "backend_upkeep")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from holdfast.testing.contract.backend_commits import CommitContract  # noqa: E402
from holdfast.testing.contract.backend_reads import ReadContract  # noqa: E402
from holdfast.testing.contract.backend_upkeep import UpkeepContract  # noqa: E402

__all__ = ["BackendContract"]


class BackendContract(CommitContract, ReadContract, UpkeepContract):
    """All duties of `holdfast.backends.base.Backend`."""
