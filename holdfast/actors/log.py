"""Reading a session's event log: pages, cursors, gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from holdfast.actors.actor import SessionActor
from holdfast.actors.registry import Registry
from holdfast.backends.base import Backend, EventPage, EventQuery
from holdfast.backends.breaker import Breaker, read
from holdfast.errors import EventGap, InvalidCursor, SessionNotFound
from holdfast.model import LATEST, Cursor, Event, Latest

__all__ = ["EventLog"]

_PAGE_EVENTS = 1_000
_PAGE_BYTES = 1 << 20
_NO_BOUND = 1 << 62


class EventLog:
    """Reads events of any session of one store, from a hot actor's ring or page by page."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        breaker: Breaker,
        *,
        read_timeout_s: float,
        note_read: Callable[[SessionActor], Awaitable[None]],
    ) -> None:
        self.registry = registry
        self.note_read = note_read
        """`Engine.note_read`."""
        self._backend = backend
        self._breaker = breaker
        self._timeout_s = read_timeout_s

    def position(self, actor: SessionActor, after: str | Latest | None) -> int:
        """The sequence number that a cursor stands for.

        Raises: `InvalidCursor` if it is malformed, another session's, or ahead of the last event.
        """
        if after is None:
            return 0
        if after is LATEST:
            return actor.last_seq
        cursor = Cursor.parse(after)
        if cursor.incarnation != actor.incarnation:
            raise InvalidCursor(after, "foreign")
        if cursor.seq > actor.last_seq and cursor.seq > actor.shown_seq:
            raise InvalidCursor(after, "ahead")
        return cursor.seq

    async def page(self, actor: SessionActor, query: EventQuery, *, cursor: str | None) -> EventPage:
        """One page of the actor's session from the store.

        Raises: `EventGap` if ``cursor`` is given and events right after it are gone;
        `SessionNotFound`; `Unavailable`.
        """
        page = await self._read(query)
        if page is None:
            raise SessionNotFound(query.id)
        if cursor is not None and query.after_seq + 1 < page.first_seq:
            raise await self._gap(query, page, cursor)
        if page.events:
            actor.shown_seq = max(actor.shown_seq, page.events[-1].seq)
        return page

    async def _read(self, query: EventQuery) -> EventPage | None:
        return await read(lambda: self._backend.read_events(query), self._breaker, self._timeout_s)

    async def _gap(self, query: EventQuery, page: EventPage, cursor: str) -> EventGap:
        first = await self._read(EventQuery(query.id, query.incarnation, limit=1))
        first_id = first.events[0].id if first is not None and first.events else None
        return EventGap(query.id, cursor, first_id=first_id)

    async def pages(
        self, actor: SessionActor, after: str | None, stream: str | None, limit: int | None = None
    ) -> AsyncIterator[list[Event]]:
        """What is held after a cursor (None: all of it), oldest first, up to the newest as the first page is read.

        Raises: as `page` and `position`.
        """
        seq, end_seq = self.position(actor, after), actor.last_seq
        cursor, first = after, True
        while seq < end_seq and limit != 0:
            size = _PAGE_EVENTS if limit is None else min(limit, _PAGE_EVENTS)
            query = EventQuery(actor.id, actor.incarnation, seq, stream, size, _PAGE_BYTES)
            page = await self.page(actor, query, cursor=cursor)
            events = page.events
            if first:  # begin and end of the log as of one moment
                end_seq, first = page.last_seq, False
            if page.scanned_seq > end_seq:
                events = [event for event in events if event.seq <= end_seq]
            if events:
                yield events
            if not page.more:
                return
            seq = page.scanned_seq
            cursor = str(Cursor(actor.incarnation, seq, stream or ""))
            limit = None if limit is None else limit - len(events)

    async def last(self, actor: SessionActor, count: int, stream: str | None) -> list[Event]:
        """The newest ``count`` events, oldest first. Raises: as `page`."""
        query = EventQuery(actor.id, actor.incarnation, 0, stream, count, _NO_BOUND, last=True)
        return (await self.page(actor, query, cursor=None)).events
