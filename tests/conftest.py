"""Every async test runs on each event loop; no test leaves a thread behind."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from holdfast.testing import ManualClock
from holdfast.testing.leaks import live_threads

_NO_UVLOOP = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("asyncio", id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop", marks=_NO_UVLOOP),
        pytest.param("trio", id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """CONFORMANCE 51, after every test: what it started, it has ended."""
    before = live_threads()
    yield
    deadline = time.monotonic() + 2.0
    while leaked := live_threads() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {sorted(thread.name for thread in leaked)}")
        gc.collect()
        time.sleep(0.01)
