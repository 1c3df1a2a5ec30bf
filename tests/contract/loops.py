"""The event loops that a binding of the contract kit runs on, where it is not all of them."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["UVLOOP", "only"]

UVLOOP = ("asyncio", {"use_uvloop": True})


def only(*loops: Any) -> Any:
    """``anyio_backend`` for some event loops."""

    @pytest.fixture(
        params=[pytest.param(loop, id=loop if isinstance(loop, str) else "asyncio+uvloop") for loop in loops]
    )
    def anyio_backend(self: object, request: pytest.FixtureRequest) -> Any:
        return request.param

    return anyio_backend
