"""What to write, decided without I/O: how a session compares with its copy, and how it is cut into writes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from holdfast.backends.base import Capabilities, Head, NewEvent, SessionWrite, StateValue
from holdfast.config import WriterConfig
from holdfast.model import Event

__all__ = ["USED", "Assembly", "Bounds", "Diverged", "TooLarge", "Verdict", "compare", "state_difference"]


class Verdict(enum.Enum):
    """How a session's copy stands to the session."""

    ABSENT = "absent"
    SAME = "same"
    BEHIND = "behind"
    """An earlier state of it, or a part: to be copied on."""
    CUT_OFF = "cut off"
    """Behind, and the events that come next are gone at the source: to be copied anew."""
    CONFLICT = "conflict"


USED: Final = "it has been used at the target since it was copied"

_FIXED: Final = ("owner", "created_us", "ttl_us", "deadline_us")
"""What never changes in a session's life."""


def compare(source: Head, target: Head | None, now_us: int) -> tuple[Verdict, str]:
    """How ``target``, the row that has the id at the target, stands to ``source``; the reason of a conflict.

    A session's version, log and activity only ever grow. A copy that is ahead in any of them has had a life of its own.
    """
    if target is None:
        return Verdict.ABSENT, ""
    if target.incarnation != source.incarnation:
        expires_us = target.expires_us
        if expires_us is not None and expires_us <= now_us:
            return Verdict.ABSENT, ""  # creating replaces it
        return Verdict.CONFLICT, "the target has another session of this id"
    if target == source:
        return Verdict.SAME, ""
    for field in _FIXED:
        if getattr(target, field) != getattr(source, field):
            return Verdict.CONFLICT, f"the target has it with another {field.removesuffix('_us')}"
    if _is_ahead(source, target):
        return Verdict.CONFLICT, USED
    if target.version == source.version and _content(target) != _content(source):
        return Verdict.CONFLICT, "the target has the same version of it with other contents"
    return (Verdict.CUT_OFF if source.first_seq > target.last_seq + 1 else Verdict.BEHIND), ""


def _is_ahead(source: Head, target: Head) -> bool:
    grown = any(
        getattr(target, field) > getattr(source, field) for field in ("version", "last_seq", "first_seq", "active_us")
    )
    return grown or (target.status == "closed" and target.version != source.version)


def _content(head: Head) -> tuple[int, str, bytes]:
    return head.last_seq, head.status, head.metadata


def state_difference(
    source: Mapping[str, StateValue], target: Mapping[str, StateValue]
) -> tuple[list[str], list[tuple[str, StateValue]]]:
    """Keys to remove from the target, and those to set.

    Raises: `Diverged` if a key has been written at the target.
    """
    removed = [key for key in target if key not in source]
    changed = [(key, value) for key, value in source.items() if target.get(key) != value]
    for key, value in changed:
        if key in target and target[key].version >= value.version:
            raise Diverged
    return removed, changed


class Diverged(Exception):
    """The copy has had a life of its own."""


class TooLarge(Exception):
    """A part of a session that the target cannot hold; the message names it."""


class Bounds(NamedTuple):
    """What the target takes. ``write_items`` and ``write_bytes`` are how much one write is filled with."""

    write_items: int
    write_bytes: int
    max_value_bytes: int | None
    max_event_bytes: int | None
    max_unit_bytes: int | None

    @classmethod
    def of(cls, target: Capabilities, config: WriterConfig) -> Bounds:
        return cls(
            write_items=min(config.max_session_units, target.max_unit_keys or config.max_session_units),
            write_bytes=min(config.max_batch_bytes, target.max_unit_bytes or config.max_batch_bytes),
            max_value_bytes=target.max_value_bytes,
            max_event_bytes=target.max_event_bytes,
            max_unit_bytes=target.max_unit_bytes,
        )

    def take_all_events_of(self, source: Capabilities) -> bool:
        """Whether no event that ``source`` can hold is too large: then none has to be looked at beforehand."""
        if self.max_unit_bytes is not None:
            return False
        if self.max_event_bytes is None:
            return True
        return source.max_event_bytes is not None and source.max_event_bytes <= self.max_event_bytes

    def check_value(self, key: str, raw: bytes) -> None:
        """Raises: `TooLarge`."""
        what = f"state[{key!r:.100}]"
        _check(what, len(raw), self.max_value_bytes)
        _check(what, value_bytes(key, raw), self.max_unit_bytes)

    def check_event(self, event: Event) -> None:
        """Raises: `TooLarge`."""
        what = f"event {event.id}"
        _check(what, len(event.raw), self.max_event_bytes)
        _check(what, event_bytes(event), self.max_unit_bytes)


def _check(what: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise TooLarge(f"{what} has {size:,} bytes; the target takes {limit:,}")


def value_bytes(key: str, raw: bytes) -> int:
    """What a value counts against a write's bytes."""
    return len(key.encode()) + len(raw)


def event_bytes(event: Event) -> int:
    """What an event counts against a write's bytes."""
    return len(event.raw) + len(event.stream.encode()) + len(event.type.encode())


class Assembly:
    """Fills one write of a session after another; `take` gives one of several, `finish` the last or only one.

    Only the last brings the row to the source's version, status and first seq. Those before it raise the version by one
    each, so that each is fenced against all others: two copiers at once, or a client, can neither double an event nor
    mix with them. A session with more parts than versions therefore begins below version 0.
    """

    def __init__(self, source: Head, target: Head | None, bounds: Bounds, *, items: int, now_us: int) -> None:
        """``items``: how many keys and events are to come, at most."""
        self._source: Final = source
        self._bounds: Final = bounds
        self._now_us: Final = now_us
        self._items_left = items
        self._target = target
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        self._sets: dict[str, tuple[bytes, int]] = {}
        self._removes: list[str] = []
        self._events: list[NewEvent] = []
        self._items = self._bytes = 0

    @property
    def is_first(self) -> bool:
        """Nothing has been taken yet."""
        return self._taken == 0

    @property
    def has_versions(self) -> bool:
        """Whether the copy is so far behind in versions that each of the writes to come can have one."""
        return self._target is None or self._source.version - self._target.version > self._items_left

    def has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes fit, if only because there is nothing else."""
        bounds = self._bounds
        return self._items == 0 or (self._items < bounds.write_items and self._bytes + size <= bounds.write_bytes)

    def remove(self, key: str) -> None:
        self._removes.append(key)
        self._count(len(key.encode()))

    def set(self, key: str, value: StateValue) -> None:
        self._sets[key] = value
        self._count(value_bytes(key, value.raw))

    def append(self, event: Event) -> None:
        self._events.append(NewEvent(event.stream, event.type, event.raw, event.retry_ms, event.time_us))
        self._count(event_bytes(event))

    def _count(self, size: int) -> None:
        self._items += 1
        self._bytes += size

    def take(self) -> SessionWrite:
        """A write that is not the last. Only while `has_versions`."""
        target = self._target
        base = target or self._new_row(min(0, self._source.version - self._items_left - 1))
        write = self._write(base, create=base if target is None else None, units=1)
        self._target = msgspec.structs.replace(
            base, last_seq=base.last_seq + len(write.events), version=base.version + 1
        )
        self._items_left -= self._items
        self._taken += 1
        self._begin()
        return write

    def finish(self) -> SessionWrite:
        """The write after which the row is as the source's."""
        source, target = self._source, self._target
        base = target or self._new_row(0)
        write = self._write(base, create=base if target is None else None, units=source.version - base.version)
        write.floor_seq = source.first_seq if source.first_seq > base.first_seq else 0
        write.metadata = source.metadata if source.metadata != base.metadata else None
        write.close = source.status != base.status
        return write

    def _new_row(self, version: int) -> Head:
        source = self._source
        return msgspec.structs.replace(source, status="active", last_seq=source.first_seq - 1, version=version)

    def _write(self, base: Head, *, create: Head | None, units: int) -> SessionWrite:
        source = self._source
        return SessionWrite(
            id=source.id,
            incarnation=source.incarnation,
            # What is copied was accepted when the session lived; it may have lapsed at the target since.
            accepted_us=source.created_us if create is None else self._now_us,
            active_us=source.active_us,
            version=base.version,
            base_seq=base.last_seq,
            base_first_seq=base.first_seq,
            fenced=create is None and units > 0,
            units=units,
            create=create,
            sets={key: (raw, version - base.version) for key, (raw, version) in self._sets.items()},
            removes=self._removes,
            events=self._events,
        )

    @property
    def size(self) -> int:
        """Bytes of the write as filled so far."""
        return self._bytes
