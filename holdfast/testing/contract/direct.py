"""A backend driven by hand: what the engine's writer would send, spelled out by a test."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from typing import Any

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
    SessionFilter,
    SessionWrite,
    Status,
)
from holdfast.model import Durability, Event
from holdfast.testing.clock import ManualClock

__all__ = ["Direct", "blind", "creation", "fenced", "new_event", "new_head"]

_incarnations = itertools.count(1_000)


def new_head(session_id: str, now_us: int, **fields: Any) -> Head:
    """A head for `creation`, with an incarnation of its own."""
    head = Head(
        id=session_id,
        incarnation=next(_incarnations),
        owner=None,
        created_us=now_us,
        active_us=now_us,
        ttl_us=None,
        deadline_us=None,
        status="active",
        metadata=b"{}",
        first_seq=1,
        last_seq=0,
        version=0,
    )
    return msgspec.structs.replace(head, **fields)


def creation(head: Head, **fields: Any) -> SessionWrite:
    """The write that inserts ``head``, and whatever else ``fields`` say."""
    return blind(head, create=head, **fields)


def blind(head: Head, **fields: Any) -> SessionWrite:
    """A write with ``head`` as its hint. One unit, unless ``fields`` say otherwise."""
    given: dict[str, Any] = {
        "id": head.id,
        "incarnation": head.incarnation,
        "accepted_us": head.active_us,
        "active_us": head.active_us,
        "version": head.version,
        "base_seq": head.last_seq,
        "units": 1,
    }
    return SessionWrite(**(given | fields))


def fenced(head: Head, **fields: Any) -> SessionWrite:
    """As `blind`, valid only if the row is still as ``head`` says."""
    return blind(head, fenced=True, **fields)


def new_event(text: str = "x", *, stream: str = "", type: str = "message", time_us: int = 0) -> NewEvent:
    return NewEvent(stream, type, msgspec.json.encode(text), None, time_us)


class Direct:
    """One writer lane over ``backend``: it numbers its flushes and gives them markers. No two have the same name."""

    def __init__(self, backend: Backend, clock: ManualClock, writer: str | None = None) -> None:
        self.backend = backend
        self.clock = clock
        self._writer = writer = writer or uuid.uuid4().hex
        self._flushes = itertools.count(1)
        self.last_marker = Marker(writer, 0, 0)

    async def commit(
        self, *writes: SessionWrite, max_events: int | None = None, durability: Durability = Durability.MEMORY
    ) -> list[Outcome]:
        self.last_marker = Marker(self._writer, 0, next(self._flushes))
        return await self.backend.commit(
            Batch(
                writes=writes,
                marker=self.last_marker,
                durability=durability,
                now_us=self.clock.now_us(),
                max_events=max_events,
            )
        )

    async def one(self, write: SessionWrite, *, max_events: int | None = None) -> Outcome:
        (outcome,) = await self.commit(write, max_events=max_events)
        return outcome

    async def create(self, session_id: str, **fields: Any) -> Head:
        """Insert a session; returns its head as committed."""
        head = new_head(session_id, self.clock.now_us(), **fields)
        assert (await self.one(creation(head))).status is Status.COMMITTED
        return await self.head(session_id)

    async def append(self, head: Head, *texts: str, max_events: int | None = None) -> Head:
        """Append events; returns the head as committed."""
        write = blind(head, events=[new_event(text) for text in texts])
        assert (await self.one(write, max_events=max_events)).status is Status.COMMITTED
        return await self.head(head.id)

    async def head(self, session_id: str) -> Head:
        """The committed head of a session that must be there."""
        (snapshot,) = await self.backend.load([LoadRequest(session_id, head_only=True)])
        assert snapshot is not None, f"no session {session_id!r}"
        return snapshot.head

    async def exists(self, session_id: str) -> bool:
        return (await self.backend.load([LoadRequest(session_id)]))[0] is not None

    async def state(self, session_id: str) -> dict[str, bytes]:
        (snapshot,) = await self.backend.load([LoadRequest(session_id)])
        assert snapshot is not None
        assert snapshot.state is not None
        return {key: value.raw for key, value in snapshot.state.items()}

    async def versions(self, session_id: str) -> dict[str, int]:
        (snapshot,) = await self.backend.load([LoadRequest(session_id)])
        assert snapshot is not None
        assert snapshot.state is not None
        return {key: value.version for key, value in snapshot.state.items()}

    async def page(self, head: Head, **query: Any) -> EventPage:
        page = await self.backend.read_events(EventQuery(head.id, head.incarnation, **query))
        assert page is not None
        return page

    async def events(self, head: Head) -> list[Event]:
        """All events, page by page."""
        events, after = list[Event](), 0
        while True:
            page = await self.page(head, after_seq=after)
            events += page.events
            after = page.scanned_seq
            if not page.more:
                return events

    async def listed(self, *, page: int = 100, **where: Any) -> list[str]:
        """Ids of all live sessions, page by page."""
        filter_ = SessionFilter(now_us=self.clock.now_us(), **where)
        ids, after = list[str](), -1
        while True:
            found = await self.backend.list_sessions(filter_, after, page)
            ids += [head.id for head in found.heads]
            if found.next_after is None:
                return ids
            after = found.next_after


def texts(events: Sequence[Event]) -> list[str]:
    return [event.data for event in events]
