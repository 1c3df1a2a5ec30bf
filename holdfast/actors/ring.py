"""The newest events of a session, kept in memory while somebody listens to it."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from holdfast.backends.base import SessionWrite
from holdfast.model import Event

__all__ = ["Ring"]

_EVENT_BYTES: Final = 160
"""What an event takes in memory beside its data, roughly."""


class Ring:
    """Consecutive committed events, up to the newest of this process; the oldest fall out."""

    __slots__ = ("_events", "_size", "bytes")

    def __init__(self, size: int) -> None:
        self._events: deque[Event] = deque()
        self._size = size
        self.bytes = 0
        """What it takes in memory, roughly."""

    def extend(self, write: SessionWrite, base_seq: int) -> int:
        """Add the events of a committed write; by how many bytes the ring grew.

        If others wrote in between, what is here is let go.
        """
        events, before = self._events, self.bytes
        if events and events[-1].seq != base_seq:
            events.clear()
            self.bytes = 0
        for seq, event in enumerate(write.events, base_seq + 1):
            events.append(event.numbered(write.id, write.incarnation, seq))
            self.bytes += len(event.raw) + _EVENT_BYTES
        while len(events) > self._size:
            self.bytes -= len(events.popleft().raw) + _EVENT_BYTES
        return self.bytes - before

    def after(self, seq: int) -> list[Event]:
        """All that follow ``seq`` without a gap; empty if the next one is not here."""
        events = self._events
        if not events or not events[0].seq <= seq + 1 <= events[-1].seq:
            return []
        return list(islice(events, seq + 1 - events[0].seq, None))
