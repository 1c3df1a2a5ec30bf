"""The newest events of a session, kept in memory while somebody listens to it."""

from __future__ import annotations

from collections import deque
from itertools import islice

from holdfast.backends.base import SessionWrite
from holdfast.model import Event

__all__ = ["Ring"]


class Ring:
    """Consecutive committed events, up to the newest of this process; the oldest fall out."""

    __slots__ = ("_events",)

    def __init__(self, size: int) -> None:
        self._events: deque[Event] = deque(maxlen=size)

    def extend(self, write: SessionWrite, base_seq: int) -> None:
        """Add the events of a committed write. If others wrote in between, what is here is let go."""
        events = self._events
        if events and events[-1].seq != base_seq:
            events.clear()
        for seq, event in enumerate(write.events, base_seq + 1):
            events.append(event.numbered(write.id, write.incarnation, seq))

    def after(self, seq: int) -> list[Event]:
        """All that follow ``seq`` without a gap; empty if the next one is not here."""
        events = self._events
        if not events or not events[0].seq <= seq + 1 <= events[-1].seq:
            return []
        return list(islice(events, seq + 1 - events[0].seq, None))
