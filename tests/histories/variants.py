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
    """Looks at the store every fourth time, and else gives what it found there: a replica that lags, unmentioned."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._found: dict[str, Snapshot | None] = {}

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        self.calls["load"] += 1
        asked = [LoadRequest(request.id) for request in requests]
        if self.calls["load"] % 4 == 0 or not self._found.keys() >= {request.id for request in asked}:
            found = await self.inner.load(asked)
            self._found.update((request.id, snapshot) for request, snapshot in zip(asked, found, strict=True))
        return [self._found[request.id] for request in asked]


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


class KeepsEverything(FaultyBackend):
    """Drops no event when there are too many."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        return await self.inner.commit(msgspec.structs.replace(batch, max_events=None))


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
    "keeps everything": KeepsEverything,
}
