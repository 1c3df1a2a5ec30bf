"""Where callers wait for room among the hot sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio

from holdfast.actors.mailbox import Budget
from holdfast.waiting import Ack, Signal

__all__ = ["Room"]


class Room:
    """Wakes the first of those who wait whenever a session may have come out of use."""

    def __init__(self, budget: Budget, new_ack: Callable[[], Ack]) -> None:
        self._budget = budget
        self._new_ack = new_ack
        self._freed = Signal(new_ack)
        self._queue = anyio.Lock()
        """Held by the first."""
        self._thread = threading.get_ident()

    @property
    def awaited(self) -> bool:
        return self._queue.locked()

    def freed(self) -> None:
        """A session may have come out of use, otherwise than by the settling of its last unit."""
        self._freed.set()

    def freed_by_collector(self) -> None:
        """As `freed`, from whichever thread collects garbage: nearly always the event loop's, else nobody is told."""
        if threading.get_ident() == self._thread:
            self._freed.set()

    async def wait_until(
        self, enough: Callable[[], bool], before_waiting: Callable[[], None], rest_s: Callable[[], float]
    ) -> None:
        """Look whether there is ``enough``, in the order of the calls, and again whenever there may be.

        ``rest_s``: how long to let others work between two looks.
        """
        async with self._queue:
            self._freed = self._budget.emptied = Signal(self._new_ack)
            try:
                while not enough():
                    before_waiting()
                    await self._freed.wait()
                    await anyio.sleep(rest_s())
            finally:
                self._budget.emptied = None
