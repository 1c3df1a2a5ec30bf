"""A store in memory that stops where a race is to be staged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from holdfast.backends.base import Batch, LoadRequest, Outcome, Snapshot
from holdfast.backends.memory import MemoryBackend

__all__ = ["Gated"]


class Gated(MemoryBackend):
    """Calls a hook before a commit, or after a load has read."""

    before_commit: Callable[[Batch], Awaitable[None]] | None = None
    after_load: Callable[[], Awaitable[None]] | None = None

    async def commit(self, batch: Batch) -> list[Outcome]:
        if self.before_commit is not None:
            await self.before_commit(batch)
        return await super().commit(batch)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        found = await super().load(requests)
        if self.after_load is not None:
            await self.after_load()
        return found
