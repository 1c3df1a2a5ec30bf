"""Journals: items that carry one flush's writes of many sessions. What is in them, and how it is folded into heads.

Everything here is pure. A journal is a ring of `SLOTS` items; the one at position p (1, 2, 3, …) takes the
slot of position p - `SLOTS`. Its owner alone puts entries, one position after the other. An *end* at a position
that the owner has not got to yet ends the journal: it never goes past it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
from msgspec import structs

from holdfast.backends.base import Outcome, SessionWrite, Status
from holdfast.backends.dynamodb.items import (
    SHARDS,
    Item,
    Mark,
    PackedEvent,
    Stored,
    key_of,
    marks_with,
    packed_bytes,
)
from holdfast.backends.dynamodb.plan import Flush, applied_before, inline_state, pack
from holdfast.backends.rules import advance, judge
from holdfast.errors import SchemaError

__all__ = [
    "AHEAD",
    "ENTRY_BYTES",
    "LIVE",
    "SLOTS",
    "SLOT_BYTES",
    "TAIL_BYTES",
    "Entry",
    "Ring",
    "Slot",
    "draft",
    "end_item",
    "entry_bytes",
    "fold",
    "journal_of",
    "partition",
    "position_of",
    "reasons_of",
    "slot_item",
    "slot_key",
    "with_entry",
]

SLOTS: Final = 32
AHEAD: Final = 8
"""Slots whose entries are in the heads already: whoever ends the journal of a busy owner may use them."""
LIVE: Final = SLOTS - AHEAD
"""Positions that may have entries that are not in the heads."""
ENTRY_BYTES: Final = 4_096
SLOT_BYTES: Final = 131_072
TAIL_BYTES: Final = 8_192
"""Events that a session may have in a journal; then they are copied to an item of their own."""

_PARTITION: Final = " journal "
"""No session's: an id has no space in it."""
_SWEPT_AFTER_S: Final = 86_400
"""Of a journal's life; its owner gives it up long before."""
_END_S: Final = 7 * 86_400
"""How much longer an end stays: an owner that was stopped and wakes up finds it."""
_EVENT_BYTES: Final = 16

_encode: Final = msgspec.msgpack.Encoder().encode


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One write of one session: what it changes of the head."""

    id: str
    incarnation: int
    rev: int
    """It applies to the revision before it, and to no other."""
    active_us: int
    version: int
    first_seq: int
    events: list[PackedEvent]
    state: dict[str, tuple[bytes, int]] | None = None
    """All that is in the head, if it changes."""


class Slot(NamedTuple):
    """What is put at one position."""

    lane: bytes
    flush: int
    at_s: int
    entries: list[Entry]


_decode_slot: Final = msgspec.msgpack.Decoder(tuple[bytes, int, int, list[Entry]]).decode
_decode_reasons: Final = msgspec.msgpack.Decoder(list[str]).decode


# --- items -------------------------------------------------------------------


def partition(journal: str) -> str:
    return _PARTITION + journal


def journal_of(item: Item) -> str:
    """From its partition key."""
    return str(item["pk"]["S"]).removeprefix(_PARTITION)


def slot_key(journal: str, position: int) -> Item:
    return key_of(partition(journal), f"{position % SLOTS:02}")


def slot_item(journal: str, position: int, created_s: int, slot: Slot) -> Item:
    """The same index keys at each position, so that overwriting costs the index nothing."""
    item = slot_key(journal, position)
    item["p"] = {"N": str(position)}
    item["e"] = {"S": f"X{crc32(journal.encode()) % SHARDS}"}
    item["u"] = {"N": str(created_s + _SWEPT_AFTER_S)}
    item["d"] = {"B": _encode(slot)}
    return item


def end_item(journal: str, position: int, due_s: int, reasons: Sequence[str]) -> Item:
    """``reasons``: whose ids made somebody end it. ``due_s``: when it would have been swept."""
    item = slot_key(journal, position)
    item["p"] = {"N": str(position)}
    item["x"] = {"B": _encode(list(reasons))}
    item["ttl"] = {"N": str(due_s + _END_S)}
    return item


def position_of(item: Item) -> int:
    return int(item["p"]["N"])


def reasons_of(item: Item) -> list[str]:
    """Of an end."""
    return _decode_reasons(item["x"]["B"])


# --- the ring, as read -------------------------------------------------------


class Ring(NamedTuple):
    """All slots as one query has found them, which need not be at one moment."""

    items: dict[int, Item]
    """By position."""
    entries: dict[str, list[tuple[int, Slot, Entry]]]
    """By session, by ascending position."""

    @classmethod
    def of(cls, items: Iterable[Item]) -> Ring:
        """Raises: `SchemaError`."""
        try:
            found = {position_of(item): item for item in items}
            entries: dict[str, list[tuple[int, Slot, Entry]]] = {}
            for position in sorted(found):
                if "d" in found[position]:
                    slot = Slot(*_decode_slot(found[position]["d"]["B"]))
                    for entry in slot.entries:
                        entries.setdefault(entry.id, []).append((position, slot, entry))
        except (KeyError, ValueError) as exc:
            raise SchemaError("the table has an item of a journal that is damaged") from exc
        return cls(found, entries)

    @property
    def last(self) -> int:
        """The highest position that the owner was seen to have got to."""
        return max((position for position, item in self.items.items() if "d" in item), default=0)

    @property
    def is_ended(self) -> bool:
        """Whether the position that the owner would take next is an end's. What has been read may still be torn."""
        return any("x" in item and position == self.last + 1 for position, item in self.items.items())

    @property
    def due_s(self) -> int | None:
        return next((int(item["u"]["N"]) for item in self.items.values() if "u" in item), None)


def fold(stored: Stored, ring: Ring) -> Stored:
    """The head with what the ring adds to it, each entry upon the revision that it was made for.

    The head was read after the ring. So of its entries those that were committed before the ring was read are
    all there: no slot is overwritten before the heads have what it says. One that came meanwhile may be missing;
    what lies behind that does not fit, and is left out.
    """
    assert stored.place is not None
    current = stored
    for position, slot, entry in ring.entries.get(stored.id, ()):
        fits = position > stored.place.position and entry.incarnation == stored.incarnation
        if fits and entry.rev == current.rev + 1:
            current = with_entry(current, entry, slot)
    return current


def with_entry(stored: Stored, entry: Entry, slot: Slot) -> Stored:
    """The head after one entry more."""
    record = stored.record
    last_seq = record.last_seq + len(entry.events)
    tail = record.tail + entry.events
    if entry.first_seq > last_seq - len(tail) + 1:
        tail = tail[len(tail) - (last_seq + 1 - entry.first_seq) :]
    mark = Mark(
        slot.lane, slot.flush, entry.rev, slot.at_s, record.version, record.last_seq, record.first_seq, entry.first_seq
    )
    after = structs.replace(
        record,
        active_us=entry.active_us,
        first_seq=entry.first_seq,
        last_seq=last_seq,
        version=entry.version,
        state=record.state if entry.state is None else entry.state,
        tail=tail,
        marks=marks_with(record.marks, mark),
    )
    return stored._replace(rev=entry.rev, record=after, behind=stored.item_rev)


# --- writes ------------------------------------------------------------------


def draft(found: Stored, write: SessionWrite, flush: Flush) -> Entry | Outcome | None:
    """The entry for a write; an outcome if it is refused, or was applied before; None: it needs the head itself."""
    before_now = applied_before(found, flush)
    if before_now is not None:
        return before_now
    head = found.head
    status = judge(head, write)
    if status is not Status.COMMITTED or head is None:
        return Outcome(status)
    state: dict[str, tuple[bytes, int]] | None = None
    if write.sets or write.removes:
        state = inline_state(found, head, write)
        if state is None:
            return None
    after = advance(head, write, flush.max_events)
    events = [pack(event) for event in write.events]
    return Entry(
        found.id, found.incarnation, found.rev + 1, after.active_us, after.version, after.first_seq, events, state
    )


def entry_bytes(entry: Entry) -> int:
    """About what it takes."""
    size = sum([len(event.raw) + len(event.stream) + len(event.type) + _EVENT_BYTES for event in entry.events])
    return size + len(entry.id) + 48 + (0 if entry.state is None else packed_bytes(entry.state))
