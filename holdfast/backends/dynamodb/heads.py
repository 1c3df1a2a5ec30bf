"""The heads of sessions as they are, whether in their items alone or with what a journal adds.

A head is read in one of two ways. To `get` it, as a user does who may write next, ends the journal of another
instance. To `look` at it, as lists and upkeep do, does not; what has been found then is true of some moment
since the call, and not to be written on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from holdfast.backends.dynamodb.cache import HeadCache
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.items import Item, Place, Stored, decode_head
from holdfast.backends.dynamodb.journal import Ring, fold, slot_key
from holdfast.backends.dynamodb.journals import Journal, Journals
from holdfast.backends.dynamodb.plan import Plan, written_out
from holdfast.backends.dynamodb.rings import Rings, read_ring
from holdfast.errors import HoldfastError, Unavailable

__all__ = ["Heads", "Looks"]

_TRIES: Final = 20
_CLOSE_S: Final = 10.0
_RINGS_IN_A_LOOK: Final = 16


class Heads:
    """Of one table, for one backend object."""

    def __init__(self, table: Table, cache: HeadCache) -> None:
        self.table: Final = table
        self.cache: Final = cache
        self.journals: Final = Journals(table, cache)
        self._rings: Final = Rings(table)

    # --- reading -------------------------------------------------------------

    async def get(self, session_id: str, *, held: bool = False) -> Stored | None:
        """The head as it is now. ``held``: the caller holds the session."""
        since = self.rings_read
        return await self._completed(session_id, await self.table.get_head(session_id), since, held=held)

    async def get_many(self, ids: Sequence[str]) -> dict[str, Stored]:
        since = self.rings_read
        found = await self.table.get_heads(ids)
        behind = [stored for stored in found.values() if stored.place is not None]
        complete = await asyncio.gather(*(self._completed(each.id, each, since, held=False) for each in behind))
        for stored, now in zip(behind, complete, strict=True):
            if now is None:
                del found[stored.id]
            else:
                found[stored.id] = now
        return found

    @property
    def rings_read(self) -> int:
        """To be noted before an item is asked for that is given to `of_item` or `complete`."""
        return self._rings.read

    async def of_item(self, session_id: str, item: Item | None, since: int) -> Stored | None:
        """The head that a condition failed on, of a session that is held."""
        return await self._completed(session_id, decode_head(item) if item else None, since, held=True)

    async def _completed(self, session_id: str, stored: Stored | None, since: int, *, held: bool) -> Stored | None:
        for _ in range(_TRIES):
            if stored is None:
                return None
            found = await self.complete(stored, since, held=held)
            if found is not None:
                return found
            since = self.rings_read
            stored = await self.table.get_head(session_id)
        raise Unavailable("the session goes from journal to journal while it is read")

    async def complete(self, stored: Stored, since: int, *, held: bool = False) -> Stored | None:
        """With all that its journal adds; None: it is to be read again."""
        if stored.place is None:
            return stored
        journal = self.journals.of(stored.place.journal)
        if journal is None:
            found = self._rings.folded(stored, since)
            if found is None:
                await self._rings.end(stored.place, stored.record.active_us // 1_000_000, [stored.id])
            return found
        if held:
            return await self._of_member(journal, stored)
        async with self.journals.holds.of(stored.id):
            return await self._of_member(journal, stored)

    async def _of_member(self, journal: Journal, stored: Stored) -> Stored | None:
        """Of a session that is held, in a journal of ours: what we know of it, if the item is as we know it.

        If it is not, nobody but us has written it, in a request that was given up: that has all there is.
        """
        await journal.settle(stored.id)
        member = self.journals.member(stored.id)
        if member is not None and (member.journal, *_state(stored)) == (journal, *_state(member.head)):
            return member.head
        again = await self.table.get_head(stored.id)
        if again is None or (again.place, *_state(again)) != (stored.place, *_state(stored)) or not journal.is_open:
            return None
        self.journals.lost(stored.id, None if member is None else member.head)
        return again

    # --- writing -------------------------------------------------------------

    async def to_write(self, looked_at: Stored) -> Stored | None:
        """What a session that is held has become since it was looked at, if that could differ unnoticed."""
        in_none = looked_at.place is None and self.journals.member(looked_at.id) is None
        return looked_at if in_none else await self.get(looked_at.id, held=True)

    async def send(self, plan: Plan, found: Stored | None) -> None:
        """Carry out the plan for a session that is held. Raises: as `Table.call`."""
        if plan.copy is not None:
            await self.table.put_copy(plan.copy)
        await self.put(plan.head, found, plan.puts, plan.deletes)

    async def put(
        self, head: Stored, found: Stored | None, puts: Sequence[Item] = (), deletes: Sequence[Item] = ()
    ) -> None:
        """Write the head of a session that is held, and other items with it. Raises: as `Table.call`."""
        self.journals.sending(head.id)
        try:
            if puts or deletes:
                await self.table.transact(head, found, puts, deletes)
            else:
                await self.table.put_head(head, found)
        except ConditionFailed:
            self.journals.lost(head.id, found)
            raise
        self.journals.wrote(head)

    # --- journals ------------------------------------------------------------

    async def write_out(self, session_id: str) -> None:
        """Take a member out of its journal, with its head brought up to date. Raises: `HoldfastError`."""
        async with self.journals.holds.of(session_id):
            member = self.journals.member(session_id)
            if member is None:
                return
            found = await self.journals.known(session_id)
            if found is None or self.journals.member(session_id) is not member:
                return
            plan = written_out(found)
            try:
                await self.send(plan, found)
            except ConditionFailed:  # others wrote it, with all there was; or a write of ours did that was given up
                return
            self.cache.put(plan.head)

    async def make_room(self, journal: Journal) -> None:
        """See that the next put overwrites nothing that is needed. Raises: `HoldfastError`."""
        while journal.must_leave:
            await asyncio.gather(*map(self.write_out, journal.must_leave))

    async def sweep(self, journal_id: str, now_s: int) -> None:
        """Remove a journal that is too old to be anybody's, once the heads have what it says.

        Its ends stay for some days. Raises: `HoldfastError`.
        """
        journal = self.journals.of(journal_id)
        if journal is not None:
            await journal.settle()
            self.journals.give_up(journal)
        await self._rings.end(Place(journal_id, 0), now_s, ())
        ring = await read_ring(self.table, journal_id)
        for session_id in ring.entries:
            async with self.journals.holds.of(session_id):
                stored = await self.get(session_id, held=True)
                if stored is not None and stored.place is not None and stored.place.journal == journal_id:
                    with suppress(ConditionFailed):  # others wrote it, with all there was
                        await self.send(written_out(stored), stored)
        await self.table.delete_items(
            [slot_key(journal_id, position) for position, item in ring.items.items() if "d" in item]
        )

    async def close(self) -> None:
        """Write out all members and remove the rings, as far as that can be done soon: all is committed anyway."""
        journals = self.journals.open_ones
        if not journals:
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*map(self._close, journals))
        except TimeoutError:
            return
        finally:
            for journal in journals:
                self.journals.give_up(journal)

    async def _close(self, journal: Journal) -> None:
        try:
            await journal.settle()
            await asyncio.gather(*map(self.write_out, list(journal.members)))
            if not journal.members and journal.is_open:
                await self.journals.remove(journal)
        except HoldfastError:
            return


def _state(stored: Stored) -> tuple[int, int]:
    return stored.incarnation, stored.item_rev


class Looks:
    """Heads as they were at some moment of its life; journals are read, not ended."""

    def __init__(self, heads: Heads) -> None:
        self._heads: Final = heads
        self._rings: Final[dict[str, Ring]] = {}

    async def get(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Those that are there."""
        found: dict[str, Stored] = {}
        left = list(ids)
        for _ in range(_TRIES):
            rings, since = dict(self._rings), self._heads.rings_read  # a head counts if it is read after its ring
            again = list[Stored]()
            for stored in (await self._heads.table.get_heads(left) if left else {}).values():
                complete = await self._complete(stored, rings, since)
                if complete is None:
                    again.append(stored)
                else:
                    found[stored.id] = complete
            if not again:
                return found
            await self._read_rings(again)
            left = [stored.id for stored in again]
        raise Unavailable("sessions go from journal to journal while they are read")

    def is_elsewhere(self, stored: Stored) -> bool:
        """Whether it is in a journal that another instance may have open: that one sees to its upkeep."""
        if not self._is_foreign(stored) or stored.place is None:
            return False
        ring = self._rings.get(stored.place.journal)
        return ring is None or not ring.is_ended

    def _is_foreign(self, stored: Stored) -> bool:
        return stored.place is not None and self._heads.journals.of(stored.place.journal) is None

    async def _complete(self, stored: Stored, rings: dict[str, Ring], since: int) -> Stored | None:
        if stored.place is None:
            return stored
        if not self._is_foreign(stored):
            return await self._heads.complete(stored, since)
        ring = rings.get(stored.place.journal)
        return None if ring is None else fold(stored, ring)

    async def _read_rings(self, found: Sequence[Stored]) -> None:
        journals = dict.fromkeys(stored.place.journal for stored in found if stored.place and self._is_foreign(stored))
        missing = [journal for journal in journals if journal not in self._rings][:_RINGS_IN_A_LOOK]
        for _ in range(len(self._rings) + len(missing) - _RINGS_IN_A_LOOK):
            self._rings.pop(next(iter(self._rings)))
        table = self._heads.table
        self._rings.update(
            zip(missing, await asyncio.gather(*(read_ring(table, each) for each in missing)), strict=True)
        )
