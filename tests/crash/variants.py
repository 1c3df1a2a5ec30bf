"""Engines that break a promise, on purpose: the checks must notice each of them."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from holdfast.backends.base import Backend, Batch, Marker, Outcome, Status
from holdfast.errors import OutcomeUnknown
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultyBackend

__all__ = ["VARIANTS", "AcknowledgesEarly", "ForgetsMarkers", "PublishesEarly"]


class AcknowledgesEarly(FaultyBackend):
    """Answers each commit at once, and carries it out with the next one."""

    _pending: Batch | None = None

    async def commit(self, batch: Batch) -> list[Outcome]:
        pending, self._pending = self._pending, batch
        if pending is not None:
            await self.inner.commit(pending)
        return [Outcome(Status.COMMITTED, write.version, write.base_seq, 1, 1) for write in batch.writes]


class PublishesEarly(FaultyBackend):
    """Shows events to subscribers, and commits them a little later."""

    store: Supervisor

    async def commit(self, batch: Batch) -> list[Outcome]:
        for write in batch.writes:
            actor = self.store._engine.registry.hot.get(write.id)
            if actor is not None and actor.subscribers and write.events:
                actor._extend_ring(write, write.base_seq)
                actor.last_seq = max(actor.last_seq, write.base_seq + len(write.events))
                actor.wake_subscribers()
        await anyio.sleep(0.005)
        return await self.inner.commit(batch)


class ForgetsMarkers(FaultyBackend):
    """Does not find its own flush again: it asks nobody, and sends it once more."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.calls["commit"] += 1
        outcomes = await self.inner.commit(batch)
        if self.calls["commit"] % 7 == 0:
            raise OutcomeUnknown("the connection was lost after COMMIT")
        return outcomes

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        return None


class LosesConnections(ForgetsMarkers):
    """The sound counterpart of `ForgetsMarkers`: it asks."""

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        return await self.inner.resolve(marker)


VARIANTS: dict[str, Callable[[Backend], FaultyBackend]] = {
    "sound": FaultyBackend,
    "acknowledges early": AcknowledgesEarly,
    "publishes early": PublishesEarly,
    "forgets markers": ForgetsMarkers,
    "loses connections": LosesConnections,
}
