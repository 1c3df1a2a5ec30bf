"""One atomic unit over state and events, collected by the user and committed at once."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.actors.unit import Unit
from holdfast.backends.base import NewEvent
from holdfast.clock import Clock
from holdfast.errors import InvalidInput
from holdfast.model import Durability, Event
from holdfast.supervisor.checks import Checks
from holdfast.waiting import Ack

__all__ = ["EVENT_OVERHEAD", "EventData", "UnitOfWork", "numbered"]

EVENT_OVERHEAD = 64
"""What an event counts beyond its data, so that a million empty ones are not free."""


class EventData(msgspec.Struct, frozen=True):
    """One event for `Session.append_many`: its data, and what else differs from the defaults."""

    data: Any
    type: str = "message"
    stream: str = ""
    retry_ms: int | None = None


class UnitOfWork:
    """Collects writes for `Session.unit`. Each is checked when it is added; none is stored before the end.

    Sets and removes of a key apply in the order given; the last one wins.
    """

    def __init__(self, checks: Checks, clock: Clock) -> None:
        self._checks = checks
        self._clock = clock
        self._sets: dict[str, bytes] = {}
        self._removes: set[str] = set()
        self._cleared = False
        self._events: list[NewEvent] = []
        self._metadata: bytes | None = None
        self._close = False
        self._size = 0
        self._sealed = False
        self.events: list[Event] = []
        """After the commit: the appended events, with their ids."""

    def set(self, key: str, value: Any) -> None:
        """Raises: `InvalidInput` (`NotJSON`, `LimitExceeded`)."""
        raw = self._checks.value(self._checks.key(key), value)
        self._grow(len(key) + len(raw))
        self._removes.discard(key)
        self._sets[key] = raw

    def remove(self, key: str) -> None:
        """Removing a missing key is fine."""
        self._grow(len(self._checks.key(key)))
        self._sets.pop(key, None)
        self._removes.add(key)

    def clear(self) -> None:
        """Remove every key, those set by this unit so far included."""
        self._grow(0)
        self._sets.clear()
        self._removes.clear()
        self._cleared = True

    def append(self, data: Any, *, type: str = "message", stream: str = "", retry_ms: int | None = None) -> None:
        """Raises: `InvalidInput` (`NotJSON`, `LimitExceeded`)."""
        event = self._checks.event(data, stream, type, retry_ms, self._clock.now_us())
        self._grow(len(event.raw) + EVENT_OVERHEAD)
        self._events.append(event)

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the session's metadata."""
        self._grow(0)
        self._metadata = self._checks.metadata(metadata)

    def close(self) -> None:
        """Close the session with this unit: it can be read afterwards, not written."""
        self._grow(0)
        self._close = True

    def _grow(self, size: int) -> None:
        if self._sealed:
            raise InvalidInput("the unit's block has ended: what is added now would not be stored")
        self._checks.unit(self._size + size, len(self._events), self._keys)
        self._size += size

    @property
    def _keys(self) -> int:
        return len(self._sets) + len(self._removes)

    def seal(self) -> None:
        """The block has ended: nothing can be added any more."""
        self._sealed = True

    @property
    def is_empty(self) -> bool:
        return not (
            self._sets or self._removes or self._cleared or self._events or self._close or self._metadata is not None
        )

    def build(self, durability: Durability, ack: Ack | None) -> Unit:
        """The unit for the mailbox."""
        self._checks.unit(self._size, len(self._events), self._keys)
        if self._cleared and self._removes:
            self._removes.clear()
        return Unit(
            accepted_us=self._clock.now_us(),
            size=self._size + len(self._metadata or b""),
            durability=durability,
            ack=ack,
            keys=self._keys,
            cleared=self._cleared,
            sets=self._sets or None,
            removes=self._removes or None,
            events=self._events or None,
            metadata=self._metadata,
            close=self._close,
        )

    @staticmethod
    def event_data(item: Any) -> EventData:
        """An item of `Session.append_many` as `EventData`."""
        if isinstance(item, EventData):
            return item
        if isinstance(item, Event):
            raise InvalidInput("an Event is one that is stored already; pass its data, or EventData")
        return EventData(item)


def numbered(unit: Unit, session_id: str, incarnation: int) -> list[Event]:
    """The events of a settled unit, as they stand in the log (``seq`` 0: not settled yet)."""
    first_seq = unit.first_seq
    return [
        event.numbered(session_id, incarnation, first_seq + index if first_seq else 0)
        for index, event in enumerate(unit.events or ())
    ]
