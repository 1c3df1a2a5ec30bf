"""Engines that break a promise, on purpose: the checks must notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import anyio
import msgspec

from holdfast.backends.base import (
    Backend,
    Batch,
    EventPage,
    EventQuery,
    Head,
    LoadRequest,
    Marker,
    NewEvent,
    Outcome,
    SessionWrite,
    Snapshot,
    Status,
)
from holdfast.errors import OutcomeUnknown
from holdfast.testing import FaultyBackend

__all__ = ["VARIANTS", "AcknowledgesEarly", "ForgetsMarkers", "PublishesEarly"]


class AcknowledgesEarly(FaultyBackend):
    """Answers each commit at once, and carries it out with the next one, or before somebody here reads.

    So its own process never sees the lie, as with a disk that says "written" of what is in its cache.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._pending: Batch | None = None
        self._one_at_a_time = anyio.Lock()

    async def commit(self, batch: Batch) -> list[Outcome]:
        await self._carry_out(batch)
        return [Outcome(Status.COMMITTED, write.version, write.base_seq, 1, 1) for write in batch.writes]

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        await self._carry_out(None)
        return await super().load(requests)

    async def read_events(self, query: EventQuery) -> EventPage | None:
        await self._carry_out(None)
        return await super().read_events(query)

    async def _carry_out(self, following: Batch | None) -> None:
        async with self._one_at_a_time:
            pending, self._pending = self._pending, following
            if pending is not None:
                await self.inner.commit(pending)


class PublishesEarly(FaultyBackend):
    """Shows the events of a commit that is still under way to everybody who looks, and tells them to look."""

    _pending: Sequence[SessionWrite] = ()
    _changed: Callable[[Collection[int] | None], None] | None = None

    async def commit(self, batch: Batch) -> list[Outcome]:
        self._pending = batch.writes
        if self._changed is not None:
            self._changed([write.incarnation for write in batch.writes])
        await anyio.sleep(0.02)
        try:
            return await self.inner.commit(batch)
        finally:
            self._pending = ()

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        self._changed = changed
        await self.inner.watch(changed)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        snapshots = await self.inner.load(requests)
        return [snapshot and Snapshot(self._ahead(snapshot.head), snapshot.state) for snapshot in snapshots]

    def _ahead(self, head: Head) -> Head:
        return msgspec.structs.replace(head, last_seq=head.last_seq + len(self._events(head.id)))

    def _events(self, session_id: str) -> list[NewEvent]:
        return [event for write in self._pending if write.id == session_id for event in write.events]

    async def read_events(self, query: EventQuery) -> EventPage | None:
        page = await self.inner.read_events(query)
        if page is None or page.more:
            return page
        early = [
            event.numbered(query.id, query.incarnation, seq)
            for seq, event in enumerate(self._events(query.id), page.last_seq + 1)
        ]
        last_seq = page.last_seq + len(early)
        shown = [event for event in early if event.seq > query.after_seq]
        return page._replace(events=[*page.events, *shown], scanned_seq=last_seq, last_seq=last_seq)


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
