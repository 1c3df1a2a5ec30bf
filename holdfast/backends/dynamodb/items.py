"""The items of the table: how they are keyed, packed, indexed and measured.

Everything here is pure. The package's docstring has the design of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from holdfast.backends.base import Head, NewEvent, Outcome, StateValue, Status
from holdfast.errors import SchemaError
from holdfast.model import Event

__all__ = [
    "HEAD_KEY",
    "SHARDS",
    "EventChunk",
    "Item",
    "Mark",
    "PackedEvent",
    "Place",
    "Record",
    "Stored",
    "decode_chunk",
    "decode_head",
    "decode_state",
    "due_of",
    "event_key",
    "event_prefix",
    "item_bytes",
    "key_of",
    "lane_name",
    "marks_are_lost",
    "marks_with",
    "new_record",
    "packed_bytes",
    "shard_of",
    "state_item",
    "state_key",
    "state_prefix",
]

Item = dict[str, dict[str, Any]]
"""Attributes, as the low-level API has them."""

FORMAT: Final = 1
"""Of head items. One that is newer is refused."""

HEAD_KEY: Final = "H"
SHARDS: Final = 8
"""Partitions of each index over all sessions, so that creations are not bound by the throughput of one."""

_SEQ_DIGITS: Final = 19
_TTL_MARGIN_S: Final = 3_600
"""Native TTL comes so much later than the expiry: the instances' clocks may differ, and a flush may be late."""

_encode: Final = msgspec.msgpack.Encoder().encode


class PackedEvent(NewEvent, array_like=True, frozen=True, gc=False):
    """A `NewEvent` that is packed without its field names."""


class Mark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The last flush that a writer's lane applied to this item, and what came of it."""

    lane: bytes
    flush: int
    rev: int
    """Of the item as that flush left it."""
    at_s: int
    base_version: int
    base_seq: int
    base_first_seq: int
    first_seq: int

    @property
    def outcome(self) -> Outcome:
        return Outcome(Status.COMMITTED, self.base_version, self.base_seq, self.base_first_seq, self.first_seq)


_MAX_MARKS: Final = 8
_MARK_AGE_S: Final = 600
"""Longer than a flush is tried. DynamoDB's own idempotency tokens live as long."""


def marks_with(marks: list[Mark], mark: Mark) -> list[Mark]:
    """With ``mark`` in place of its lane's last; old ones of others go."""
    kept = [other for other in marks if other.lane != mark.lane and other.at_s > mark.at_s - _MARK_AGE_S]
    return [*kept[1 - _MAX_MARKS :], mark]


def marks_are_lost(marks: list[Mark], since_rev: int) -> bool:
    """Whether so many lanes have written since ``since_rev`` that one's mark may have had to go."""
    return len(marks) >= _MAX_MARKS and all(mark.rev > since_rev for mark in marks)


class Record(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """What a head item packs into its attribute ``d``."""

    created_us: int
    active_us: int
    ttl_us: int | None
    deadline_us: int | None
    closed: bool
    dead: bool = False
    """A tombstone: the session was deleted or has expired. It remembers the flushes that got it here."""
    metadata: bytes
    first_seq: int
    last_seq: int
    version: int
    trimmed_seq: int
    """Events below it have been counted as trimmed."""
    generation: int = 0
    """Of the state: ``cleared`` begins a new one, and what is of an older one is not there."""
    logged: bool = False
    """There may be event items."""
    scattered: bool = False
    """There may be state items of this generation. A key is in one or in ``state``, never in both."""
    cut_rev: int = 0
    """Revision of the head with the last write that took state items away."""
    debris: bool = False
    """There may be items of an earlier incarnation or generation, or of a dead session."""
    state: dict[str, tuple[bytes, int]]
    tail: list[PackedEvent]
    """The newest events, ending with ``last_seq``."""
    marks: list[Mark]

    @property
    def tail_seq(self) -> int:
        """Sequence number of the first event in ``tail``; ``last_seq + 1`` if it is empty."""
        return self.last_seq + 1 - len(self.tail)


class Place(NamedTuple):
    """Where a session's writes go on: in a journal, at positions above this one."""

    journal: str
    position: int


class Stored(NamedTuple):
    """A head: a session's, or a tombstone. As the item has it, or with what a journal adds to that."""

    id: str
    incarnation: int
    rev: int
    """Counts the writes of this item. With the incarnation it names one state of it, once and for all."""
    owner: str | None
    due_s: int | None
    """Look then whether it has expired, or can be forgotten (dead). Never later than that is so; None: never."""
    record: Record
    place: Place | None = None
    """None: the item has all."""
    behind: int | None = None
    """The item's own revision, if a journal has later ones."""

    @property
    def item_rev(self) -> int:
        return self.rev if self.behind is None else self.behind

    @property
    def head(self) -> Head | None:
        """None for a tombstone."""
        record = self.record
        if record.dead:
            return None
        return Head(
            id=self.id,
            incarnation=self.incarnation,
            owner=self.owner,
            created_us=record.created_us,
            active_us=record.active_us,
            ttl_us=record.ttl_us,
            deadline_us=record.deadline_us,
            status="closed" if record.closed else "active",
            metadata=record.metadata,
            first_seq=record.first_seq,
            last_seq=record.last_seq,
            version=record.version,
        )

    @property
    def state(self) -> dict[str, StateValue]:
        """As much of the state as is in the head item."""
        return {key: StateValue(*value) for key, value in self.record.state.items()}

    def item(self) -> Item:
        """As it is written. Ordinary writes leave its index keys as they are, and so cost the indexes nothing."""
        record, shard = self.record, shard_of(self.id)
        item = key_of(self.id, HEAD_KEY)
        item["i"] = {"N": str(self.incarnation)}
        item["r"] = {"N": str(self.rev)}
        item["d"] = {"B": bytes([FORMAT]) + _encode(record)}
        if not record.dead:
            item["l"] = {"S": f"L{shard}"}
            if self.owner is not None:
                item["o"] = {"S": f"={self.owner}"}
        if self.due_s is not None:
            kind = "D" if not record.dead else "G" if record.debris else "T"
            item["e"] = {"S": f"{kind}{shard}"}
            item["u"] = {"N": str(self.due_s)}
        if self.place is not None:
            item["g"] = {"S": f"{self.place.journal} {self.place.position}"}
        return _with_ttl(item, self._native_ttl_s)

    @property
    def _native_ttl_s(self) -> int | None:
        """When DynamoDB may remove the item by itself. Never while that would leave other items behind."""
        record = self.record
        if record.debris or self.place is not None:  # its touches are in the journal
            return None
        if record.dead:
            return None if self.due_s is None else self.due_s + _TTL_MARGIN_S
        if record.logged or record.scattered:
            return self.part_ttl_s
        due_s = due_of(self.head)
        return None if due_s is None else due_s + _TTL_MARGIN_S

    @property
    def part_ttl_s(self) -> int | None:
        """The same for event and state items. They are written once, so only an absolute lifetime will do."""
        deadline_us = self.record.deadline_us
        return None if deadline_us is None else deadline_us // 1_000_000 + _TTL_MARGIN_S


def new_record(head: Head) -> Record:
    """Of a session that is created now."""
    return Record(
        created_us=head.created_us,
        active_us=head.active_us,
        ttl_us=head.ttl_us,
        deadline_us=head.deadline_us,
        closed=head.status == "closed",
        metadata=head.metadata,
        first_seq=head.first_seq,
        last_seq=head.last_seq,
        version=head.version,
        trimmed_seq=head.first_seq,
        state={},
        tail=[],
        marks=[],
    )


def due_of(head: Head | None) -> int | None:
    """The second in which the session expires, if it does."""
    expires_us = None if head is None else head.expires_us
    return None if expires_us is None else expires_us // 1_000_000


def shard_of(session_id: str) -> int:
    return crc32(session_id.encode()) % SHARDS


def lane_name(writer: str, lane: int) -> bytes:
    """A writer's lane, in few bytes."""
    return blake2b(f"{lane} {writer}".encode(), digest_size=8).digest()


def _with_ttl(item: Item, ttl_s: int | None) -> Item:
    if ttl_s is not None:
        item["ttl"] = {"N": str(ttl_s)}
    return item


# --- keys --------------------------------------------------------------------


def key_of(session_id: str, sort_key: str) -> Item:
    return {"pk": {"S": session_id}, "sk": {"S": sort_key}}


def event_key(incarnation: int, last_seq: int) -> str:
    """Of the event item that ends with ``last_seq``: so all behind a cursor is one range of keys."""
    return f"{event_prefix(incarnation)}{last_seq:0{_SEQ_DIGITS}}"


def event_prefix(incarnation: int) -> str:
    return f"E#{incarnation:x}#"


def state_prefix(incarnation: int, generation: int) -> str:
    return f"S#{incarnation:x}#{generation}#"


def state_key(incarnation: int, generation: int, key: str) -> str:
    """With the key's hash: a key itself may be longer than a sort key, or empty."""
    return state_prefix(incarnation, generation) + blake2b(key.encode(), digest_size=16).hexdigest()


# --- packing -----------------------------------------------------------------

_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_state: Final = msgspec.msgpack.Decoder(tuple[str, int, bytes, int]).decode
_decode_chunk: Final = msgspec.msgpack.Decoder(tuple[int, list[PackedEvent]]).decode


def decode_head(item: Item) -> Stored:
    """Raises: `SchemaError` if a newer version wrote it, or it is no head."""
    try:
        packed = memoryview(item["d"]["B"])
        if packed[0] > FORMAT:
            raise SchemaError(
                f"a session has format {packed[0]}; this version of Holdfast knows up to {FORMAT}",
                found=packed[0],
                supported=FORMAT,
            )
        return Stored(
            id=item["pk"]["S"],
            incarnation=int(item["i"]["N"]),
            rev=int(item["r"]["N"]),
            owner=item["o"]["S"][1:] if "o" in item else None,
            due_s=int(item["u"]["N"]) if "u" in item else None,
            record=_decode_record(packed[1:]),
            place=_place(item["g"]["S"]) if "g" in item else None,
        )
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        if isinstance(exc, SchemaError):
            raise
        raise SchemaError("the table has a head item that is damaged, or another program's") from exc


def _place(text: str) -> Place:
    journal, _, position = text.partition(" ")
    return Place(journal, int(position))


def state_item(head: Stored, key: str, raw: bytes, version: int) -> Item:
    item = key_of(head.id, state_key(head.incarnation, head.record.generation, key))
    item["d"] = {"B": _encode((key, version, raw, head.rev))}
    return _with_ttl(item, head.part_ttl_s)


def decode_state(item: Item) -> tuple[str, StateValue, int]:
    """Key, value, and the revision of the head that came with it."""
    key, version, raw, rev = _decode_state(item["d"]["B"])
    return key, StateValue(raw, version), rev


class EventChunk(NamedTuple):
    """Committed events with consecutive seqs: what an event item holds, or a head's tail.

    Event items may overlap, when two instances copy a tail at once; what two of them hold is the same.
    """

    first_seq: int
    events: list[PackedEvent]

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.events) - 1

    def item(self, head: Stored) -> Item:
        item = key_of(head.id, event_key(head.incarnation, self.last_seq))
        item["d"] = {"B": _encode((self.first_seq, self.events))}
        return _with_ttl(item, head.part_ttl_s)

    def between(self, start: int, end: int) -> EventChunk:
        """Its part with seqs from ``start`` to ``end``, both included."""
        low, high = max(start - self.first_seq, 0), max(end - self.first_seq + 1, 0)
        return EventChunk(self.first_seq + low, self.events[low:high])

    def numbered(self, head: Stored) -> Iterator[Event]:
        for seq, event in enumerate(self.events, self.first_seq):
            yield event.numbered(head.id, head.incarnation, seq)


def decode_chunk(item: Item) -> EventChunk:
    return EventChunk(*_decode_chunk(item["d"]["B"]))


# --- sizes -------------------------------------------------------------------


def packed_bytes(value: object) -> int:
    """What ``value`` takes within an item."""
    return len(_encode(value))


def item_bytes(item: Item) -> int:
    """An item's size as it is charged and limited: names and values; numbers at two digits a byte."""
    return sum(len(name) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: dict[str, Any]) -> int:
    ((kind, content),) = value.items()
    if kind == "N":
        return len(content) // 2 + 2
    return len(content.encode()) if kind == "S" else len(content)
