"""What one write makes of the head that it finds: decided here, purely; sent by `commit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from holdfast.backends.base import Head, NewEvent, Outcome, SessionWrite, Status
from holdfast.backends.dynamodb.items import (
    EventChunk,
    Item,
    Mark,
    PackedEvent,
    Record,
    Stored,
    due_of,
    item_bytes,
    key_of,
    marks_with,
    new_record,
    packed_bytes,
    state_item,
    state_key,
)
from holdfast.backends.dynamodb.limits import CHUNK_BYTES
from holdfast.backends.rules import advance, judge, outcome

__all__ = ["Flush", "Plan", "applied_before", "decide", "entombed", "inline_state", "pack", "rewritten", "written_out"]

INLINE_STATE_BYTES: Final = 512
"""Small values stay in the head, up to here: more would make every append dearer."""
UNIT_BYTES: Final = 1_024
"""A write costs one unit for so much of an item, begun or full."""
_TAIL_ROOM_BYTES: Final = 256
TAIL_BYTES: Final = 3_072
"""Events of one flush that make more than this go into an event item at once."""

TOMBSTONE_S: Final = 3_600


class Flush(NamedTuple):
    """What all writes of a batch share."""

    lane: bytes
    number: int
    now_s: int
    max_events: int | None


class Plan(NamedTuple):
    """What to send, if the head is as it was found: first ``copy``, then the head with ``puts`` and ``deletes``."""

    outcome: Outcome
    head: Stored
    copy: Item | None
    """The tail as an event item. Its events are committed, so that to put it changes nothing that can be read."""
    puts: Sequence[Item]
    deletes: Sequence[Item]
    """Keys."""


def decide(found: Stored | None, write: SessionWrite, flush: Flush) -> Plan | Outcome:
    """The plan of a write; an outcome alone if it is refused, or if this very flush was applied before."""
    before_now = None if found is None else applied_before(found, flush)
    if before_now is not None:
        return before_now
    head_found = None if found is None else found.head
    status = judge(head_found, write)
    if status is not Status.COMMITTED:
        return Outcome(status)
    before = write.create or head_found
    assert before is not None
    after = advance(before, write, flush.max_events)
    result = outcome(before, after)
    if write.delete:
        return Plan(result, _marked(_deleted(found, write, flush), flush, result), None, (), ())
    return _Draft(found, write, before, after).plan(flush, result)


def applied_before(found: Stored, flush: Flush) -> Outcome | None:
    """The outcome of this very flush, if the head tells of it."""
    for mark in found.record.marks:
        if mark.lane == flush.lane and mark.flush == flush.number:
            return mark.outcome
    return None


def inline_state(found: Stored, head: Head, write: SessionWrite) -> dict[str, tuple[bytes, int]] | None:
    """The state in the head after ``write``; None if the write needs other items than the head."""
    draft = _Draft(found, write, head, head)
    state = draft.with_state(found).record.state
    return None if draft.has_items else state


def written_out(found: Stored) -> Plan:
    """The head brought up to date with its journal, which it leaves: upkeep, which leaves no mark."""
    head = found.head
    assert head is not None
    nothing = SessionWrite(
        id=found.id,
        incarnation=found.incarnation,
        accepted_us=0,
        active_us=0,
        version=head.version,
        base_seq=head.last_seq,
    )
    return _Draft(found, nothing, head, head).with_events(rewritten(found, tail=[]), outcome(head, head))


class _Draft:
    """A head on its way from ``found`` to what ``write`` makes of it."""

    def __init__(self, found: Stored | None, write: SessionWrite, before: Head, after: Head) -> None:
        self._write = write
        self._after = after
        self._found = found
        is_new = write.create is not None or found is None
        self._record: Record = new_record(before) if is_new or found is None else found.record
        self._debris = found is not None and (_has_parts(found.record) if is_new else found.record.debris)
        self._base = before
        self._puts: list[Item] = []
        self._deletes: list[Item] = []

    @property
    def has_items(self) -> bool:
        """Beside the head."""
        return bool(self._puts or self._deletes)

    def plan(self, flush: Flush, result: Outcome) -> Plan:
        """State first: what of it moves out makes a transaction, and that decides where the events go."""
        after = self._after
        record = msgspec.structs.replace(
            self._record,
            active_us=after.active_us,
            closed=after.status == "closed",
            metadata=after.metadata,
            first_seq=after.first_seq,
            last_seq=after.last_seq,
            version=after.version,
            tail=[],
        )
        stored = self.with_state(self._stored(record, after, _first_rev(flush)))
        stored = _marked(stored, flush, result)
        return self.with_events(stored, result)

    def _stored(self, record: Record, after: Head, first_rev: int) -> Stored:
        found = self._found
        rev = first_rev if found is None else found.rev + 1
        if self._write.create is not None or found is None:
            marks = [] if found is None else found.record.marks
            record = msgspec.structs.replace(record, debris=self._debris, marks=marks)
            return Stored(after.id, after.incarnation, rev, after.owner, due_of(after), record)
        return Stored(found.id, found.incarnation, rev, found.owner, found.due_s, record)

    def with_state(self, stored: Stored) -> Stored:
        write, record = self._write, stored.record
        if not (write.cleared or write.sets or write.removes):
            return stored
        if write.cleared:
            record = msgspec.structs.replace(
                record,
                generation=record.generation + record.scattered,
                debris=record.debris or record.scattered,
                scattered=False,
                state={},
            )
            stored = stored._replace(record=record)
        state = dict(record.state)
        for key in write.removes:
            if state.pop(key, None) is None and record.scattered:
                self._deletes.append(key_of(stored.id, state_key(stored.incarnation, record.generation, key)))
        moved = self._set(stored, state)
        self._puts += [state_item(stored, key, *value) for key, value in moved.items()]
        record = msgspec.structs.replace(record, state=state, scattered=record.scattered or bool(moved))
        if self._deletes or write.cleared:
            record = msgspec.structs.replace(record, cut_rev=stored.rev)
        return stored._replace(record=record)

    def _set(self, stored: Stored, state: dict[str, tuple[bytes, int]]) -> Mapping[str, tuple[bytes, int]]:
        """Into ``state`` goes what fits and can have no item of its own; the rest is returned."""
        room = INLINE_STATE_BYTES - packed_bytes(state)
        moved: dict[str, tuple[bytes, int]] = {}
        for key, (raw, offset) in self._write.sets.items():
            value = (raw, self._base.version + offset)
            old = state.pop(key, None)
            room += 0 if old is None else packed_bytes({key: old})
            size = packed_bytes({key: value})
            if size <= room and (old is not None or not stored.record.scattered):
                state[key] = value
                room -= size
            else:
                moved[key] = value
        return moved

    def with_events(self, stored: Stored, result: Outcome) -> Plan:
        """Where they go by what that costs: see docs/adr/0009."""
        record, base = stored.record, self._record
        kept_from = record.first_seq
        old = EventChunk(base.tail_seq, base.tail).between(kept_from, base.last_seq)
        new = EventChunk(base.last_seq + 1, [pack(event) for event in self._write.events])
        new = new.between(kept_from, record.last_seq)
        copy: Item | None = None
        empty_bytes = item_bytes(stored.item())
        soft = -(-(empty_bytes + _TAIL_ROOM_BYTES) // UNIT_BYTES) * UNIT_BYTES - empty_bytes
        old_bytes, new_bytes = packed_bytes(old.events), packed_bytes(new.events)
        in_transaction = self.has_items
        may_stay = soft + TAIL_BYTES if self._found is None or self._found.behind is None else soft
        if old_bytes + new_bytes <= soft or (not new.events and old_bytes <= may_stay):
            record = msgspec.structs.replace(record, tail=old.events + new.events)
        elif not in_transaction and new_bytes <= soft + TAIL_BYTES:
            if old.events and record.logged:
                copy = old.item(stored)
            elif old.events:  # the first: in the transaction that says so, else a crash might leave it to nobody
                self._puts.append(old.item(stored))
            record = msgspec.structs.replace(record, tail=new.events, logged=record.logged or bool(old.events))
        else:
            together = EventChunk(old.first_seq if old.events else new.first_seq, old.events + new.events)
            self._puts += [chunk.item(stored) for chunk in _chunks(together)]
            record = msgspec.structs.replace(record, logged=True)
        return Plan(result, stored._replace(record=record), copy, self._puts, self._deletes)


def _first_rev(flush: Flush) -> int:
    """Of an item where there is none: more than an earlier item of the same key can have got to."""
    return flush.now_s << 10


def pack(event: NewEvent) -> PackedEvent:
    return PackedEvent(event.stream, event.type, event.raw, event.retry_ms, event.time_us)


def _chunks(events: EventChunk) -> Iterator[EventChunk]:
    """In pieces that fit an item each."""
    start, size = 0, 0
    for index, event in enumerate(events.events):
        event_size = packed_bytes(event)
        if index > start and size + event_size > CHUNK_BYTES:
            yield EventChunk(events.first_seq + start, events.events[start:index])
            start, size = index, 0
        size += event_size
    yield EventChunk(events.first_seq + start, events.events[start:])


def _has_parts(record: Record) -> bool:
    """Whether there may be items beside the head."""
    return record.logged or record.scattered or record.debris


def _marked(stored: Stored, flush: Flush, result: Outcome) -> Stored:
    """With the mark of this flush."""
    mark = Mark(
        flush.lane, flush.number, stored.rev, flush.now_s,
        result.base_version, result.base_seq, result.base_first_seq, result.first_seq,
    )  # fmt: skip
    marks = marks_with(stored.record.marks, mark)
    return stored._replace(record=msgspec.structs.replace(stored.record, marks=marks))


def _deleted(found: Stored | None, write: SessionWrite, flush: Flush) -> Stored:
    if found is None or write.create is not None:  # created and deleted at once
        assert write.create is not None
        head = write.create
        rev = _first_rev(flush) if found is None else found.rev
        born = Stored(head.id, head.incarnation, rev, None, None, new_record(head))
        if found is not None:
            debris = _has_parts(found.record)
            born = born._replace(record=msgspec.structs.replace(born.record, debris=debris, marks=found.record.marks))
        return entombed(born, flush.now_s)
    return entombed(found, flush.now_s)


def entombed(stored: Stored, now_s: int) -> Stored:
    """The tombstone of a session. It says whether anything is left to sweep up."""
    record = msgspec.structs.replace(
        stored.record,
        dead=True,
        metadata=b"",
        state={},
        tail=[],
        logged=False,
        scattered=False,
        debris=_has_parts(stored.record),
    )
    return stored._replace(
        rev=stored.rev + 1, owner=None, due_s=now_s + TOMBSTONE_S, record=record, place=None, behind=None
    )


def rewritten(stored: Stored, **changes: object) -> Stored:
    """The next revision of a head, in no journal, with some fields changed: upkeep, which leaves no mark."""
    record = msgspec.structs.replace(stored.record, **changes)
    return stored._replace(rev=stored.rev + 1, record=record, place=None, behind=None)
