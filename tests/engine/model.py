"""A plain model of a store: what the engine must be equal to, without any of its machinery."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

Event = tuple[int, str, Any]
"""seq, stream, data"""


@dataclasses.dataclass
class PlainSession:
    """One session: a dict and a list."""

    incarnation: int
    ttl_us: int | None
    active_us: int
    stored_active_us: int
    """What a crash may fall back to: reads are noted, and stored a little later."""
    state: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    versions: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    events: list[Event] = dataclasses.field(default_factory=list[Event])
    last_seq: int = 0
    closed: bool = False
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def expired(self, now_us: int) -> bool:
        return self.ttl_us is not None and now_us >= self.active_us + self.ttl_us

    def set(self, key: str, value: Any) -> None:
        self.state[key] = value

    def remove(self, key: str) -> Any:
        return self.state.pop(key, None)

    def append(self, stream: str, data: Any) -> int:
        self.last_seq += 1
        self.events.append((self.last_seq, stream, data))
        return self.last_seq

    def drop_before(self, seq: int) -> int:
        kept = [event for event in self.events if event[0] >= seq]
        dropped = len(self.events) - len(kept)
        self.events = kept
        return dropped

    def cap(self, max_events: int) -> None:
        self.events = self.events[-max_events:]

    def picture(self) -> tuple[Any, ...]:
        """What can be compared with the store."""
        return (self.incarnation, self.state, self.events, self.last_seq, self.closed, self.metadata)


class PlainStore:
    """Sessions by name, and every event id that was ever given out."""

    def __init__(self, max_events: int) -> None:
        self.sessions: dict[str, PlainSession] = {}
        self.ids: dict[str, tuple[str, Any]] = {}
        self._max_events = max_events

    def live(self, name: str, now_us: int) -> PlainSession | None:
        """The session, or None; an expired one is dropped."""
        session = self.sessions.get(name)
        if session is not None and session.expired(now_us):
            del self.sessions[name]
            return None
        return session

    def change(self, name: str, now_us: int, change: Callable[[PlainSession], Any]) -> Any:
        """Apply a write that was acknowledged."""
        session = self.sessions[name]
        result = change(session)
        session.cap(self._max_events)
        session.active_us = session.stored_active_us = max(session.active_us, now_us)
        return result

    def changed(self, name: str, change: Callable[[PlainSession], Any]) -> PlainSession:
        """A copy of the session with a write that may have happened."""
        session = copy.deepcopy(self.sessions[name])
        change(session)
        session.cap(self._max_events)
        return session

    def note_id(self, event_id: str, stream: str, data: Any) -> None:
        """An id means one event, for ever."""
        known = self.ids.setdefault(event_id, (stream, data))
        assert known == (stream, data), f"id {event_id} was {known}, is now {(stream, data)}"
