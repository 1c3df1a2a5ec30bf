"""A clock that stands still until a test moves it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["ManualClock"]

_START_US: Final = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z: every run of a test sees the same times."""

_PASSES: Final = 20
"""Rounds of the event loop that woken tasks get before time goes on."""


class ManualClock:
    """A `holdfast.clock.Clock` for tests: deterministic, without real waiting.

    Wall clock and monotonic clock move together, by `advance` alone.
    """

    def __init__(self, start_us: int = _START_US) -> None:
        self._start_us = start_us
        self._elapsed_us = 0
        self._sleepers: list[tuple[int, int, anyio.Event]] = []
        self._order = itertools.count()

    def now_us(self) -> int:
        return self._start_us + self._elapsed_us

    def monotonic(self) -> float:
        return self._elapsed_us / 1e6

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock by ``seconds``. Cancellation leaves nothing behind."""
        if seconds <= 0:
            await checkpoint()
            return
        sleeper = (self._elapsed_us + _microseconds(seconds), next(self._order), anyio.Event())
        heapq.heappush(self._sleepers, sleeper)
        try:
            await sleeper[2].wait()
        finally:
            if not sleeper[2].is_set():
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking sleepers in the order of their deadlines, each at its own time.

        Between two deadlines the other tasks run for a while, so a worker that sleeps in a loop
        makes all its rounds. Work in threads is not waited for.
        """
        end_us = self._elapsed_us + _microseconds(seconds)
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end_us:
            due_us, _, event = heapq.heappop(self._sleepers)
            self._elapsed_us = max(self._elapsed_us, due_us)
            event.set()
            await self.settle()
        self._elapsed_us = max(self._elapsed_us, end_us)

    async def settle(self) -> None:
        """Let the other tasks run until, very probably, they all wait for something."""
        for _ in range(_PASSES):
            await checkpoint()

    @asynccontextmanager
    async def flowing(self, step_s: float = 0.05) -> AsyncGenerator[None, None]:
        """Within the block, time passes by itself: ``step_s`` per real millisecond.

        For code that waits by the clock and for a store's threads in turn (retries, backoff),
        where no single `advance` fits.
        """
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._flow, step_s)
            try:
                yield
            except Exception as exc:
                error = exc
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _flow(self, step_s: float) -> None:
        while True:
            await anyio.sleep(0.001)
            await self.advance(step_s)

    @property
    def sleeping(self) -> int:
        """How many tasks wait for this clock."""
        return len(self._sleepers)


def _microseconds(seconds: float) -> int:
    """At least one, for any time at all: a loop that sleeps for less would go round for ever in one moment."""
    return max(1, round(seconds * 1e6)) if seconds > 0 else 0
