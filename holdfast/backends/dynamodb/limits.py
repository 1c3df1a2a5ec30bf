"""What one transaction can hold, and the refusal, by name, of what it cannot."""

from __future__ import annotations

from typing import Final

from holdfast.backends.base import SessionWrite
from holdfast.errors import Rejected

__all__ = [
    "CHUNK_BYTES",
    "MAX_EVENT_BYTES",
    "MAX_UNIT_BYTES",
    "MAX_UNIT_KEYS",
    "MAX_VALUE_BYTES",
    "check_size",
]

MAX_VALUE_BYTES: Final = 404_000
"""An item has up to 409,600 bytes; the rest is for keys and names."""
MAX_EVENT_BYTES: Final = 404_000
MAX_UNIT_BYTES: Final = 3_500_000
"""A transaction has up to 4,194,304 bytes."""
MAX_UNIT_KEYS: Final = 70
"""A transaction has up to 100 items: the head, a key set or removed each, and up to 26 of events."""
CHUNK_BYTES: Final = 300_000
"""Events in one item; one event alone may have more."""

_MAX_METADATA_BYTES: Final = 300_000
_MAX_OWNER_BYTES: Final = 2_000
"""An index key has up to 2,048 bytes."""
_MAX_NAME_BYTES: Final = 4_000
"""Stream and type of an event, or a key."""
_ITEM_OVERHEAD_BYTES: Final = 300
_EVENT_OVERHEAD_BYTES: Final = 32


def check_size(write: SessionWrite) -> None:
    """Refuse what no transaction could hold, whatever the session is like; before anything is sent.

    Raises: `Rejected`, which names the limit.
    """
    head = write.create
    metadata = write.metadata if head is None else head.metadata
    _check("the metadata", len(metadata or b""), _MAX_METADATA_BYTES)
    if head is not None and head.owner is not None:
        _check("the owner", len(head.owner.encode()), _MAX_OWNER_BYTES)
    _check("the unit", len(write.sets) + len(write.removes), MAX_UNIT_KEYS, "keys set or removed")
    size = len(metadata or b"")
    for key, (raw, _) in write.sets.items():
        _check(f"state[{key!r:.100}]", len(raw), MAX_VALUE_BYTES)
        _check("a key", len(key.encode()), _MAX_NAME_BYTES)
        size += len(raw) + len(key.encode()) + _ITEM_OVERHEAD_BYTES
    for event in write.events:
        _check("event data", len(event.raw), MAX_EVENT_BYTES)
        name_bytes = 4 * (len(event.stream) + len(event.type))
        _check("an event's stream and type", name_bytes, _MAX_NAME_BYTES)
        size += len(event.raw) + name_bytes + _EVENT_OVERHEAD_BYTES
    _check("the unit", size, MAX_UNIT_BYTES + _MAX_METADATA_BYTES)


def _check(what: str, actual: int, limit: int, unit: str = "bytes") -> None:
    if actual > limit:
        raise Rejected(f"{what} has {actual:,} {unit}; on DynamoDB the limit is {limit:,} {unit}")
