"""Time: the only place where Holdfast asks what time it is, or sleeps."""

from __future__ import annotations

import time
from typing import Protocol

import anyio

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What the engine needs of time. Tests pass `holdfast.testing.ManualClock`."""

    def now_us(self) -> int:
        """Wall-clock time in microseconds since the epoch (UTC). Decides expiry."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back. Decides backoff, idleness and intervals."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. Cancellation leaves nothing behind."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
