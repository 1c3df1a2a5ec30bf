"""Stores that break a promise, on purpose: the checkers must notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import msgspec

from holdfast.backends.base import Backend, Batch, EventPage, EventQuery, LoadRequest, Outcome, Snapshot
from holdfast.testing import FaultyBackend
from tests.crash.variants import AcknowledgesEarly, ForgetsMarkers, LosesConnections

__all__ = ["VARIANTS"]


class ReadsStale(FaultyBackend):
    """Answers a load with what it gave the last time, now and then: a replica that lags, unmentioned."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._last: dict[str, Snapshot] = {}

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        self.calls["load"] += 1
        stale = [self._last.get(request.id) for request in requests]
        fresh = await self.inner.load([LoadRequest(request.id) for request in requests])
        for request, snapshot in zip(requests, fresh, strict=True):
            if snapshot is not None:
                self._last[request.id] = snapshot
        return [
            old if old is not None and self.calls["load"] % 3 == 0 else new
            for old, new in zip(stale, fresh, strict=True)
        ]


class NumbersOutsideTheLock(FaultyBackend):
    """Numbers become visible out of order, as those of a database's sequence do.

    Seen from a reader that is the whole of it: an event is not there yet, and a later one is.
    """

    async def read_events(self, query: EventQuery) -> EventPage | None:
        page = await self.inner.read_events(query)
        self.calls["read_events"] += 1
        if page is None or self.calls["read_events"] % 5:
            return page
        late = [event for event in page.events[:-1] if event.seq % 3 == 0]
        return page._replace(events=[event for event in page.events if event not in late])


class ForgetsFences(FaultyBackend):
    """Writes what was computed from the state, whatever the state is by now."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        writes = [msgspec.structs.replace(write, fenced=False) for write in batch.writes]
        return await self.inner.commit(msgspec.structs.replace(batch, writes=writes))


class TearsUnits(FaultyBackend):
    """Stores a unit's events first, and its keys in a transaction of their own."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        keys = [
            msgspec.structs.replace(
                write,
                units=0,
                events=(),
                sets={key: (raw, number - write.units) for key, (raw, number) in write.sets.items()},
            )
            for write in batch.writes
            if write.sets and write.events and not write.fenced
        ]
        torn = {write.id for write in keys}
        events = [
            msgspec.structs.replace(write, sets={}, removes=()) if write.id in torn else write for write in batch.writes
        ]
        outcomes = await self.inner.commit(msgspec.structs.replace(batch, writes=events))
        if keys:
            await anyio.sleep(0.03)
            marker = batch.marker._replace(writer=f"{batch.marker.writer} again")
            await self.inner.commit(msgspec.structs.replace(batch, writes=keys, marker=marker))
        return outcomes


VARIANTS: dict[str, Callable[[Backend], FaultyBackend]] = {
    "sound": FaultyBackend,
    "loses connections": LosesConnections,
    "acknowledges early": AcknowledgesEarly,
    "forgets markers": ForgetsMarkers,
    "forgets fences": ForgetsFences,
    "reads stale": ReadsStale,
    "numbers outside the lock": NumbersOutsideTheLock,
    "tears units": TearsUnits,
}
