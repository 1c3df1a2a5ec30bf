"""The heads that this instance has seen last: what lets a write be built without reading first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from holdfast.backends.dynamodb.items import Stored

__all__ = ["HeadCache"]

_ENTRIES: Final = 5_000
"""A head has 1 KB mostly."""


class HeadCache:
    """Never trusted: a write on an old head fails by its condition, which brings the new one."""

    def __init__(self, entries: int = _ENTRIES) -> None:
        self._entries: Final = entries
        self._heads: OrderedDict[str, Stored] = OrderedDict()

    def get(self, session_id: str) -> Stored | None:
        stored = self._heads.get(session_id)
        if stored is not None:
            self._heads.move_to_end(session_id)
        return stored

    def put(self, stored: Stored) -> None:
        """A newer revision stays, and what is known of this one: reads and writes may end in any order."""
        known = self._heads.get(stored.id)
        if known is not None and known.incarnation == stored.incarnation and known.rev >= stored.rev:
            return
        self.replace(stored)

    def replace(self, stored: Stored) -> None:
        """As `put`, with news that are not in the table yet."""
        self._heads[stored.id] = stored
        self._heads.move_to_end(stored.id)
        if len(self._heads) > self._entries:
            self._heads.popitem(last=False)

    def forget(self, session_id: str) -> None:
        self._heads.pop(session_id, None)
