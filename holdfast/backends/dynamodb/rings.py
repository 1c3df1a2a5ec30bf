"""Journals from outside: reading their rings, and ending those of others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.holds import Holds
from holdfast.backends.dynamodb.items import Item, Place, Stored
from holdfast.backends.dynamodb.journal import AHEAD, SLOTS, Ring, end_item, fold, partition, position_of
from holdfast.errors import Unavailable

__all__ = ["Rings", "end_ring", "read_ring"]

_KEPT: Final = 32
"""Ended journals that are remembered: the sessions of one are mostly read one after the other."""
_TRIES: Final = 50


async def read_ring(table: Table, journal: str) -> Ring:
    """What the ring has in it. Each entry that was put before is there, unless it has been overwritten."""
    pages = table.range(partition(journal), "0", "9")
    return Ring.of([item async for page in pages for item in page])


async def end_ring(table: Table, place: Place, known_s: int, reasons: Sequence[str]) -> None:
    """End the journal of ``place``: from when this returns, nothing is ever put into it.

    An end goes where its owner is about to put, or a little ahead of that if the owner is too fast; then the
    positions before it are taken too. The owner puts nothing behind a position that it could not have. A
    cancellation leaves the journal ended or not. ``known_s``: a time at which somebody knew it.
    """
    journal = place.journal
    ring = await read_ring(table, journal)
    if ring.is_ended:
        return
    due_s = ring.due_s or known_s
    last, ahead = max(ring.last, place.position), 1
    for _ in range(_TRIES):
        position = last + ahead
        there = await _put_end(table, end_item(journal, position, due_s, reasons))
        if there is None:  # removed, as it was ended and the heads have all
            return
        if "x" in there and position_of(there) == position:
            for between in range(last + 1, position):
                await _put_end(table, end_item(journal, between, due_s, reasons))
            return
        last = max(last, position_of(there) - AHEAD if "x" in there else position_of(there))
        ahead = min(ahead * 2, AHEAD)
    raise Unavailable("the journal of another instance cannot be ended: it is too busy")


async def _put_end(table: Table, end: Item) -> Item | None:
    """What is in the slot then; None: nothing, though something was."""
    position = position_of(end)
    try:
        await table.put_slot(end, position - SLOTS if position > SLOTS else None)
    except ConditionFailed as exc:
        return exc.item
    return end


class Rings:
    """Journals of others that have been ended, as they are for ever."""

    def __init__(self, table: Table) -> None:
        self._table: Final = table
        self._ended: Final[OrderedDict[str, tuple[int, Ring]]] = OrderedDict()
        self.read = 0
        """How many have been read so far: tells whether a head was read before a ring, or after it."""
        self._holds: Final = Holds()

    def folded(self, stored: Stored, since: int) -> Stored | None:
        """What became of a head that was read when ``since`` rings had been; None: its ring was none of them."""
        assert stored.place is not None
        number, ring = self._ended.get(stored.place.journal, (since, None))
        if ring is None or number >= since:
            return None
        self._ended.move_to_end(stored.place.journal)
        return fold(stored, ring)

    async def end(self, place: Place, known_s: int, reasons: Sequence[str]) -> None:
        """End a journal, and read it. Heads that are in it must be read again after that."""
        async with self._holds.of(place.journal):
            if place.journal in self._ended:
                return
            await end_ring(self._table, place, known_s, reasons)
            ring = await read_ring(self._table, place.journal)
            self._ended[place.journal] = self.read, ring._replace(items={})
            self.read += 1
            if len(self._ended) > _KEPT:
                self._ended.popitem(last=False)
