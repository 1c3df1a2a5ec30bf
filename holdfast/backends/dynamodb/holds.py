"""Who is at what: one at a time for each name, in one event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

__all__ = ["Holds"]


class Holds:
    """Locks by name that cost nothing while nobody waits."""

    def __init__(self) -> None:
        self._held: Final[dict[str, asyncio.Event | None]] = {}

    def try_take(self, name: str) -> bool:
        """Without waiting; `release` it."""
        if name in self._held:
            return False
        self._held[name] = None
        return True

    def release(self, name: str) -> None:
        event = self._held.pop(name)
        if event is not None:
            event.set()

    async def take(self, name: str) -> None:
        while not self.try_take(name):
            event = self._held[name]
            if event is None:
                event = self._held[name] = asyncio.Event()
            await event.wait()

    def of(self, name: str) -> _Hold:
        """``async with holds.of(name)``: held meanwhile."""
        return _Hold(self, name)


class _Hold:
    __slots__ = ("_holds", "_name")

    def __init__(self, holds: Holds, name: str) -> None:
        self._holds = holds
        self._name = name

    async def __aenter__(self) -> None:
        await self._holds.take(self._name)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holds.release(self._name)
