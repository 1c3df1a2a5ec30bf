"""One session's log, read page by page."""

from __future__ import annotations

from collections import deque
from typing import Final

from holdfast.backends.base import EventQuery, Head
from holdfast.copying.access import Access
from holdfast.model import Event

__all__ = ["Log", "Moved"]

_PAGE_EVENTS: Final = 1_000


class Moved(Exception):
    """A session is no longer as it was when it was looked at; the message says in what."""


class Log:
    """The events of ``head`` after ``seq``, up to its ``last_seq``: those that belong to the state of that moment."""

    def __init__(self, store: Access, head: Head, seq: int) -> None:
        self._store: Final = store
        self._head: Final = head
        self._seq = seq
        self._page = deque[Event]()

    async def next(self) -> Event | None:
        """The next event; None at the end.

        Raises: `Moved` if it is not there, because it was trimmed or the session is gone.
        """
        if self._seq >= self._head.last_seq:
            return None
        if not self._page:
            await self._read()
        self._seq += 1
        event = self._page.popleft() if self._page else None
        if event is None or event.seq != self._seq:
            raise Moved(f"event {self._seq:,} is not at the {self._store.name}")
        return event

    async def _read(self) -> None:
        head = self._head
        query = EventQuery(head.id, head.incarnation, self._seq, limit=_PAGE_EVENTS)
        page = await self._store.read(self._store.backend.read_events, query)
        if page is None:
            raise Moved(f"it was deleted at the {self._store.name}")
        self._page.extend(page.events)
