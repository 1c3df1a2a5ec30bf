"""The owner's side of journals: which sessions are in which, and what it knows of them.

While a journal is open nobody else writes its members: whoever wants to ends it first, and then a put fails. So
the members' heads are known here, as those that are in the table with what the journal adds. Each session is held
(`holds`) by one piece of work at a time in this process; so no head is written while an entry for it is on its way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from holdfast.backends.dynamodb.cache import HeadCache
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.holds import Holds
from holdfast.backends.dynamodb.items import Item, Place, Stored
from holdfast.backends.dynamodb.journal import (
    LIVE,
    SLOTS,
    Entry,
    Slot,
    end_item,
    reasons_of,
    slot_item,
    slot_key,
    with_entry,
)
from holdfast.backends.dynamodb.plan import Flush
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, Unavailable

__all__ = ["JOINS_AFTER", "MEMBERS", "REST_S", "WRITTEN_OUT_AFTER", "Journal", "Journals", "Member", "Pending"]

WRITTEN_OUT_AFTER: Final = 16
"""Positions, after which a member's next write goes to its head."""
JOINS_AFTER = 2
"""Writes of a session here, with none elsewhere in between, before it joins a journal."""
REST_S = 60
"""How long a session stays out of journals, once another instance has ended one for its sake; doubled each time."""

MEMBERS: Final = 64
"""Sessions in one journal."""

_LONGEST_REST_S: Final = 3_600
_JOURNALS: Final = 64
_LIFE_S: Final = 43_200
"""An owner gives up a journal that is older. The janitor ends one of a day."""
_REMEMBERED: Final = 20_000


class Member:
    """A session in a journal, and its head as it is now."""

    __slots__ = ("due", "head", "in_doubt", "journal", "since", "tail_bytes")

    def __init__(self, journal: Journal, head: Stored, due: int) -> None:
        self.journal = journal
        self.head = head
        self.due = due
        """From this position on, its writes go to the head."""
        self.since = 0
        """The position of the first entry that is not in its head; 0: none."""
        self.tail_bytes = 0
        self.in_doubt = False
        """A write of the head is on its way, or may be: no entries until one has arrived."""


class Pending:
    """Entries on their way."""

    def __init__(self, position: int, slot: Slot, members: Sequence[Member], sizes: Sequence[int]) -> None:
        self.position: Final = position
        self.slot: Final = slot
        self.members: Final = members
        self.sizes: Final = sizes
        self.was_sent = False
        self.applied: bool | None = None
        """None: that is not known."""


class Journal:
    """One that is open: this process puts entries into it."""

    def __init__(self, owner: Journals, created_s: int) -> None:
        self.id: Final = secrets.token_hex(8)
        self.created_s: Final = created_s
        self.position = 0
        """The last that is taken."""
        self.members: Final[dict[str, Member]] = {}
        self.joining: Final[set[str]] = set()
        """Sessions that will be members when their heads are written."""
        self.is_open = True
        self._owner: Final = owner
        self._lock: Final = asyncio.Lock()
        self._pending: Pending | None = None

    @property
    def place(self) -> Place:
        """Of a head that has all until now."""
        return Place(self.id, self.position)

    async def settle(self, session_id: str | None = None) -> None:
        """Find out what became of a put that was not answered, if it has an entry of the session (None: of any).

        Raises: `HoldfastError`: not known yet.
        """
        pending = self._pending
        if pending is not None and (session_id is None or any(each.id == session_id for each in pending.slot.entries)):
            async with self._lock:
                await self._settle()

    async def _settle(self) -> None:
        """By sending it again: it gets there once, or somebody has the slot, and it never will."""
        pending = self._pending
        if pending is not None:
            try:
                try:
                    await self._send(pending)
                except Rejected:  # now, and perhaps not the first time
                    await self._send(pending, instead=end_item(self.id, pending.position, self.created_s, ()))
            except OutcomeUnknown as exc:
                raise Unavailable(f"it is not known what is in the journal: {exc}") from exc

    @property
    def is_settled(self) -> bool:
        return self._pending is None

    @property
    def must_leave(self) -> list[str]:
        """Members whose entries the next put would endanger."""
        oldest = self.position + 1 - LIVE
        return [member.head.id for member in self.members.values() if 0 < member.since <= oldest]

    async def put(self, flush: Flush, entries: Sequence[Entry], sizes: Sequence[int], notes: list[Pending]) -> bool:
        """Put entries of members that are held; whether it is done. False: the journal has ended, and nothing was.

        ``notes`` gets the `Pending` of what is sent. Raises: `OutcomeUnknown`; other `HoldfastError`: nothing was done.
        """
        async with self._lock:
            await self._settle()
            if not self.is_open or self.must_leave:
                return False
            slot = Slot(flush.lane, flush.number, flush.now_s, list(entries))
            members = [self.members[entry.id] for entry in entries]
            pending = self._pending = Pending(self.position + 1, slot, members, sizes)
            notes.append(pending)
            try:
                await self._send(pending)
            except OutcomeUnknown:
                raise
            except HoldfastError:
                self._pending, pending.applied = None, False
                raise
            return bool(pending.applied)

    async def _send(self, pending: Pending, instead: Item | None = None) -> None:
        position, again = pending.position, pending.was_sent
        item = slot_item(self.id, position, self.created_s, pending.slot)
        pending.was_sent = True
        try:
            await self._owner.table.put_slot(instead or item, position - SLOTS if position > SLOTS else None)
        except ConditionFailed as exc:
            there = exc.item
            if there is None and again:  # removed: nobody can say any more
                self._owner.give_up(self)
                raise OutcomeUnknown("the journal was removed") from exc
            if there is None or there.get("d") != item["d"] or there.get("p") != item["p"]:
                self._pending, pending.applied = None, False
                self._owner.ended(self, reasons_of(there) if there is not None and "x" in there else ())
                return
        else:
            if instead is not None:
                self._pending, pending.applied = None, False
                self._owner.ended(self, ())
                return
        self._pending, pending.applied = None, True
        self.position = position
        for entry, member, size in zip(pending.slot.entries, pending.members, pending.sizes, strict=True):
            member.head = with_entry(member.head, entry, pending.slot)
            member.since = member.since or position
            member.tail_bytes += size


class Journals:
    """All that are open in one backend object."""

    def __init__(self, table: Table, cache: HeadCache) -> None:
        self.table: Final = table
        self.holds: Final = Holds()
        self._cache: Final = cache
        self._open: Final[dict[str, Journal]] = {}
        self._members: Final[dict[str, Member]] = {}
        self._joining: Final[dict[str, Journal]] = {}
        self._streaks: Final[dict[str, int]] = {}
        """By session: writes of its head here, with none elsewhere in between."""
        self._rests: Final[dict[str, tuple[int, int]]] = {}
        """By session: until when it joins no journal, and how long that is."""
        self._now_s = 0

    # --- what is known of sessions -------------------------------------------

    def member(self, session_id: str) -> Member | None:
        return self._members.get(session_id)

    def of(self, journal: str) -> Journal | None:
        """The journal, if it is an open one of this process."""
        return self._open.get(journal)

    async def known(self, session_id: str) -> Stored | None:
        """The head of a session that is held, as far as it is known here. Raises: `HoldfastError`."""
        member = self._members.get(session_id)
        if member is not None:
            await member.journal.settle(session_id)
            member = self._members.get(session_id)
        return self._cache.get(session_id) if member is None else member.head

    # --- joining and leaving -------------------------------------------------

    def to_join(self, session_id: str, flush: Flush) -> Journal | None:
        """Where a session goes whose head is written now."""
        self._now_s = max(self._now_s, flush.now_s)
        self._end_joining(session_id)
        member = self._members.get(session_id)
        if member is not None and self._is_young(member.journal):
            return member.journal
        if self._streaks.get(session_id, 0) < JOINS_AFTER or self._rests.get(session_id, (0, 0))[0] > flush.now_s:
            return None
        journal = self._with_room(flush)
        if journal is not None:
            self._joining[session_id] = journal
            journal.joining.add(session_id)
        return journal

    def _with_room(self, flush: Flush) -> Journal | None:
        for journal in self._open.values():
            if len(journal.members) + len(journal.joining) < MEMBERS and self._is_young(journal):
                return journal
        for journal in self.open_ones:
            if journal.is_settled and not self._is_young(journal):
                self.give_up(journal)
        if len(self._open) >= _JOURNALS:
            return None
        journal = Journal(self, flush.now_s)
        self._open[journal.id] = journal
        return journal

    def _is_young(self, journal: Journal) -> bool:
        return journal.is_open and self._now_s < journal.created_s + _LIFE_S

    def sending(self, session_id: str) -> None:
        """The head of a session that is held is about to be written; until that has ended it is not known."""
        member = self._members.get(session_id)
        if member is not None:
            member.in_doubt = True

    def wrote(self, head: Stored) -> None:
        """It has been written, and is in the journal that it names, or in none."""
        self._end_joining(head.id)
        was = self._members.get(head.id)
        self._forget(head.id)
        journal = None if head.place is None else self._open.get(head.place.journal)
        if journal is not None:
            after = WRITTEN_OUT_AFTER
            if was is None or was.journal is not journal:  # so that the members' turns are spread
                after -= len(journal.members) % (WRITTEN_OUT_AFTER // 2)
            member = Member(journal, head, journal.position + after)
            self._members[head.id] = journal.members[head.id] = member
        self._count(head.id)

    def _count(self, session_id: str) -> None:
        if len(self._streaks) > _REMEMBERED:
            self._streaks.clear()
        self._streaks[session_id] = self._streaks.get(session_id, 0) + 1

    def lost(self, session_id: str, found: Stored | None) -> None:
        """Somebody else has written the head since it was as ``found``, or a write of ours has that was given up."""
        self._end_joining(session_id)
        member = self._members.get(session_id)
        if member is not None and found is not None and found.item_rev == member.head.item_rev:
            self._forget(session_id)
        self._streaks.pop(session_id, None)

    def _end_joining(self, session_id: str) -> None:
        journal = self._joining.pop(session_id, None)
        if journal is not None:
            journal.joining.discard(session_id)

    def _forget(self, session_id: str) -> None:
        member = self._members.pop(session_id, None)
        if member is not None:
            member.journal.members.pop(session_id, None)

    # --- ending --------------------------------------------------------------

    def ended(self, journal: Journal, reasons: Iterable[str]) -> None:
        """Another instance has ended it, for the sake of some sessions."""
        self.give_up(journal)
        if len(self._rests) > _REMEMBERED:
            self._rests.clear()
        for session_id in reasons:
            _, last = self._rests.get(session_id, (0, 0))
            rest = min(max(2 * last, REST_S), _LONGEST_REST_S)
            self._rests[session_id] = (self._now_s + rest, rest)
            self._streaks.pop(session_id, None)

    def give_up(self, journal: Journal) -> None:
        """Put no more into it. What is known of its members is true until others write them: a condition tells."""
        journal.is_open = False
        self._open.pop(journal.id, None)
        for session_id, member in list(journal.members.items()):
            self._members.pop(session_id, None)
            self._cache.replace(member.head)
        journal.members.clear()

    async def remove(self, journal: Journal) -> None:
        """Delete the ring of one that has no members."""
        self.give_up(journal)
        taken = range(max(1, journal.position - SLOTS + 1), journal.position + 1)
        await self.table.delete_items([slot_key(journal.id, position) for position in taken])

    @property
    def open_ones(self) -> list[Journal]:
        return list(self._open.values())

    def may_put(self, journal: Journal, now_s: int) -> bool:
        self._now_s = max(self._now_s, now_s)
        return self._is_young(journal)
